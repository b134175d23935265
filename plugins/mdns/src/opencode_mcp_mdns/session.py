"""A zeroconf session on the networks of this machine, which follows them as they come, go and change."""

import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

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
_CLOSE_SECONDS = 1.5


class Session:
    """Zeroconf, and the networks that it uses.

    Attributes:
        zeroconf: To be asked.
        network: The networks in use.
    """

    def __init__(self, zeroconf: AsyncZeroconf, network: Network, read: ReadNetwork) -> None:
        self.zeroconf = zeroconf
        self.network = network
        self._read = read
        self._up: frozenset[str] | None = None
        self._woken = anyio.Event()

    def look(self) -> None:
        """Look at the networks now instead of a little later."""
        self._woken.set()

    async def follow(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Use the networks as they change until cancelled; tell of it, and of links that come back."""
        while True:
            with anyio.move_on_after(_CHECK_SECONDS):
                await self._woken.wait()
            self._woken = anyio.Event()
            network, up = await anyio.to_thread.run_sync(lambda: (self._read(), links_up()))
            back = up - (up if self._up is None else self._up)
            self._up = up
            if network != self.network:
                logger.info("The networks have changed; in use: %s.", ", ".join(network.names) or "none")
                await self._use(network)
            elif not back.intersection(network.names):
                continue
            await changed()

    async def _use(self, network: Network) -> None:
        """Let zeroconf use `network`, and first leave what is gone: an address may have moved."""
        staying = Network(self.network.attached & network.attached)
        self.network = network
        try:
            if staying.attached and {_bound(one) for one in staying.attached} != {
                _bound(one) for one in network.attached
            }:
                await self.zeroconf.async_update_interfaces(staying.for_zeroconf)
            await self.zeroconf.async_update_interfaces(network.for_zeroconf)
        except (OSError, RuntimeError, Error) as error:  # they changed again: so it is looked at again
            logger.info("The networks cannot be used as they are: %s.", error)
            self.network = staying


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
    if not logger.isEnabledFor(
        logging.DEBUG
    ):  # it reports what others send, and lost networks with tracebacks
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
        yield Session(zeroconf, network, read)
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await zeroconf.async_close()


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def network_reader(wanted: Sequence[str]) -> ReadNetwork:
    """Return what reads the networks that the settings want."""
    return lambda: read_network(wanted)
