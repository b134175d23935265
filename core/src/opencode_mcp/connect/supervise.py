"""Runs OpenCode and everything that announces it, from the start to a way out that leaves nothing behind."""

import logging
import math
import signal
from collections.abc import Sequence

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from opencode_mcp.connect.child import Child
from opencode_mcp.connect.clock import watch_clock
from opencode_mcp.connect.keeping import Keeper
from opencode_mcp.connect.leaving import ENDING, Early, bound_the_end, parent_gone
from opencode_mcp.connect.place import Place
from opencode_mcp.connect.plan import Plan
from opencode_mcp.errors import OpenCodeMCPError
from opencode_mcp.model import Endpoint
from opencode_mcp.state.records import Record

logger = logging.getLogger(__name__)

_HEARD = (signal.SIGCHLD, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2)
_FINAL = (signal.SIGTERM, signal.SIGHUP)

_START_SECONDS = 30.0
_ATTACH_SECONDS = 10.0
_TURN_SECONDS = 1.0


class Supervisor:
    """Keeps an instance announced for as long as it is there.

    Args:
        plan: What to do.
        child: The OpenCode that was started here, or None if it was running already.
        early: Holds the signals until now.

    Attributes:
        problem: Why nothing was announced, though there was time enough; or empty.
        told: The signal that told us to leave, or None.
    """

    def __init__(self, plan: Plan, child: Child | None, early: Early) -> None:
        self._plan = plan
        self._child = child
        self._early = early
        self._place = plan.place
        self._placed = anyio.Event()
        self._keepers = [Keeper(plugin, settings, self._changed) for plugin, settings in plan.transports]
        self._dirty = anyio.Event()
        self._work = anyio.CancelScope()
        self._group = anyio.create_task_group()
        self.problem = ""
        self.told: int | None = None

    @property
    def left(self) -> bool:
        """Whether something of ours could not be withdrawn."""
        return any(keeper.left for keeper in self._keepers)

    @property
    def swept(self) -> bool:
        """Whether all is gone that a killed process before us may have left under this name."""
        left = None if self._place is None else self._place.slot.left
        announced = {keeper.name for keeper in self._keepers if keeper.ever_announced}
        return left is None or all(
            name in announced and self._plan.places[name] == place for name, place in left.places.items()
        )

    @property
    def remarks(self) -> Sequence[str]:
        """What a person has to know who could not be told before, because OpenCode had the terminal."""
        if not self._plan.interactive:
            return ()
        return [
            f"transport {keeper.name}: {keeper.left or keeper.problem}"
            for keeper in self._keepers
            if keeper.left or (keeper.problem and not keeper.ever_announced)
        ]

    async def run(self) -> None:
        """Stay until OpenCode ends or a signal comes; then withdraw everything and end OpenCode."""
        async with self._group as group:
            await group.start(self._listen)
            with self._work:
                async with anyio.create_task_group() as tasks:
                    if self._place is not None:
                        self._placed.set()
                    for task in (self._announce, self._write_records, self._follow_parent):
                        tasks.start_soon(task)
                    tasks.start_soon(watch_clock, self._clock_jumped)
            if self._child is not None:
                await self._child.over.wait()
            group.cancel_scope.cancel()

    def leave(self, why: str, number: int = signal.SIGTERM) -> None:
        """Begin to leave, once: announcements are withdrawn while OpenCode ends, and all it started."""
        if self._work.cancel_called:
            return
        logger.info("Leaving: %s", why)
        for keeper in self._keepers:
            keeper.ending()
        bound_the_end(self._child.kill_now if self._child is not None else lambda: 1)
        if self._child is not None:
            self._child.leaving = True
            self._group.start_soon(self._child.end, number)
        self._work.cancel()

    async def _listen(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*self._early.numbers, *_HEARD) as signals:
            task_status.started()
            for number in self._early.received:
                await self._receive(number)
            await self._receive(signal.SIGCHLD)  # which may have come before anybody listened
            async for number in signals:
                await self._receive(number)

    async def _receive(self, number: int) -> None:
        child = self._child
        if number == signal.SIGCHLD:
            if child is not None and child.look() and not self._work.cancel_called:
                self._group.start_soon(child.stop_with_it)
            if child is not None and child.code is not None:
                self._child_ended(child.code)
        elif number == signal.SIGCONT:
            if child is not None:
                child.resume()
        elif number in ENDING and (child is None or not self._plan.interactive or number in _FINAL):
            if self.told is None:
                self.told = number
            self.leave(f"signal {signal.Signals(number).name}.", number)
        elif child is not None:
            child.signal(number)

    def _child_ended(self, code: int) -> None:
        plan = self._plan
        silent = plan.interactive and code <= 0  # left at once, by whoever sits there
        if not (silent or plan.presence.answered or self._work.cancel_called):
            self.problem = f"OpenCode ended (code {code}) before its port answered: nothing was announced."
        self.leave("OpenCode has ended.")

    async def _follow_parent(self) -> None:
        await parent_gone()
        self.leave("the process that started this has ended (nohup and setsid prevent that).", signal.SIGHUP)

    def _clock_jumped(self, seconds: float) -> None:
        logger.info("The clock jumped by %.0f s: this machine slept, or its clock was set.", seconds)
        for keeper in self._keepers:
            keeper.woke()

    async def _announce(self) -> None:
        while True:
            await self._appears()
            if self._place is None:
                self._place = await self._take_place()
                self._placed.set()
                continue  # it may have gone while another process announced it
            endpoint = self._endpoint(self._place)
            self._changed()
            if self._plan.exposed and not self._plan.presence.guarded:
                self.problem = (
                    "OpenCode listens on the network and asks for no password, though it was given one: "
                    "so it was ended. See whether OPENCODE_MCP_COMMAND passes OPENCODE_SERVER_PASSWORD on."
                )
                return self.leave(self.problem)
            async with anyio.create_task_group() as group:
                for keeper in self._keepers:
                    group.start_soon(keeper.run, endpoint)
                if self._plan.comes_and_goes:
                    await self._plan.presence.vanishes()
                    logger.warning("%s Withdrawn until it is back.", self._plan.presence.problem)
                    for keeper in self._keepers:
                        keeper.ending()
                    group.cancel_scope.cancel()

    async def _appears(self) -> None:
        """Wait for OpenCode to answer; if it takes too long, say so, and leave unless a person uses it."""
        presence = self._plan.presence
        seconds = _ATTACH_SECONDS if self._child is None else _START_SECONDS
        with anyio.move_on_after(math.inf if presence.answered else seconds):
            await presence.appears()
            return
        self.problem = f"Nothing is announced, since for {seconds:g} s {presence.problem}"
        if not self._plan.interactive:
            self.leave(self.problem)
        else:
            logger.error("%s It is asked further.", self.problem)
        await presence.appears()
        self.problem = ""

    async def _take_place(self) -> Place:
        """Wait until no other process announces the same; then we do."""
        told = ""
        while True:
            try:
                place = await anyio.to_thread.run_sync(self._plan.take_place)
            except (OSError, OpenCodeMCPError) as error:
                place, why = None, str(error)
            else:
                why = "Another opencode-connected announces it at present."
            if place is not None:
                logger.info("It is announced by this process from now on, as %s.", place.slot.name)
                return place
            if why != told:
                told = why
                logger.info("Nothing is announced by this process: %s", why)
            await anyio.sleep(_TURN_SECONDS)

    def _endpoint(self, place: Place) -> Endpoint:
        presence = self._plan.presence
        labels = {"auth": "basic" if presence.guarded else "none"}
        if presence.version:
            labels["version"] = presence.version
        directory = place.endpoint.directory or presence.directory
        url = presence.announced or place.endpoint.url
        return place.endpoint.model_copy(update={"labels": labels, "directory": directory, "url": url})

    def _changed(self) -> None:
        self._dirty.set()

    async def _write_records(self) -> None:
        """Write down how things stand, now and whenever that changes."""
        await self._placed.wait()
        while self._place is not None:
            self._dirty = anyio.Event()
            plan, place = self._plan, self._place
            states = {keeper.name: keeper.state for keeper in self._keepers}
            record = Record.of(
                self._endpoint(place),
                url=plan.presence.url or place.url,
                log=plan.log,
                places=plan.places,
                transports=states,
                owner=plan.presence.owner,
            )
            try:
                await anyio.to_thread.run_sync(place.slot.write, record)
            except OSError as error:
                logger.warning("The record of this instance cannot be written: %s", error.strerror)
            await self._dirty.wait()
