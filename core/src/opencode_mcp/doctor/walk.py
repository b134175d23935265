"""Writes a path down step by step, so that another thread sees how far it got."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import anyio

from opencode_mcp.doctor.report import State, Step, worst

_NOT_TAKEN = "not tried"
_BEAT_SECONDS = 0.25


class Stopped(Exception):  # noqa: N818 - it is no error, it says that a path has come to its end
    """A step failed, and with it the rest of the path."""


class Progress:
    """When anything went on last in the examination of one transport."""

    def __init__(self) -> None:
        self._step = self._beat = time.monotonic()

    def made(self) -> None:
        """Take note that a step began or ended."""
        self._step = self._beat = time.monotonic()

    async def beat(self) -> None:
        """Take note that the event loop runs, again and again, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await anyio.sleep(_BEAT_SECONDS)

    @property
    def blocked(self) -> float:
        """For how long the event loop has not run, in seconds."""
        return time.monotonic() - self._beat

    @property
    def stalled(self) -> float:
        """For how long no step has begun or ended, in seconds."""
        return time.monotonic() - self._step


class Walk:
    """The steps of one path.

    Args:
        names: What the steps are called, in order.
        progress: Hears of each.
        judge: Returns what to tell of an error, and what to do about it.
    """

    def __init__(
        self, names: Sequence[str], progress: Progress, judge: Callable[[BaseException], tuple[str, str]]
    ) -> None:
        self._names = names
        self._progress = progress
        self._judge = judge
        self._steps: dict[str, Step] = {}
        self._present: tuple[str, float] | None = None

    def begin(self, name: str) -> None:
        """Begin a step."""
        self._progress.made()
        self._present = name, time.monotonic()

    def end(self, detail: str = "", *, state: State = State.OK, fix: str = "") -> None:
        """End the present step."""
        if self._present is not None:
            name, began = self._present
            took = round((time.monotonic() - began) * 1000, 1)
            self._steps[name] = Step(name=name, state=state, detail=detail, fix=fix, milliseconds=took)
        self._present = None
        self._progress.made()

    def fail(self, error: BaseException) -> None:
        """End the present step with an error."""
        detail, fix = self._judge(error)
        self.end(detail, state=State.FAILED, fix=fix)

    def also(self, name: str, detail: str, *, state: State, fix: str = "") -> None:
        """Add something that is only told when there is something to tell; to a step that is there, if so."""
        told = Step(name=name, state=state, detail=detail, fix=fix)
        before = self._steps.get(name)
        self._steps[name] = told if before is None else _joined(before, told)

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Take a step within the block: it fails if that raises, and goes well if nothing else is said.

        Raises:
            Stopped: It failed.
        """
        self.begin(name)
        try:
            yield
        except Stopped:
            raise
        except (Exception, SystemExit) as error:  # foreign code
            self.fail(error)
            raise Stopped from None
        if self._present is not None:
            self.end()

    def stop(self, detail: str, *, fix: str, state: State = State.FAILED) -> NoReturn:
        """End the present step, and with it the path.

        Raises:
            Stopped: Always.
        """
        self.end(detail, state=state, fix=fix)
        raise Stopped

    def given_up(self, detail: str, fix: str) -> bool:
        """End the present step from outside, because it does not return; say whether there is one."""
        there_is_one = self._present is not None
        if there_is_one:
            self.end(detail, state=State.FAILED, fix=fix)
        return there_is_one

    def steps(self) -> Sequence[Step]:
        """Return the steps in order; those not taken as skipped."""
        taken = dict(self._steps)
        skipped = (Step(name=name, state=State.SKIPPED, detail=_NOT_TAKEN) for name in self._names)
        path = [taken.pop(step.name, step) for step in skipped]
        return [*path, *taken.values()]


def _joined(one: Step, other: Step) -> Step:
    """Return one step that says what both say."""
    details = [f"{step.detail.rstrip('.')}." for step in (one, other) if step.detail]
    return replace(
        one,
        state=worst([one.state, other.state]),
        detail=" ".join(details),
        fix=" ".join(dict.fromkeys(step.fix for step in (one, other) if step.fix)),
    )
