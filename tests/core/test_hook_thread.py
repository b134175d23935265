"""The thread that calls the hooks of a plugin: in order, whatever they raise, and also after one has hung."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from opencode_mcp.fleet import hook_thread
from opencode_mcp.fleet.hook_thread import Answers, HookHangsError, HookThread
from support.fleets import until
from support.held import held

pytestmark = pytest.mark.anyio

LONG = 30.0
"""A bound that is never reached, in seconds."""
SHORT = 0.05


def alive(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == name]


@asynccontextmanager
async def working(name: str = "calls test hooks") -> AsyncGenerator[HookThread]:
    """Give a thread that must be able to end."""
    one = HookThread(name)
    try:
        yield one
    finally:
        one.stop()
        await until(lambda: not alive(name))


def ignore(_: Answers) -> None:
    """Hear of no answers."""


def raising(error: BaseException) -> Callable[[], Any]:
    def call() -> None:
        raise error

    return call


async def test_what_is_asked_is_answered_in_order():
    async with working() as thread:
        assert await thread.ask([lambda: 1, lambda: None, lambda: "c"], seconds=LONG) == [1, None, "c"]
        assert await thread.ask([], seconds=LONG) == []


async def test_several_who_ask_at_once_get_each_their_own_answers():
    found = dict[int, Answers]()
    async with working() as thread:

        async def ask(number: int) -> None:
            found[number] = await thread.ask([lambda: number, lambda: -number], seconds=LONG)

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(ask, number)
    assert found == {number: [number, -number] for number in range(50)}


async def test_calls_are_made_one_after_the_other_in_a_thread_that_does_not_keep_the_process_alive():
    made = list[tuple[int, threading.Thread]]()
    answers = list[Answers]()

    def call(number: int) -> Callable[[], int]:
        def work() -> int:
            made.append((number, threading.current_thread()))
            return number

        return work

    async with working() as thread:
        for number in range(100):
            assert thread.tell(call(number), answers.append)
        assert await thread.ask([call(100)], seconds=LONG) == [100]
    assert [number for number, _ in made] == list(range(101))
    assert answers == [[number] for number in range(100)]
    (worker,) = {one for _, one in made}
    assert worker.daemon
    assert worker is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("no idea"), SystemExit(3), KeyboardInterrupt()])
async def test_what_a_call_raises_is_its_answer_and_the_thread_goes_on(error: BaseException):
    async with working() as thread:
        assert await thread.ask([raising(error), lambda: 1], seconds=LONG) == [error, 1]
        answers = list[Answers]()
        assert thread.tell(raising(error), answers.append)
        assert await thread.ask([lambda: 2], seconds=LONG) == [2]
        assert answers == [[error]]
        assert len(alive("calls test hooks")) == 1


async def test_a_call_that_hangs_is_given_up_and_what_is_asked_meanwhile_is_refused_at_once():
    made = list[str]()
    with held() as hook:
        async with working() as thread:
            with anyio.fail_after(LONG), pytest.raises(HookHangsError):
                await thread.ask([hook], seconds=SHORT)
            with pytest.raises(HookHangsError):
                thread.ask([lambda: made.append("refused")], seconds=SHORT).send(None)  # without a wait
            assert thread.call is hook
            assert thread.seconds > SHORT
            hook.release()
            await until(lambda: thread.call is None)
            assert await thread.ask([lambda: made.append("answered")], seconds=LONG) == [None]
            assert made == ["answered"]


async def test_who_asks_while_another_call_has_only_begun_to_hang_is_given_up_with_it():
    made = list[str]()
    with held() as hook:
        async with working() as thread:
            assert thread.tell(hook, ignore)
            with anyio.fail_after(LONG), pytest.raises(HookHangsError):
                await thread.ask([lambda: made.append("too late")], seconds=SHORT)
            hook.release()
            assert await thread.ask([lambda: 1], seconds=LONG) == [1]
            assert made == []


class Clock:
    """The time as the thread's code sees it. It stands still, but for what a call takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self._loop = threading.current_thread()
        self._looked = threading.Condition()
        self._looks = 0

    def monotonic(self) -> float:
        with self._looked:
            self._looks += threading.current_thread() is self._loop
            self._looked.notify_all()
            return self.now

    def pass_by(self, seconds: float) -> None:
        """Let time pass, until whoever asked has looked at the clock."""
        with self._looked:
            self.now += seconds
            seen = self._looks
            self._looked.wait_for(lambda: self._looks > seen, LONG)


