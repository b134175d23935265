"""Calls the hooks of one plugin, which are foreign code and may block, away from the event loop."""

import asyncio
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio

logger = logging.getLogger(__name__)

_MOST_WAITING = 1_000
_SHORTEST_WAIT = 0.05

Call = Callable[[], Any]
Answers = Sequence[Any]
"""What each call returned, or the exception that it raised."""


class HookHangsError(Exception):
    """A call has not returned in time.

    Attributes:
        answers: What came of the calls before it.
        begun: Whether it is one of those that were asked for, not one of somebody else before them.
    """

    def __init__(self, answers: Answers = (), *, begun: bool = False) -> None:
        super().__init__()
        self.answers = answers
        self.begun = begun


@dataclasses.dataclass
class _Order:
    calls: Sequence[Call]
    done: Callable[[Answers], None]
    answers: list[Any] = dataclasses.field(default_factory=list[Any])
    begun: bool = False
    abandoned: bool = False


class HookThread:
    """A thread that makes one call after the other; it is started by the first.

    It is a daemon: one that hangs does not keep the process from ending, as a worker thread of anyio would.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._present: tuple[Call, float] | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # several event loops may ask

    @property
    def seconds(self) -> float:
        """For how long the present call has been running; 0 while there is none."""
        present = self._present
        return 0.0 if present is None else time.monotonic() - present[1]

    @property
    def call(self) -> Call | None:
        """The present call."""
        present = self._present
        return None if present is None else present[0]

    def tell(self, call: Call, done: Callable[[Answers], None]) -> bool:
        """Make a call when its turn comes; return whether there is room for that.

        Args:
            call: What to call.
            done: Called afterwards, in the thread.
        """
        if self._orders.qsize() >= _MOST_WAITING:
            return False
        self._put(_Order([call], done))
        return True

    async def ask(self, calls: Sequence[Call], *, seconds: float) -> Answers:
        """Make calls, and return what came of each.

        Args:
            calls: What to call.
            seconds: How long each may take, and each of those before it.

        Raises:
            HookHangsError: One takes longer.
        """
        loop = asyncio.get_running_loop()
        finished = anyio.Event()

        def done(_: Answers) -> None:
            with suppress(RuntimeError):  # the event loop is closed, and with it whoever asked
                loop.call_soon_threadsafe(finished.set)

        if self.seconds > seconds:
            raise HookHangsError
        order = _Order(calls, done)
        self._put(order)
        try:
            while not finished.is_set():
                left = seconds - self.seconds
                if left <= 0:
                    raise HookHangsError(tuple(order.answers), begun=order.begun)
                with anyio.move_on_after(max(left, _SHORTEST_WAIT)):
                    await finished.wait()
        finally:
            order.abandoned = True
        return order.answers

    def stop(self) -> None:
        """End the thread once it has made the calls that wait."""
        if self._thread is not None:
            self._orders.put(None)

    def _put(self, order: _Order) -> None:
        self._orders.put(order)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            for call in order.calls:
                if order.abandoned:
                    break
                order.begun = True
                order.answers.append(self._made(call))
            if not order.abandoned:
                try:
                    order.done(order.answers)
                except Exception:  # whoever asked next would wait for good
                    logger.exception("The outcome of a hook could not be told.")
            del order

    def _made(self, call: Call) -> Any:
        self._present = (call, time.monotonic())
        try:
            return call()
        except BaseException as error:  # SystemExit too: no hook would be called again
            return error
        finally:
            self._present = None
