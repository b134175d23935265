"""Runs the transports, computes what came, changed and went, and keeps one monitor for each server."""

import dataclasses
import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel
import anyio.to_thread
import pluggy
from anyio.abc import TaskGroup

from opencode_mcp.errors import ConversationError, TransportError, ours
from opencode_mcp.fleet.monitor import Monitor
from opencode_mcp.fleet.names import Names, resolve
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.fleet.policies import Policies
from opencode_mcp.model import Endpoint, Rejection
from opencode_mcp.opencode import warm_up
from opencode_mcp.settings import CoreSettings, Settings
from opencode_mcp.text import clean_line
from opencode_mcp.transport import Transport, TransportPlugin

logger = logging.getLogger(__name__)

_MAX_ENDPOINTS = 5_000
_STARTED_AT_ONCE = 8
_TRANSPORT_RETRIES = (1.0, 2.0, 5.0, 10.0, 30.0)

Key = tuple[str, str]
"""An endpoint within the fleet: its transport's name and its id."""


@dataclasses.dataclass
class _Watched:
    """A selected transport and what it published last."""

    plugin: TransportPlugin[Any]
    settings: Settings
    transport: Transport | None = None
    endpoints: Mapping[Key, Endpoint] = dataclasses.field(default_factory=dict[Key, Endpoint])
    problem: str = ""
    looked: anyio.Event = dataclasses.field(default_factory=anyio.Event)

    def rejected(self) -> Sequence[Rejection]:
        """What the transport found and left out, as safe text."""
        if self.transport is None:
            return ()
        try:
            return [
                Rejection(source=clean_line(one.source, 500), reason=clean_line(one.reason, 500))
                for one in self.transport.rejected()
            ]
        except Exception as error:  # foreign code: the others are to be seen all the same
            reason = f"It cannot say what it left out: {type(error).__name__}."
            return [Rejection(source=f"transport {self.plugin.name}", reason=reason)]

    def opened(self) -> Transport:
        """The transport as it was opened last."""
        if self.transport is None:
            raise TransportError("The transport is not open.")
        return self.transport


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
        self._watched = [_Watched(plugin, own) for plugin, own in transports]
        self._policies = Policies(hook, settings)
        self._settings = settings
        self._pace = pace or Pace(probe=settings.health_check_timeout_ms / 1000)
        self._names = Names()
        self._running: dict[Key, _Running] = {}
        # Who still talks with an instance that left holds its monitor, and goes on with it if it comes back.
        self._former: WeakValueDictionary[Key, Monitor] = WeakValueDictionary()
        self._waiting: deque[_Running] = deque()
        self._someone_waits = anyio.Event()
        self._discovered = False
        self._first_look_over = False
        self._refused: set[Key] = set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Fleet"]:
        """Keep the picture up to date for as long as the context is entered. Entering waits for nothing."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._start_in_turn, tasks)
            for watched in self._watched:
                tasks.start_soon(self._watch, watched)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()

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
        """Transports that do not work at present, and what the others found and left out."""
        found: list[Rejection] = []
        for one in self._watched:
            if one.problem:
                found.append(Rejection(source=f"transport {one.plugin.name}", reason=one.problem))
            elif not one.looked.is_set():
                found.append(Rejection(source=f"transport {one.plugin.name}", reason="It is still starting."))
            found.extend(one.rejected())
        return found

    @property
    def invitations(self) -> Sequence[str]:
        """How to put an instance on each transport."""
        found = [clean_line(one.transport.invitation, 1000) for one in self._watched if one.transport]
        return [invitation for invitation in found if invitation]

    async def discovered(self, seconds: float) -> None:
        """Wait until every transport has looked once, but at most `seconds`, and only the first time."""
        if self._discovered:
            return
        with anyio.move_on_after(seconds):
            for watched in self._watched:
                await watched.looked.wait()
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

    async def _watch(self, watched: _Watched) -> None:
        """Run one transport for good; one that fails is reported, keeps its last set, and is tried again."""
        failures = 0
        while True:
            began = anyio.current_time()
            try:
                async with watched.plugin.open(watched.settings) as transport:
                    watched.transport = transport
                    transport.rescan_seconds = self._settings.discovery_interval_ms / 1000
                    await transport.watch(lambda endpoints: self._publish(watched, endpoints))
                problem = "Its watch ended without an error."
            except Exception as error:  # foreign code: its failure must not stop the others
                known = ours(error)
                why = f"It failed with {type(error).__name__}; OPENCODE_MCP_LOG_LEVEL=DEBUG tells more."
                problem = clean_line(str(known), 500) if known else why
                logger.debug("Transport %s failed.", watched.plugin.name, exc_info=error)
            failures = 0 if anyio.current_time() - began > _TRANSPORT_RETRIES[-1] else failures
            wait = _TRANSPORT_RETRIES[min(failures, len(_TRANSPORT_RETRIES) - 1)]
            failures += 1
            if problem != watched.problem:
                logger.warning("Transport %s: %s It is tried again.", watched.plugin.name, problem)
            watched.problem = problem
            watched.looked.set()
            await anyio.sleep(wait)

    def _publish(self, watched: _Watched, endpoints: Sequence[Endpoint]) -> None:
        if len(endpoints) > _MAX_ENDPOINTS:
            watched.problem = (
                f"It publishes {len(endpoints)} endpoints; only the first {_MAX_ENDPOINTS} count."
            )
            logger.warning("Transport %s: %s", watched.plugin.name, watched.problem)
            endpoints = endpoints[:_MAX_ENDPOINTS]
        else:
            watched.problem = ""
        watched.endpoints = {(watched.plugin.name, endpoint.id): endpoint for endpoint in endpoints}
        self._reconcile()
        watched.looked.set()

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

    def _wanted(self) -> dict[Key, tuple[Endpoint, _Watched]]:
        """Collect the admitted endpoints, one for each server; who is followed already stays."""
        self._refused &= {key for watched in self._watched for key in watched.endpoints}
        wanted: dict[Key, tuple[Endpoint, _Watched]] = {}
        by_url: dict[str, Key] = {}
        for watched in self._watched:
            for key, endpoint in watched.endpoints.items():
                other = by_url.get(endpoint.url)
                if other is not None and (other in self._running or key not in self._running):
                    continue
                if not self._admitted(key, endpoint):
                    continue
                if other is not None:
                    del wanted[other]
                by_url[endpoint.url] = key
                wanted[key] = (endpoint, watched)
        return wanted

    def _start(self, key: Key, endpoint: Endpoint, watched: _Watched) -> None:
        name = self._names.assign(key, endpoint.name)
        monitor = self._former.get(key)
        if monitor is not None:
            monitor.update(name, endpoint)
        else:
            monitor = self._monitor(name, endpoint, watched)
        self._running[key] = running = _Running(monitor, anyio.CancelScope())
        self._policies.tell(None, monitor.instance)
        self._waiting.append(running)
        self._someone_waits.set()

    def _monitor(self, name: str, endpoint: Endpoint, watched: _Watched) -> Monitor:
        return Monitor(
            name=name,
            endpoint=endpoint,
            transport=watched.opened,
            transport_name=watched.plugin.name,
            pace=self._pace,
            authenticate=self._policies.authenticate,
            changed=self._policies.tell,
        )

    async def _start_in_turn(self, tasks: TaskGroup) -> None:
        """Start monitors a few at a time, so that hundreds at once do not hold up who asks meanwhile."""
        await anyio.to_thread.run_sync(warm_up)
        while True:
            await self._someone_waits.wait()
            self._someone_waits = anyio.Event()
            while self._waiting:
                for _ in range(min(_STARTED_AT_ONCE, len(self._waiting))):
                    tasks.start_soon(self._run, self._waiting.popleft())
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

    def _admitted(self, key: Key, endpoint: Endpoint) -> bool:
        admitted = self._policies.admit(endpoint)
        if not admitted and key not in self._refused:
            logger.info("A plugin's policy keeps out %s at %s.", endpoint.name, endpoint.url)
            self._refused.add(key)
        return admitted
