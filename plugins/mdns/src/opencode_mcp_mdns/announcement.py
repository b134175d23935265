"""Announces an instance of this machine for as long as it runs, at the addresses where it really listens."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from zeroconf import NonUniqueNameException
from zeroconf.asyncio import AsyncServiceInfo

from opencode_mcp import Endpoint, TransportError, clean_line, listening_user
from opencode_mcp_mdns import proof
from opencode_mcp_mdns.advert import MOST_ADDRESSES, Place
from opencode_mcp_mdns.composing import compose, other_name
from opencode_mcp_mdns.network import Address, Network
from opencode_mcp_mdns.session import ReadNetwork, Session, opened
from opencode_mcp_mdns.settings import MDnsSettings

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 1.0
_GOODBYE_SECONDS = 1.0
_TWICE_SECONDS = 1.2
_NAMES = 4
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
        self._network = Network([])
        self._info: AsyncServiceInfo
        self._zeroconf: Any = None

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
        await anyio.to_thread.run_sync(lambda: self._settings.key)  # takes its time
        addresses = await self._reachable()
        async with opened(self._read, self._settings.interfaces) as session:
            self._session = session
            # Each method returns, once it is decided what to send, what is to be awaited until that is sent.
            self._zeroconf = session.zeroconf
            sent = await self._register(addresses)
            try:
                task_status.started()
                await sent
                if session.network != self._network:  # which may have changed since
                    self._woken.set()
                session.before = self._network_changes
                async with anyio.create_task_group() as group:
                    group.start_soon(session.follow, self._woken_by_network)
                    await self._renew(session)
            finally:
                with anyio.move_on_after(_GOODBYE_SECONDS, shield=True):
                    await (await self._zeroconf.async_unregister_service(self._info))

    async def _register(self, addresses: Sequence[Address]) -> Any:
        """Announce it under its name, or another one if that is taken; a neighbour may say that all are."""
        self._info = compose(self._endpoint, addresses, self._settings)
        first = self._info.name
        for attempt in range(2, _NAMES + 2):
            with suppress(NonUniqueNameException):
                return await self._zeroconf.async_register_service(self._info)
            self._info = compose(self._endpoint, addresses, self._settings, name=other_name(first, attempt))
        logger.warning("Somebody on the network claims every name for %s: not asked any more.", first)
        return await self._zeroconf.async_register_service(self._info, cooperating_responders=True)

    def _woken_by_network(self) -> None:
        self._woken.set()

    async def _network_changes(self, network: Network) -> None:
        """Make sure that zeroconf, when it uses other networks, says the addresses in them."""
        if addresses := await self._listening(network):
            self._info = compose(self._endpoint, addresses, self._settings, name=self._info.name)
            self._zeroconf.zeroconf.registry.async_update(self._info)

    async def _renew(self, session: Session) -> None:
        """Announce it anew whenever its addresses are others, and before the proof in it grows old.

        Twice, since others keep for a second what they have just heard (RFC 6762, section 10.2).

        Raises:
            TransportError: It listens no more where others can reach it.
        """
        while True:
            with anyio.move_on_after(proof.RENEWED_SECONDS):
                await self._woken.wait()
            self._woken = anyio.Event()
            if addresses := await self._listening(session.network):
                self._info = compose(self._endpoint, addresses, self._settings, name=self._info.name)
            for _ in range(2):
                await (await self._zeroconf.async_update_service(self._info))
                await anyio.sleep(_TWICE_SECONDS)

    async def _reachable(self) -> Sequence[Address]:
        """Wait for a network, and return the addresses in it where the instance listens.

        Raises:
            TransportError: It listens on none of them.
        """
        waiting = False
        while True:
            network = await anyio.to_thread.run_sync(self._read)
            self._network = network
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
        owner = await anyio.to_thread.run_sync(listening_user, self._endpoint.url)
        found: list[Address] = []
        for address in _candidates(network, host):
            place = Place(address, port)
            if len(found) == MOST_ADDRESSES or not await _accepts(place):
                continue
            # Another user of this machine may listen on the same port of another address.
            if await anyio.to_thread.run_sync(listening_user, place.url) == owner:
                found.append(address)
        if any(not address.is_link_local for address in found):
            # On another link a link-local address is somebody else's.
            found = [address for address in found if not address.is_link_local]
        if network.attached and not found:
            raise TransportError(
                f"mdns cannot announce {self._endpoint.name}: nobody on {', '.join(network.names)} can reach "
                f"it, since it does not listen there on port {port}. Start it with --hostname 0.0.0.0 and a "
                "password (OPENCODE_SERVER_PASSWORD)."
            )
        return found


def _candidates(network: Network, host: Address) -> Sequence[Address]:
    """Return the addresses of this machine where a server may listen that says it listens at `host`."""
    if not (host.is_unspecified or host.is_loopback):
        return [network.scoped(one) for one in network.addresses if one == host]
    only_v4 = host.is_unspecified and host.version == 4
    return [network.scoped(one) for one in network.addresses if not only_v4 or one.version == 4]


async def _accepts(place: Place) -> bool:
    try:
        with anyio.fail_after(_CONNECT_SECONDS):
            async with await anyio.connect_tcp(str(place.address), place.port):
                return True
    except (OSError, TimeoutError):
        return False
