"""The transport: publishes the instances on the tailnet as they come and go, and announces those of here."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from opencode_mcp import (
    Endpoint,
    Finding,
    Publish,
    Rejection,
    Route,
    Transport,
    TransportError,
    announced_here,
)
from opencode_mcp_tailscale.settings import TailscaleSettings

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from opencode_mcp_tailscale.announcement import Announcement
    from opencode_mcp_tailscale.localapi import LocalApi
    from opencode_mcp_tailscale.lookout import Lookout

_LOOK_SECONDS = 8.0


class Tailscale(Transport):
    """Finds the instances on the machines of a tailnet that belong to the user, and announces those of here.

    Args:
        settings: Where tailscaled is, and who counts.
        api: The tailscaled.
    """

    def __init__(self, settings: TailscaleSettings, api: "LocalApi") -> None:
        self._settings = settings
        self._api = api
        self._lookout: Lookout | None = None
        self._announcements: set[Announcement] = set()
        if settings.forget_after_ms:
            self.forget_after_seconds = settings.forget_after_ms / 1000
        self.invitation = (
            "Run `TRANSPORT=tailscale opencode-connected` in your project, on this machine or another one of "
            "yours on the tailnet. The tailnet's access rules must let this machine connect to port "
            f"{settings.index_port} there."
        )
        self.vouching = (
            "Set TAILSCALE_USERS or TAILSCALE_TAGS here so that they name its machine's owner or tag."
        )

    async def discover(self) -> Sequence[Endpoint]:
        """Look until everybody on the tailnet has been asked, at most 8 s.

        Raises:
            TransportError: tailscaled cannot be asked, or is not on a tailnet.
        """
        lookout = self._lookout = self._new()
        await lookout.begin()
        async with anyio.create_task_group() as group:
            group.start_soon(lookout.run, _nobody)
            with anyio.move_on_after(_LOOK_SECONDS):
                await lookout.settled()
            group.cancel_scope.cancel()
        return lookout.endpoints

    async def watch(self, publish: Publish) -> None:
        """Publish the set now and after each change, until cancelled.

        Raises:
            TransportError: At the start, if tailscaled cannot be asked, or is not on a tailnet.
        """
        lookout = self._lookout = self._new()
        await lookout.begin()
        await lookout.run(publish)

    def connect(self, endpoint: Endpoint) -> AbstractAsyncContextManager[Route]:
        """Go to the machine over the tailnet, by its interface or through tailscaled.

        Raises:
            TransportError: On entering, if the instance is not known any more.
        """
        return self._connected(endpoint)

    def rejected(self) -> Sequence[Rejection]:
        """Which machines are left out, and why; what is wrong with tailscaled."""
        return () if self._lookout is None else self._lookout.rejections

    async def forget(self, endpoint: Endpoint) -> None:
        """List an instance no more until it answers again."""
        if self._lookout is not None:
            self._lookout.forget(endpoint)

    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        """Announce an instance of this machine until cancelled.

        tailscaled withdraws it, also if this process is killed.

        Raises:
            TransportError: It cannot be announced, or no longer is.
        """
        from opencode_mcp_tailscale.announcement import Announcement  # not for finding

        announcement = Announcement(endpoint, self._settings, self._api)
        self._announcements.add(announcement)
        try:
            await announcement.keep(task_status)
        finally:
            self._announcements.discard(announcement)

    def woke(self) -> None:
        """Check at once what is announced."""
        for announcement in self._announcements:
            announcement.woke()

    async def inspect(self, endpoint: Endpoint) -> Sequence[Finding]:
        """Look whether an instance of this machine is announced on the tailnet.

        Raises:
            TransportError: tailscaled cannot be asked.
        """
        from opencode_mcp_tailscale.announcement import inspect

        return await inspect(endpoint, self._settings, self._api)

    def registry(self) -> AbstractAsyncContextManager[Transport]:
        """The tailnet, without the instances of this machine that are known anyway."""
        return _others(self)

    @asynccontextmanager
    async def _connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        lookout = self._lookout
        listed = lookout.listed(endpoint) if lookout else None
        if lookout is None or listed is None:
            raise TransportError(f"{endpoint.name} is not on the tailnet any more.")
        own = listed.candidate.own
        if endpoint.vouched and not own and not listed.endpoint.vouched:
            raise TransportError(f"{endpoint.name} is on a machine that you do not vouch for any more.")
        present = listed

        def host() -> str:
            """Say what the machine is called by now: it may be renamed while the route is open."""
            nonlocal present
            present = lookout.listed(endpoint) or present
            return present.host

        # Whether the password is sent goes by the endpoint that was given, whatever is known by now.
        yield lookout.reach.route(listed.endpoint.url, own=own, vouched=endpoint.vouched, host=host)

    def _new(self) -> "Lookout":
        from opencode_mcp_tailscale.lookout import Lookout  # not for announcing

        return Lookout(self._api, self._settings, self.rescan_seconds)


class _Others(Transport):
    def __init__(self, tailnet: Tailscale) -> None:
        self._tailnet = tailnet

    async def discover(self) -> Sequence[Endpoint]:
        found = await self._tailnet.discover()
        here: Mapping[str, str] = await anyio.to_thread.run_sync(announced_here)
        return [one for one in found if one.url not in here.values()]

    def connect(self, endpoint: Endpoint) -> AbstractAsyncContextManager[Route]:
        return self._tailnet.connect(endpoint)


@asynccontextmanager
async def _others(tailnet: Tailscale) -> AsyncGenerator[Transport]:
    yield _Others(tailnet)


def _nobody(endpoints: Sequence[Endpoint]) -> None:
    """Publish to nobody."""