async def test_the_bound_is_on_each_call_not_on_all_of_them(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(hook_thread, "time", clock)
    async with working() as thread:
        calls = [lambda: clock.pass_by(0.09)] * 5
        assert await thread.ask(calls, seconds=0.1) == [None] * 5
        assert clock.now > 4 * 0.1
        with anyio.fail_after(LONG), pytest.raises(HookHangsError):
            await thread.ask([lambda: clock.pass_by(0.01), lambda: clock.pass_by(0.11)], seconds=0.1)


async def test_what_was_asked_by_somebody_who_has_gone_is_not_done():
    made = list[str]()
    with held() as hook:
        async with working() as thread:
            assert thread.tell(hook, ignore)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: thread.ask([lambda: made.append("gone")], seconds=LONG))
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
            hook.release()
            await thread.ask([lambda: made.append("here")], seconds=LONG)
    assert made == ["here"]


async def test_of_a_batch_that_was_given_up_the_rest_is_not_done():
    made = list[str]()
    with held() as hook:
        async with working() as thread:
            with pytest.raises(HookHangsError):
                await thread.ask([hook, *[lambda: made.append("rest")] * 3], seconds=SHORT)
            hook.release()
            await thread.ask([lambda: made.append("next")], seconds=LONG)
    assert made == ["next"]


async def test_what_is_told_to_one_who_is_far_behind_is_refused_and_the_rest_is_made(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(hook_thread, "_MOST_WAITING", 3)
    made = list[int]()
    with held() as hook:
        async with working() as thread:
            assert thread.tell(hook, ignore)
            await until(lambda: hook.entered)
            taken = [thread.tell(lambda number=number: made.append(number), ignore) for number in range(5)]
            assert taken == [True, True, True, False, False]
            hook.release()
            await thread.ask([], seconds=LONG)  # a question is not refused: somebody waits for the answer
            assert made == [0, 1, 2]
            assert thread.tell(lambda: made.append(5), ignore)
    assert made == [0, 1, 2, 5]


def test_a_call_that_returns_after_the_event_loop_is_gone_does_no_harm():
    thread, loop = HookThread("outlives its loop"), asyncio.new_event_loop()

    async def ask(call: Callable[[], Any]) -> None:
        await thread.ask([call], seconds=LONG)

    with held() as hook:
        asking = loop.create_task(ask(hook))

        async def begun() -> None:
            await until(lambda: hook.entered)

        loop.run_until_complete(begun())
        loop.close()  # as if it had crashed: whoever asked is not even cancelled
        hook.release()
        answered = threading.Event()
        assert thread.tell(answered.set, ignore)
        assert answered.wait(LONG)
        thread.stop()
        for worker in alive("outlives its loop"):
            worker.join(LONG)
        assert alive("outlives its loop") == []
    assert not asking.done()
    asking._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue] - it is pending on purpose


async def test_there_is_no_thread_before_the_first_call_and_none_after_the_end():
    thread = HookThread("lazy hooks")
    thread.stop()
    assert alive("lazy hooks") == []
    made = list[int]()
    with held() as hook:
        assert thread.tell(hook, ignore)
        assert len(alive("lazy hooks")) == 1
        for number in range(3):
            assert thread.tell(lambda number=number: made.append(number), ignore)
        thread.stop()
        hook.release()
        await until(lambda: not alive("lazy hooks"))
    assert made == [0, 1, 2]
