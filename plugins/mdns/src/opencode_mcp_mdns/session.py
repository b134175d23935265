"""A zeroconf session on the networks of this machine, which follows them as they come, go and change."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from zeroconf import Error, IPVersion
from zeroconf.asyncio import AsyncZeroconf

from opencode_mcp import TransportError
from opencode_mcp_mdns.network import Attached, Network, links_up, missing, read_network

logger = logging.getLogger(__name__)

ReadNetwork = Callable[[], Network]
"""Reads the networks in use; it blocks for a fraction of a millisecond."""

_CHECK_SECONDS = 2.0
_START_SECONDS = 5.0
_CLOSE_SECONDS = 0.8
_JUMP_SECONDS = 10.0
_PORT = 5353
_RESPONSE = 0x80  # in the third byte, RFC 1035, section 4.1.1


class _OnLink(asyncio.DatagramProtocol):
    """Hands on what comes from the link, as RFC 6762 demands (sections 6 and 11); zeroconf takes anything."""

    def __init__(self, inner: Any, session: "Session") -> None:
        self._inner = inner
        self._session = session

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        is_response = len(data) > 2 and data[2] & _RESPONSE
        if (addr[1] == _PORT or not is_response) and self._session.network.is_on_link(addr[0]):
            self._inner.datagram_received(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._inner.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)


class Session:
    """Zeroconf, and the networks that it uses.

    Attributes:
        zeroconf: To be asked.
        network: The networks in use.
        before: Called with other networks before they are used.
        slept: Called after this machine has slept, or its clock was set.
    """

    def __init__(self, zeroconf: AsyncZeroconf, network: Network, read: ReadNetwork) -> None:
        self.zeroconf = zeroconf
        self.network = network
        self.before: Callable[[Network], Awaitable[None]] | None = None
        self.slept: Callable[[], None] | None = None
        self._read = read
        self._up: frozenset[str] | None = None
        self._woken = anyio.Event()
        self._deaf: frozenset[str] = frozenset()
        self._clocks_differ = time.time() - anyio.current_time()

    def look(self) -> None:
        """Look at the networks now instead of a little later."""
        self._woken.set()

    async def follow(self, changed: Callable[[], None]) -> None:
        """Use the networks as they change until cancelled; tell of it, and of links that come back."""
        while True:
            with anyio.move_on_after(_CHECK_SECONDS):
                await self._woken.wait()
            self._woken = anyio.Event()
            self.look_at_clock()
            network, up = await anyio.to_thread.run_sync(lambda: (self._read(), links_up()))
            back = up - (up if self._up is None else self._up)
            self._up = up
            other = network != self.network
            if other:
                logger.info("The networks have changed; in use: %s.", ", ".join(network.names) or "none")
            await self.use(network)
            if other or back.intersection(network.names):
                changed()

    async def use(self, network: Network) -> None:
        """Let zeroconf use `network`; without effect if it does already, or else what it could not use yet.

        First it leaves what is gone: an address may be on another interface now.
        """
        staying = Network(self.network.attached & network.attached)
        leaving = {_bound(one) for one in self.network.attached} - {_bound(one) for one in staying.attached}
        if network != self.network and self.before is not None:
            await self.before(network)
        self.network = network
        try:
            if leaving:
                await self.zeroconf.async_update_interfaces(staying.for_zeroconf)
            await self.zeroconf.async_update_interfaces(network.for_zeroconf)
        except (OSError, RuntimeError, Error) as error:  # they changed again: so it is looked at again
            logger.info("The networks cannot be used as they are: %s.", error)
        self._listen_on_link()
        self._tell_of_deafness()

    def _listen_on_link(self) -> None:
        for reader in self.zeroconf.zeroconf.engine.readers:
            inner = reader.transport.get_protocol()
            if not isinstance(inner, _OnLink):
                reader.transport.set_protocol(_OnLink(inner, self))

    def _tell_of_deafness(self) -> None:
        """Say which addresses cannot be used: the operating system limits their number."""
        engine: Any = self.zeroconf.zeroconf.engine
        heard = {str(sender.sock_name[0]) for sender in engine.senders}
        deaf = frozenset(str(one) for one in self.network.addresses if one.version == 4) - heard
        if deaf - self._deaf:
            logger.warning(
                "Multicast DNS does not work on %s: there may be too many addresses. Name those that matter "
                "in MDNS_INTERFACES.",
                ", ".join(sorted(deaf)),
            )
        self._deaf = deaf

    def look_at_clock(self) -> None:
        """Notice by the wall clock that time has passed which the other clock has not seen."""
        differ = time.time() - anyio.current_time()
        if abs(differ - self._clocks_differ) > _JUMP_SECONDS and self.slept is not None:
            self.slept()
        self._clocks_differ = differ


def _bound(one: Attached) -> tuple[str, int]:
    return (str(one.address.ip), one.index)


@asynccontextmanager
async def opened(read: ReadNetwork, wanted: Sequence[str]) -> AsyncGenerator[Session]:
    """Open a session on the networks that there are at present, if any.

    Raises:
        TransportError: If multicast DNS cannot be used on this machine.
    """
    network = await anyio.to_thread.run_sync(read)
    if absent := missing(network, wanted):
        logger.warning("MDNS_INTERFACES names what is not there at present: %s.", ", ".join(absent))
    if not logger.isEnabledFor(logging.DEBUG):  # a lost network is worth a traceback to it
        logging.getLogger("zeroconf").setLevel(logging.ERROR)
    version = IPVersion.All if _has_ipv6() else IPVersion.V4Only
    try:
        zeroconf = AsyncZeroconf(interfaces=network.for_zeroconf, ip_version=version)
    except (OSError, RuntimeError) as error:
        raise TransportError(
            f"Multicast DNS cannot be used on this machine: {error}. Its UDP port 5353 must be shared; with "
            "avahi, see that disallow-other-stacks is no in avahi-daemon.conf."
        ) from None
    try:
        session = Session(zeroconf, network, read)
        await _start(session)
        yield session
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await zeroconf.async_close()


async def _start(session: Session) -> None:
    try:
        with anyio.fail_after(_START_SECONDS):
            await session.zeroconf.zeroconf.async_wait_for_start()
    except (TimeoutError, Error):
        raise TransportError("Multicast DNS does not start on this machine.") from None
    await session.use(session.network)


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def network_reader(wanted: Sequence[str]) -> ReadNetwork:
    """Return what reads the networks that the settings want."""
    return lambda: read_network(wanted)
