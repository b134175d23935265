"""Announces an instance of this machine for as long as it runs, at the addresses where it really listens."""

import logging
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, TransportError, clean_line
from opencode_mcp_mdns import proof
from opencode_mcp_mdns.advert import MOST_ADDRESSES, Place
from opencode_mcp_mdns.composing import compose
from opencode_mcp_mdns.network import Address, Network
from opencode_mcp_mdns.session import ReadNetwork, Session, opened
from opencode_mcp_mdns.settings import MDnsSettings

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 1.0
_GOODBYE_SECONDS = 1.0
_NETWORK_SECONDS = 2.0


class Announcement:
    """The announcement of one instance.

    Args:
        endpoint: The instance; its URL says where it listens.
        settings: Say on which networks, and what is told of it.
        read: Reads the networks.
    """

    def __init__(self, endpoint: Endpoint, settings: MDnsSettings, read: ReadNetwork) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._read = read
        self._woken = anyio.Event()
        self._session: Session | None = None

    def woke(self) -> None:
        """Announce it anew at once, and see whether the networks are others."""
        self._woken.set()
        if self._session is not None:
            self._session.look()

    async def keep(self, task_status: "TaskStatus[None]") -> None:
        """Keep it announced until cancelled; then say goodbye.

        Raises:
            TransportError: It is open to everybody, nobody could reach it, or there is no multicast DNS.
        """
        if self._endpoint.labels.get("auth") == "none":
            raise TransportError(
                f"mdns does not announce {self._endpoint.name}: it asks for no password, so everybody on the "
                "network could use it. Start it with OPENCODE_SERVER_PASSWORD."
            )
        addresses = await self._reachable()
        async with opened(self._read, self._settings.interfaces) as session:
            self._session = session
            # Each method returns, once it is decided what to send, what is to be awaited until that is sent.
            untyped: Any = session.zeroconf
            info = compose(self._endpoint, addresses, self._settings)
            sent = await untyped.async_register_service(info, allow_name_change=True)
            try:
                task_status.started()
                await sent
                async with anyio.create_task_group() as group:
                    group.start_soon(session.follow, self._network_changed)
                    await self._renew(session, info.name, addresses)
            finally:
                with anyio.move_on_after(_GOODBYE_SECONDS, shield=True):
                    await (await untyped.async_unregister_service(info))

    async def _network_changed(self) -> None:
        self._woken.set()

    async def _renew(self, session: Session, name: str, addresses: Sequence[Address]) -> None:
        """Announce it anew whenever its addresses are others, and before the proof in it grows old."""
        while True:
            with anyio.move_on_after(proof.RENEWED_SECONDS):
                await self._woken.wait()
            self._woken = anyio.Event()
            try:
                addresses = await self._listening(session.network) or addresses
            except TransportError as error:
                logger.warning("%s", error)
            info = compose(self._endpoint, addresses, self._settings, name=name)
            untyped: Any = session.zeroconf  # as above
            await (await untyped.async_update_service(info))

    async def _reachable(self) -> Sequence[Address]:
        """Wait for a network, and return the addresses in it where the instance listens.

        Raises:
            TransportError: It listens on none of them.
        """
        waiting = False
        while True:
            network = await anyio.to_thread.run_sync(self._read)
            if network.attached:
                return await self._listening(network)
            if not waiting:
                logger.warning("There is no network to announce %s on: waiting for one.", self._endpoint.name)
            waiting = True
            with anyio.move_on_after(_NETWORK_SECONDS):
                await self._woken.wait()
            self._woken = anyio.Event()

    async def _listening(self, network: Network) -> Sequence[Address]:
        """Return the addresses in a network where the instance listens, found out by connecting to them.

        Raises:
            TransportError: It listens on none of them.
        """
        parts = urlsplit(self._endpoint.url)
        try:
            host, port = ip_address(parts.hostname or ""), parts.port or 80
        except ValueError:
            shown = clean_line(self._endpoint.url, 100)
            raise TransportError(f"mdns cannot announce {shown}: it must say an IP address.") from None
        everywhere = host.is_unspecified or host.is_loopback
        candidates = [network.scoped(one) for one in network.addresses if everywhere or one == host]
        found: list[Address] = []
        for address in candidates:
            if len(found) < MOST_ADDRESSES and await _accepts(Place(address, port)):
                found.append(address)
        if network.attached and not found:
            raise TransportError(
                f"mdns cannot announce {self._endpoint.name}: nobody on {', '.join(network.names)} can reach "
                f"it, since it does not listen there on port {port}. Start it with --hostname 0.0.0.0 and a "
                "password (OPENCODE_SERVER_PASSWORD)."
            )
        return found


async def _accepts(place: Place) -> bool:
    try:
        with anyio.fail_after(_CONNECT_SECONDS):
            async with await anyio.connect_tcp(str(place.address), place.port):
                return True
    except (OSError, TimeoutError):
        return False
