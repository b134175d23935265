"""The transport: publishes what is registered as it changes, and announces instances of this machine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, Publish, Rejection, Transport, TransportError, clean_line
from opencode_mcp_local_relay.announcement import Announcement, keep_announced
from opencode_mcp_local_relay.registry import Look, Registry
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.watching import DirectoryWatch

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_BREATH_SECONDS = 0.2
"""Between two looks at the directory, however much happens there; also when a file seems half-written."""


class LocalRelay(Transport):
    """Finds the instances that are registered as files in a directory of this machine."""

    def __init__(
        self, settings: LocalRelaySettings, *, heartbeat_seconds: float = 30.0, check_seconds: float = 2.0
    ) -> None:
        """Make a transport of its settings; the file system is not touched yet.

        Args:
            settings: Where the directory is, and whom to trust.
            heartbeat_seconds: How often an announced instance's file is written anew.
            check_seconds: How often it is made sure that this file is still there.
        """
        self._settings = settings
        self._heartbeat_seconds = heartbeat_seconds
        self._check_seconds = check_seconds
        self._registry = Registry(settings.registry_dir, trust_any_owner=settings.trust_any_owner)
        self._lock = anyio.Lock()
        self._rejected: Sequence[Rejection] = ()
        if settings.prune_after_ms:
            self.forget_after_seconds = settings.prune_after_ms / 1000
        shown = clean_line(str(settings.registry_dir), 1000)
        self.invitation = (
            "On this machine, start `opencode serve --port 4096` and register it with a file "
            f"{shown}/my-project.json that holds one line: "
            '{"name": "my-project", "port": 4096, "cwd": "/path/to/my-project"}'
        )

    async def discover(self) -> Sequence[Endpoint]:
        """Read the registry directory; a missing one is an empty set.

        Raises:
            TransportError: If the directory is not safe to use, or cannot be read.
        """
        return (await self._look()).endpoints

    async def watch(self, publish: Publish) -> None:
        """Publish the set now and within a second after each change, until cancelled.

        Raises:
            TransportError: If the directory is not safe to use, or cannot be read.
        """
        failure: TransportError | None = None
        woken = _Wake()
        async with anyio.create_task_group() as group:
            group.start_soon(DirectoryWatch(self._settings.registry_dir, woken.set).run)
            try:
                await self._publish_changes(publish, woken)
            except TransportError as error:
                failure = error  # raised outside, lest it becomes an exception group
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _publish_changes(self, publish: Publish, woken: "_Wake") -> None:
        published: Sequence[Endpoint] | None = None
        while True:
            woken.clear()
            look = await self._look()
            if look.endpoints != published:
                publish(look.endpoints)
                published = look.endpoints
            await anyio.sleep(_BREATH_SECONDS)
            if not look.unfinished:
                with anyio.move_on_after(self.rescan_seconds):
                    await woken.wait()

    def rejected(self) -> Sequence[Rejection]:
        """The files that the last look left out, with reasons."""
        return self._rejected

    async def forget(self, endpoint: Endpoint) -> None:
        """Remove the file behind `endpoint`, unless it was touched since its instance began to fail."""
        if self.forget_after_seconds is None:
            return
        seconds = self.forget_after_seconds
        async with self._lock:  # brought to its end even when cancelled: half of it could lose a file
            await anyio.to_thread.run_sync(lambda: self._registry.forget(endpoint, unchanged_seconds=seconds))

    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        """Write the registration file of an instance on this machine, keep it, remove it when cancelled.

        Raises:
            TransportError: If the directory is not safe to use or cannot be written, or if the instance
                is not on this machine.
        """
        announcement = Announcement(
            self._settings.registry_dir, endpoint, trust_any_owner=self._settings.trust_any_owner
        )
        await keep_announced(
            announcement,
            heartbeat_seconds=self._heartbeat_seconds,
            check_seconds=self._check_seconds,
            task_status=task_status,
        )

    async def _look(self) -> Look:
        async with self._lock:
            # Given up when cancelled, since a dead network file system may never answer.
            look = await anyio.to_thread.run_sync(self._registry.look, abandon_on_cancel=True)
        self._rejected = look.rejections
        return look


class _Wake:
    """An event that can be cleared, so that what happens during a look leads to another."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        if self._event.is_set():
            self._event = anyio.Event()

    async def wait(self) -> None:
        await self._event.wait()
