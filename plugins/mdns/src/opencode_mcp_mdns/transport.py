"""The transport: publishes the instances on the network as they come and go, and announces those of here.

`opencode-connected` stays for as long as its OpenCode, so what it takes to find instances is imported only
where it is needed.
"""

import ipaddress
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, Finding, Publish, Rejection, Route, Transport, TransportError
from opencode_mcp_mdns.session import ReadNetwork, network_reader, opened
from opencode_mcp_mdns.settings import MDnsSettings

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from opencode_mcp_mdns.announcement import Announcement
    from opencode_mcp_mdns.lookout import Lookout

_LOOK_SECONDS = 3.0
"""Enough to hear again of what has just been said to all: that waits a second (RFC 6762, section 6)."""
_INSPECT_SECONDS = 6.0


class MDns(Transport):
    """Finds the instances on the networks of this machine, by multicast DNS and a question to each.

    Args:
        settings: Where to look, and whom to trust.
        read_network: Reads the networks in use; by default those of this machine.
    """

    def __init__(self, settings: MDnsSettings, *, read_network: ReadNetwork | None = None) -> None:
        self._settings = settings
        self._read = read_network or network_reader(settings.interfaces)
        self._lookout: Lookout | None = None
        self._announcements: set[Announcement] = set()
        if settings.forget_after_ms:
            self.forget_after_seconds = settings.forget_after_ms / 1000
        self.invitation = (
            "Run `TRANSPORT=mdns opencode-connected` in your project, on this machine or another one of this "
            "network; or start `OPENCODE_SERVER_PASSWORD=... opencode serve --mdns` there. A firewall must "
            "let UDP port 5353 through, and the port of OpenCode."
        )

        self.vouching = (
            "Set MDNS_SECRET here and where it is announced, or MDNS_CREDENTIALS_FOR here to its address."
        )

    async def discover(self) -> Sequence[Endpoint]:
        """Look for three seconds.

        Raises:
            TransportError: If this machine is on no network, or multicast DNS cannot be used on it.
        """
        found: Sequence[Endpoint] = ()

        def publish(endpoints: Sequence[Endpoint]) -> None:
            nonlocal found
            found = endpoints

        with anyio.move_on_after(_LOOK_SECONDS):
            await self._look(publish)
        return found

    async def _look(self, publish: Publish) -> None:
        async with self._looking() as lookout:
            if not lookout.network.attached:
                raise TransportError("This machine is on no network at present.")
            await lookout.run(publish, self.rescan_seconds)

    async def watch(self, publish: Publish) -> None:
        """Publish the set now and after each change, until cancelled.

        Raises:
            TransportError: If multicast DNS cannot be used on this machine.
        """
        async with self._looking() as self._lookout:
            await self._lookout.run(publish, self.rescan_seconds)

    @asynccontextmanager
    async def _looking(self) -> AsyncGenerator["Lookout"]:
        from opencode_mcp_mdns.lookout import Lookout  # not for announcing

        await anyio.to_thread.run_sync(lambda: self._settings.key)  # takes its time
        async with opened(self._read, self._settings.interfaces) as session:
            yield Lookout(session, self._settings)

    def connect(self, endpoint: Endpoint) -> AbstractAsyncContextManager[Route]:
        """Go straight to the URL; the scope of a link-local address stays out of the Host header."""
        return _connected(endpoint)

    def rejected(self) -> Sequence[Rejection]:
        """The services that are advertised and not listed, with reasons."""
        return () if self._lookout is None else self._lookout.rejections

    async def forget(self, endpoint: Endpoint) -> None:
        """List an instance no more until it answers again."""
        if self._lookout is not None:
            self._lookout.forget(endpoint)

    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        """Announce an instance of this machine until cancelled, then say goodbye.

        Raises:
            TransportError: If nobody else can reach it, or multicast DNS cannot be used on this machine.
        """
        from opencode_mcp_mdns.announcement import Announcement  # not for finding

        announcement = Announcement(endpoint, self._settings, self._read)
        self._announcements.add(announcement)
        try:
            await announcement.keep(task_status)
        finally:
            self._announcements.discard(announcement)

    def woke(self) -> None:
        """Announce anew at once: others may have forgotten us, and the networks may be others."""
        for announcement in self._announcements:
            announcement.woke()

    async def inspect(self, endpoint: Endpoint) -> Sequence[Finding]:
        """Look for up to six seconds whether an instance of this machine is found on the network.

        Raises:
            TransportError: If this machine is on no network, or multicast DNS cannot be used on it.
        """
        from opencode_mcp_mdns.composing import public_id  # not for finding

        wanted = public_id(endpoint.id)
        found: Endpoint | None = None
        with anyio.move_on_after(_INSPECT_SECONDS) as look:

            def publish(endpoints: Sequence[Endpoint]) -> None:
                nonlocal found
                found = next((one for one in endpoints if one.id.partition("~")[0] == wanted), found)
                if found is not None:
                    look.cancel()

            await self._look(publish)
        if found is not None:
            return [Finding(about="advertised", ok=True, detail=f"found on the network, at {found.url}")]
        return [Finding(about="advertised", ok=False, detail="not found on the network")]


@asynccontextmanager
async def _connected(endpoint: Endpoint) -> AsyncGenerator[Route]:
    from opencode_mcp_mdns.advert import Place  # not for announcing

    parts = urlsplit(endpoint.url)
    yield Place(ipaddress.ip_address(parts.hostname or ""), parts.port or 80).route
