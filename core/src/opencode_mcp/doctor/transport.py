"""The path through one transport: installed, imported, opened, what it finds, and each endpoint of that."""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import anyio

from opencode_mcp.doctor.endpoint import EndpointExamination
from opencode_mcp.doctor.judge import Judge
from opencode_mcp.doctor.lookout import Lookout
from opencode_mcp.doctor.patience import Patience
from opencode_mcp.doctor.report import Setting, State, TransportReport, worst
from opencode_mcp.doctor.settings import listed
from opencode_mcp.doctor.walk import Progress, Stopped, Walk
from opencode_mcp.errors import PluginError
from opencode_mcp.fleet.foreign import contained
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.fleet.policies import Policies
from opencode_mcp.model import Rejection
from opencode_mcp.opencode.http import warm_up
from opencode_mcp.plugins import TRANSPORTS_GROUP, Plugins
from opencode_mcp.settings import CoreSettings, Settings, read_settings
from opencode_mcp.transport import Transport, TransportPlugin

_STEPS = ("installed", "imported", "contract", "settings", "opened", "found")


class TransportExamination:
    """Examines one transport, and what it finds.

    Args:
        name: What `TRANSPORT` calls it.
        settings: Core's settings.
        policies: Who may join, and with which credentials.
        patience: How long its code may take.
        at_once: How many endpoints are examined at the same time.
        secret: Hears which variables hold secrets, before anything of them can be told.
    """

    def __init__(
        self,
        name: str,
        settings: CoreSettings,
        policies: Policies,
        *,
        patience: Patience,
        at_once: int,
        secret: Callable[[type[Settings]], None],
    ) -> None:
        self.name = name
        self.progress = Progress()
        self._settings = settings
        self._policies = policies
        self._patience = patience
        self._at_once = at_once
        self._secret = secret
        self._distribution = self._version = "?"
        self._judge = Judge("the package that brings it", name)
        self._walk = Walk(_STEPS, self.progress, lambda error: self._judge(error))
        self._listed: Sequence[Setting] = ()
        self._rejected: Sequence[Rejection] = ()
        self._endpoints: Sequence[EndpointExamination] = ()
        self._examined = 0

    def run(self) -> None:
        """Walk as far as it goes; in a thread that has no event loop."""
        with suppress(Stopped):
            plugin, settings = self._load()
            warm_up()
            try:
                anyio.run(self._run, plugin, settings)
            except BaseException as error:  # it would otherwise end with the thread, and nobody hear of it
                self._unfinished(*self._judge(error))
            for walk in self._walks:
                walk.given_up("It ended before this could be found out.", self._judge.report_it)

    def give_up_if_due(self) -> bool:
        """Take note, from outside, that its code does not return; say whether that is so."""
        patience, progress = self._patience, self.progress
        for seconds, bound in ((progress.blocked, patience.blocked), (progress.stalled, patience.stalled)):
            if seconds > bound:
                self._unfinished(*self._judge.hangs(bound))
                return True
        return False

    @property
    def doing(self) -> str:
        """What goes on, in a few words."""
        if not self._endpoints:
            return f"{self.name}: looks"
        return f"{self.name}: {self._examined} of {len(self._endpoints)} examined"

    def report(self) -> TransportReport:
        """Return what was found out so far."""
        steps = self._walk.steps()
        endpoints = [one.report() for one in self._endpoints]
        return TransportReport(
            name=self.name,
            distribution=self._distribution,
            version=self._version,
            state=worst([*(step.state for step in steps), *(one.state for one in endpoints)]),
            steps=steps,
            settings=self._listed,
            rejected=self._rejected,
            endpoints=endpoints,
        )

    def _unfinished(self, detail: str, fix: str) -> None:
        if not [walk for walk in self._walks if walk.given_up(detail, fix)]:
            self._walk.also("closed", detail, state=State.WARNING, fix=fix)

    @property
    def _walks(self) -> Sequence[Walk]:
        return [self._walk, *(one.walk for one in self._endpoints)]

    def _load(self) -> tuple[TransportPlugin[Any], Settings]:
        """Walk from the installed package to its settings.

        Raises:
            Stopped: It breaks on the way.
        """
        walk = self._walk
        with walk.step("installed"):
            entry = self._find()
            walk.end(f"{self._distribution} {self._version}, entry point {entry.value}")
        with walk.step("imported"):
            try:
                (plugin,) = Plugins().load_transports([self.name])
            except PluginError:
                if not _imported(entry.module):
                    raise
                walk.end()
                walk.begin("contract")  # so it is what the plugin says of itself
                raise
        with walk.step("contract"):
            walk.end(f"version {plugin.contract}")
        with walk.step("settings"):
            self._secret(plugin.settings)
            self._listed = listed(plugin.settings, None)
            settings = read_settings(plugin.settings)
            self._listed = listed(plugin.settings, settings)
            walk.end()
        return plugin, settings

    def _find(self) -> EntryPoint:
        found = tuple(entry_points(group=TRANSPORTS_GROUP, name=self.name))
        if len({entry.dist.name if entry.dist else "?" for entry in found}) != 1:
            Plugins().load_transports([self.name])  # which says what is wrong
        entry = found[0]
        if entry.dist is not None:
            self._distribution, self._version = entry.dist.name, entry.dist.version
        self._judge = Judge(self._distribution, entry.module)
        return entry

    async def _run(self, plugin: TransportPlugin[Any], settings: Settings) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self.progress.beat)
            await self._open(plugin, settings)
            group.cancel_scope.cancel()

    async def _open(self, plugin: TransportPlugin[Any], settings: Settings) -> None:
        """Open it for as long as all that needs it takes."""
        seconds = self._patience.route
        opened = False
        self._walk.begin("opened")
        opening = anyio.CancelScope(deadline=anyio.current_time() + seconds)
        try:
            with contained(), opening:
                async with plugin.open(settings) as transport:
                    opening.deadline = math.inf
                    opened = True
                    if isinstance(transport, Transport):  # pyright: ignore[reportUnnecessaryIsInstance] - foreign code
                        self._walk.end()
                        await self._use(transport)
                    else:
                        fix = self._judge.report_it
                        self._walk.end("It is no opencode_mcp.Transport.", state=State.FAILED, fix=fix)
                    opening.deadline = anyio.current_time() + seconds
        except (Exception, SystemExit) as error:  # foreign code
            self._unusable(*self._judge(error), opened=opened)
        if opening.cancelled_caught:
            what = "It has not closed" if opened else "It has not opened"
            self._unusable(*self._judge.late(what, seconds), opened=opened)

    def _unusable(self, detail: str, fix: str, *, opened: bool) -> None:
        if opened:
            self._walk.also("closed", detail, state=State.WARNING, fix=fix)
        else:
            self._walk.end(detail, state=State.FAILED, fix=fix)

    async def _use(self, transport: Transport) -> None:
        transport.rescan_seconds = self._settings.discovery_interval_ms / 1000
        lookout = Lookout(transport, self._judge, self._patience)
        async with anyio.create_task_group() as group:
            group.start_soon(lookout.run)
            with suppress(Stopped):
                self._walk.begin("found")
                await lookout.look(self._walk)
                self._rejected = lookout.rejections(self._walk)
                await self._examine(transport, lookout)
            group.cancel_scope.cancel()

    async def _examine(self, transport: Transport, lookout: Lookout) -> None:
        pace = Pace(probe=self._settings.health_check_timeout_ms / 1000)
        self._endpoints = [
            EndpointExamination(
                endpoint,
                transport,
                judge=self._judge,
                progress=self.progress,
                pace=pace,
                patience=self._patience,
            )
            for endpoint in lookout.endpoints
        ]
        waiting = iter(self._endpoints)

        async def work() -> None:
            for one in waiting:
                await one.run(self._policies)
                self._examined += 1

        async with anyio.create_task_group() as group:
            for _ in range(min(self._at_once, len(self._endpoints))):
                group.start_soon(work)
        lookout.still_looks(self._walk)


def _imported(module: str) -> bool:
    """Whether a module is there, whole: one whose import failed is not, nor one whose import hangs."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)
