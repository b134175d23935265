"""Runs the transports, computes what came, changed and went, and keeps one monitor for each server."""

import dataclasses
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel
import anyio.to_thread
import pluggy
from anyio.abc import TaskGroup

from opencode_mcp.errors import ConversationError
from opencode_mcp.fleet.admission import Admission
from opencode_mcp.fleet.monitor import Monitor
from opencode_mcp.fleet.names import Names, resolve
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.fleet.policies import Policies
from opencode_mcp.fleet.stalls import Stalls
from opencode_mcp.fleet.watched import Key, Watched
from opencode_mcp.model import Action, Endpoint, Rejection
from opencode_mcp.opencode.http import warm_up
from opencode_mcp.settings import CoreSettings, Settings
from opencode_mcp.transport import TransportPlugin

logger = logging.getLogger(__name__)

_STARTED_AT_ONCE = 8


@dataclasses.dataclass
class _Running:
    monitor: Monitor
    scope: anyio.CancelScope


class Fleet:
    """The live picture of all instances.

    Args:
        transports: The selected transports with their settings, in the order of `TRANSPORT`.
        hook: The instance hooks of all plugins.
        settings: Core's settings.
        pace: The waits; by default the usual ones with the probe's from the settings.
    """

    def __init__(
        self,
        transports: Sequence[tuple[TransportPlugin[Any], Settings]],
        hook: pluggy.HookRelay,
        settings: CoreSettings,
        pace: Pace | None = None,
    ) -> None:
        rescan_seconds = settings.discovery_interval_ms / 1000
        self._watched = [
            Watched(plugin, own, rescan_seconds=rescan_seconds, published=self._published)
            for plugin, own in transports
        ]
        self._policies = Policies(hook, settings)
        self._stalls = Stalls(plugin for plugin, _ in transports)
        self._admission = Admission(self._policies, self._reconcile)
        self._pace = pace or Pace(probe=settings.health_check_timeout_ms / 1000)
        self._names = Names()
        self._running: dict[Key, _Running] = {}
        # Who still talks with an instance that left holds its monitor, and goes on with it if it comes back.
        self._former: WeakValueDictionary[Key, Monitor] = WeakValueDictionary()
        self._waiting: defaultdict[Watched, deque[_Running]] = defaultdict(deque)
        self._someone_waits = anyio.Event()
        self._discovered = False
        self._first_look_over = False
        self._refused: set[Key] = set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Fleet"]:
        """Keep the picture up to date for as long as the context is entered. Entering waits for nothing."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._start_in_turn, tasks)
                tasks.start_soon(self._admission.run)
                tasks.start_soon(self._policies.watch)
                tasks.start_soon(self._stalls.watch)
                for watched in self._watched:
                    tasks.start_soon(watched.run)
                try:
                    yield self
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            await self._policies.close()

    @property
    def monitors(self) -> Sequence[Monitor]:
        """One for each instance, ordered by name."""
        return sorted((one.monitor for one in self._running.values()), key=lambda monitor: monitor.name)

    def find(self, query: str) -> Monitor:
        """Return the instance that `query` means.

        Raises:
            ConversationError: None or several fit; the message lists the candidates.
        """
        by_name = {one.monitor.name: one.monitor for one in self._running.values()}
        if not by_name:
            raise ConversationError(" ".join(("No instance is connected.", *self.invitations)))
        return by_name[resolve(query, by_name)]

    @property
    def problems(self) -> Sequence[Rejection]:
        """Transports and hooks that do not work at present, and what the others found and left out."""
        found = [problem for watched in self._watched for problem in watched.problems]
        return [*found, *self._policies.problems]

    @property
    def invitations(self) -> Sequence[str]:
        """How to put an instance on each transport."""
        return [watched.invitation for watched in self._watched if watched.invitation]

    async def discovered(self, seconds: float) -> None:
        """Wait until every transport has looked once, but at most `seconds`, and only the first time."""
        if self._discovered:
            return
        with anyio.move_on_after(seconds):
            for watched in self._watched:
                await watched.looked.wait()
            await self._admission.settled()
        self._discovered = True

    async def first_look(self, seconds: float) -> None:
        """Wait until every endpoint was looked at once, but at most `seconds`, and only the first time."""
        if self._first_look_over:
            return
        with anyio.move_on_after(seconds):
            await self.discovered(seconds)
            for monitor in self.monitors:
                await monitor.looked.wait()
        self._first_look_over = True

    def audit(self, action: Action) -> None:
        """Tell plugins of something that is done to an instance."""
        self._policies.audit(action)

    def _published(self) -> None:
        self._admission.consider(
            {key: one for watched in self._watched for key, one in watched.endpoints.items()}
        )
        self._reconcile()

    def _reconcile(self) -> None:
        """Make the monitors match what the transports say."""
        wanted = self._wanted()
        for key in [key for key in self._running if key not in wanted]:
            self._stop(key)
        for key, (endpoint, watched) in wanted.items():
            running = self._running.get(key)
            if running is None:
                self._start(key, endpoint, watched)
            else:
                running.monitor.update(self._names.assign(key, endpoint.name), endpoint)

    def _wanted(self) -> dict[Key, tuple[Endpoint, Watched]]:
        """Collect the admitted endpoints, one for each server; who is followed already stays."""
        self._refused &= {key for watched in self._watched for key in watched.endpoints}
        wanted: dict[Key, tuple[Endpoint, Watched]] = {}
        by_url: dict[str, Key] = {}
        for watched in self._watched:
            for key, endpoint in watched.endpoints.items():
                other = by_url.get(endpoint.url)
                if other is not None and (other in self._running or key not in self._running):
                    continue
                admitted = self._admitted(key, endpoint)
                if admitted is None and key in self._running:
                    endpoint = self._running[
                        key
                    ].monitor.endpoint  # what was admitted, until there is a verdict
                elif not admitted:
                    continue
                if other is not None:
                    del wanted[other]
                by_url[endpoint.url] = key
                wanted[key] = (endpoint, watched)
        return wanted

    def _start(self, key: Key, endpoint: Endpoint, watched: Watched) -> None:
        name = self._names.assign(key, endpoint.name)
        monitor = self._former.get(key) or self._monitor(name, endpoint, watched)
        self._running[key] = running = _Running(monitor, anyio.CancelScope())
        self._policies.tell(None, monitor.instance)
        monitor.update(name, endpoint)
        self._waiting[watched].append(running)
        self._someone_waits.set()

    def _monitor(self, name: str, endpoint: Endpoint, watched: Watched) -> Monitor:
        return Monitor(
            name=name,
            endpoint=endpoint,
            watched=watched,
            pace=self._pace,
            authenticate=self._policies.authenticate,
            changed=self._policies.tell,
        )

    async def _start_in_turn(self, tasks: TaskGroup) -> None:
        """Start monitors a few at a time, so that hundreds at once do not hold up who asks meanwhile.

        Each transport has its turn, so that one with thousands does not keep the others waiting.
        """
        await anyio.to_thread.run_sync(warm_up)
        while True:
            await self._someone_waits.wait()
            self._someone_waits = anyio.Event()
            while waiting := [one for one in self._waiting.values() if one]:
                for one in waiting:
                    for _ in range(min(_STARTED_AT_ONCE, len(one))):
                        tasks.start_soon(self._run, one.popleft())
                await anyio.lowlevel.checkpoint()

    async def _run(self, running: _Running) -> None:
        with running.scope:
            await running.monitor.run()

    def _stop(self, key: Key) -> None:
        running = self._running.pop(key)
        running.scope.cancel()
        self._former[key] = running.monitor
        self._names.release(key)
        self._policies.tell(running.monitor.instance, None)

    def _admitted(self, key: Key, endpoint: Endpoint) -> bool | None:
        admitted = self._admission.admits(key, endpoint)
        if admitted is False and key not in self._refused:
            logger.info("A plugin's policy keeps out %s at %s.", endpoint.name, endpoint.url)
            self._refused.add(key)
        return admitted
