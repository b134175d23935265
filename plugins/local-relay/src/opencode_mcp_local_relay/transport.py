"""The transport: publishes what is registered as it changes, and announces instances here or over ssh.

`opencode-connected` stays for as long as its OpenCode, so what it takes to find instances, or to use ssh, is
imported only where it is needed.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import cached_property
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
    clean_line,
    services_directory,
)
from opencode_mcp_local_relay.announcement import Announcement, keep_announced
from opencode_mcp_local_relay.remembered import Remembered
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.wake import Wake

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from opencode_mcp_local_relay.login import Ability
    from opencode_mcp_local_relay.registry import Look, Registry
    from opencode_mcp_local_relay.services import Services

_BREATH_SECONDS = 0.2
"""Between two looks at the directory, however much happens there; also when a file seems half-written."""


class LocalRelay(Transport):
    """Finds the instances that are registered as files in a directory of this machine, and its service."""

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
        self._when_woken: set[Callable[[], None]] = set()
        self._lock = anyio.Lock()
        self._rejected: Sequence[Rejection] = ()
        self._remembered: defaultdict[str, Remembered] = defaultdict(Remembered)  # by the endpoint's id
        if settings.prune_after_ms:
            self.forget_after_seconds = settings.prune_after_ms / 1000
        shown = clean_line(str(settings.local_dir), 1000)
        self.invitation = (
            "Run `opencode-connected` in your project, here or, with RELAY_SSH_CMD, on another machine; "
            "or start `opencode serve --port 4096` here and register it with a file "
            f"{shown}/my-project.json that holds one line: "
            '{"name": "my-project", "port": 4096, "cwd": "/path/to/my-project"}'
        )

    async def discover(self) -> Sequence[Endpoint]:
        """Read the registry directory, and the service files; a missing directory is an empty set.

        Raises:
            TransportError: If the directory is not safe to use, or cannot be read.
        """
        endpoints, _ = await self._look()
        return endpoints

    async def watch(self, publish: Publish) -> None:
        """Publish the set now and within a second after each change, until cancelled.

        Raises:
            TransportError: If the directory is not safe to use, or cannot be read.
        """
        from opencode_mcp_local_relay.watching import DirectoryWatch  # not for announcing

        failure: TransportError | None = None
        woken = Wake()
        async with anyio.create_task_group() as group:
            group.start_soon(DirectoryWatch(self._settings.local_dir, woken.set).run)
            if self._services is not None:
                with suppress(OSError):  # without a home there is no service either
                    group.start_soon(DirectoryWatch(services_directory(), woken.set, insists=False).run)
            try:
                await self._publish_changes(publish, woken)
            except TransportError as error:
                failure = error  # raised outside, lest it becomes an exception group
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _publish_changes(self, publish: Publish, woken: Wake) -> None:
        published: Sequence[Endpoint] | None = None
        while True:
            woken.clear()
            endpoints, unfinished = await self._look()
            if endpoints != published:
                publish(endpoints)
                published = endpoints
            await anyio.sleep(_BREATH_SECONDS)
            if not unfinished:
                with anyio.move_on_after(self.rescan_seconds):
                    await woken.wait()

    def rejected(self) -> Sequence[Rejection]:
        """The files that the last look left out, with reasons."""
        return (*self._rejected, *(self._services.rejected if self._services is not None else ()))

    @asynccontextmanager
    async def connect(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        """Open a route; to a service of this machine with what its file says now.

        Raises:
            TransportError: On entering, if that service is not there.
        """
        from opencode_mcp_local_relay.users import MEND, trusted  # not for announcing

        route = await self._services.route(endpoint) if self._services is not None else None
        users = trusted(self._settings.trust_users)
        yield route or Route(base_url=endpoint.url, users=users, mend=MEND)

    async def forget(self, endpoint: Endpoint) -> None:
        """Remove the file behind `endpoint`, unless it was touched since its instance began to fail."""
        if self.forget_after_seconds is None:
            return
        seconds = self.forget_after_seconds
        async with self._lock:  # brought to its end even when cancelled: half of it could lose a file
            await anyio.to_thread.run_sync(lambda: self._registry.forget(endpoint, unchanged_seconds=seconds))

    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        """Register an instance of this machine, here or on the relay, until cancelled.

        Raises:
            TransportError: If it cannot be registered, or no longer is; or is not on this machine. Also if
                it cannot be withdrawn, even while this is cancelled.
        """
        remembered = self._remembered[endpoint.id]
        if self._settings.ssh_words:
            from opencode_mcp_local_relay.tunnel import Pace, Tunnel  # only with ssh

            pace = Pace(heartbeat=self._heartbeat_seconds)
            tunnel = Tunnel(self._settings, endpoint, self._ability, pace, remembered)
            with self._woken_too(tunnel.woke):
                await tunnel.keep(task_status)
            return
        announcement = Announcement(
            self._settings.local_dir,
            endpoint,
            remembered,
            trust_any_owner=self._settings.trust_any_owner,
        )
        woken = Wake()
        with self._woken_too(woken.set):
            await keep_announced(
                announcement,
                heartbeat_seconds=self._heartbeat_seconds,
                check_seconds=self._check_seconds,
                woken=woken,
                task_status=task_status,
            )

    def woke(self) -> None:
        """Check at once what is announced."""
        for wake in self._when_woken:
            wake()

    @contextmanager
    def _woken_too(self, wake: Callable[[], None]) -> Generator[None]:
        self._when_woken.add(wake)
        try:
            yield
        finally:
            self._when_woken.discard(wake)

    async def inspect(self, endpoint: Endpoint) -> Sequence[Finding]:
        """Look at the registration of an announced instance, and at its tunnel if it has one.

        Raises:
            TransportError: If the relay or the directory cannot be looked at.
        """
        from opencode_mcp_local_relay import outside  # not for announcing

        return await outside.inspect(self._settings, endpoint)

    async def withdraw(self, endpoint: Endpoint) -> Sequence[str]:
        """Remove registrations with the id of `endpoint`, and what is left of its tunnel.

        Raises:
            TransportError: If the relay or the directory cannot be used.
        """
        from opencode_mcp_local_relay import outside  # not for announcing

        return await outside.withdraw(self._settings, endpoint)

    def registry(self) -> AbstractAsyncContextManager[Transport]:
        """Open the registry where instances are announced: this one, or with RELAY_SSH_CMD the relay's.

        Raises:
            TransportError: On entering, if the relay cannot be reached.
        """
        if not self._settings.ssh_words:
            return super().registry()
        from opencode_mcp_local_relay.remote import opened_registry  # only with ssh

        return opened_registry(self._settings)

    @cached_property
    def _registry(self) -> "Registry":
        from opencode_mcp_local_relay.registry import Registry  # not for announcing

        return Registry(self._settings.local_dir, trust_any_owner=self._settings.trust_any_owner)

    @cached_property
    def _ability(self) -> "Ability":
        from opencode_mcp_local_relay.login import Ability  # only with ssh

        return Ability()

    @cached_property
    def _services(self) -> "Services | None":
        from opencode_mcp_local_relay.services import Services  # not for announcing

        return Services() if self._settings.local_service else None

    async def _look(self) -> tuple[Sequence[Endpoint], bool]:
        """Return the whole set, and whether another look is due shortly."""
        async with self._lock:
            # Given up when cancelled, since a dead network file system may never answer.
            look: Look = await anyio.to_thread.run_sync(self._registry.look, abandon_on_cancel=True)
            if self._services is not None:
                await self._services.look()  # afterwards: who registers a service does so once it is there
        self._rejected = look.rejections
        return (self._services.beside(look.endpoints) if self._services else look.endpoints), look.unfinished
