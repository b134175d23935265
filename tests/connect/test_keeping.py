"""Keeping an instance announced on one transport, which is foreign code and may do anything."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from opencode_mcp import Endpoint, Settings, Transport, TransportError, TransportPlugin
from opencode_mcp.connect import keeping
from opencode_mcp.connect.keeping import Keeper
from support.fleets import until

pytestmark = pytest.mark.anyio

ENDPOINT = Endpoint(id="x", name="laptop-shop", url="http://127.0.0.1:4096")


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)


@pytest.fixture
def hundred_times_faster(monkeypatch: pytest.MonkeyPatch, no_jitter: None) -> None:
    for name in ("_FIRST_SECONDS", "_LONGEST_SECONDS", "_HEALTHY_SECONDS"):
        monkeypatch.setattr(keeping, name, getattr(keeping, name) / 100)


class Announcing(Transport):
    """Does with one announcement after the other what the test says; keeps the last one up."""

    def __init__(self, *script: Callable[[], None]) -> None:
        self.script = list(script)
        self.began: list[float] = []
        self.ended = 0
        self.wakes = 0
        self.failure: Exception | None = None
        self.fails = anyio.Event()

    async def discover(self) -> Sequence[Endpoint]:
        return ()

    async def announce(self, endpoint: Endpoint, *, task_status: TaskStatus[None]) -> None:
        assert endpoint == ENDPOINT
        self.began.append(anyio.current_time())
        if self.script:
            self.script.pop(0)()
        task_status.started()
        try:
            await self.fails.wait()
            self.fails = anyio.Event()
            if self.failure is not None:
                raise self.failure
        finally:
            self.ended += 1

    def woke(self) -> None:
        self.wakes += 1


class Mute(Transport):
    async def discover(self) -> Sequence[Endpoint]:
        return ()


def fail(error: Exception) -> Callable[[], None]:
    def failing() -> None:
        raise error

    return failing


def keeper_of(transport: Transport, opens: Sequence[Exception] = ()) -> tuple[Keeper, list[str]]:
    failures = list(opens)

    @asynccontextmanager
    async def opened(_: Settings) -> AsyncGenerator[Transport]:
        if failures:
            raise failures.pop(0)
        yield transport

    plugin: TransportPlugin[Any] = TransportPlugin(
        name="listed", summary="For tests", settings=Settings, open=opened
    )
    states: list[str] = []
    keeper = Keeper(plugin, Settings(), lambda: states.append(keeper.state))
    return keeper, states


@asynccontextmanager
async def kept(keeper: Keeper) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, ENDPOINT)
        yield
        group.cancel_scope.cancel()


async def test_it_is_announced_until_it_is_cancelled_and_then_withdrawn() -> None:
    transport = Announcing()
    keeper, states = keeper_of(transport)
    assert not keeper.announced
    async with kept(keeper):
        await until(lambda: keeper.announced)
        assert keeper.state == "announced"
        keeper.ending()
    assert transport.ended == 1
    assert states == ["announced", "withdrawn"]
    assert (keeper.announced, keeper.left) == (False, "")


@pytest.mark.usefixtures("hundred_times_faster")
async def test_what_is_away_when_it_is_to_be_withdrawn_is_perhaps_left() -> None:
    transport = Announcing()
    keeper, _ = keeper_of(transport)
    async with kept(keeper):
        await until(lambda: keeper.announced)
        transport.script = [fail(TransportError("No way there."))] * 1000
        transport.failure = TransportError("Cut off.")
        transport.fails.set()
        await until(lambda: "No way there." in keeper.state)
        keeper.ending()
    assert "No way there." in keeper.left
    assert keeper.state == f"perhaps not withdrawn: {keeper.left}"


async def test_what_was_never_announced_is_not_left() -> None:
    transport = Announcing(*[fail(TransportError("No way there."))] * 1000)
    keeper, _ = keeper_of(transport)
    async with kept(keeper):
        await until(lambda: "No way there." in keeper.state)
        keeper.ending()
    assert (keeper.left, keeper.state) == ("", "withdrawn")


@pytest.mark.usefixtures("hundred_times_faster")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TransportError("The relay is\naway."), "The relay is away."),
        (RuntimeError("secret"), "It failed with RuntimeError."),
        (ExceptionGroup("x", [TransportError("The relay is away.")]), "The relay is away."),
        (ExceptionGroup("x", [TransportError("x"), OSError()]), "It failed with ExceptionGroup."),
    ],
    ids=["ours", "foreign", "ours in a group", "foreign in a group"],
)
async def test_a_failure_is_told_and_tried_again(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    transport = Announcing(fail(error), fail(error))
    keeper, states = keeper_of(transport)
    async with kept(keeper):
        await until(lambda: keeper.announced)
    told = f"not announced: {said}"
    assert states == [told, told, "announced", "withdrawn"]
    assert f"Transport listed: {said} Next attempt in" in caplog.text
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == (0 if "away" in said else 2)


@pytest.mark.usefixtures("hundred_times_faster")
async def test_an_announcement_that_breaks_off_is_begun_again() -> None:
    transport = Announcing()
    keeper, states = keeper_of(transport)
    async with kept(keeper):
        for count, failure in enumerate([TransportError("Cut off."), None], start=1):
            await until(lambda: keeper.announced)
            transport.failure = failure
            transport.fails.set()
            await until(lambda count=count: len(transport.began) > count)
        await until(lambda: keeper.announced)
    assert states[1] == "not announced: Cut off."
    assert states[3] == "not announced: Announcing ended without an error."
    assert transport.ended == 3


@pytest.mark.usefixtures("hundred_times_faster")
async def test_a_transport_that_cannot_be_opened_is_opened_again() -> None:
    keeper, states = keeper_of(Announcing(), opens=[OSError("secret"), TransportError("No network.")])
    async with kept(keeper):
        await until(lambda: keeper.announced)
    assert states[:2] == ["not announced: It failed with OSError.", "not announced: No network."]


@pytest.mark.usefixtures("hundred_times_faster")
async def test_one_that_announces_nothing_says_so() -> None:
    keeper, states = keeper_of(Mute())
    async with kept(keeper):
        await until(lambda: states)
    assert states[0] == "not announced: It finds instances, but announces none."


async def test_attempts_are_a_second_apart_at_least_even_if_the_clock_jumps_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "_FIRST_SECONDS", 0.2)
    transport = Announcing(*[fail(TransportError("No."))] * 4)
    keeper, _ = keeper_of(transport)
    async with kept(keeper):
        while not keeper.announced:
            keeper.woke()
            await anyio.lowlevel.checkpoint()
    gaps = [later - earlier for earlier, later in zip(transport.began, transport.began[1:], strict=False)]
    assert len(gaps) == 4
    assert min(gaps) >= 0.199
    assert max(gaps) < 0.4, "without a jump the last is 1.6"


@pytest.mark.usefixtures("hundred_times_faster")
async def test_without_a_jump_the_waits_grow() -> None:
    transport = Announcing(*[fail(TransportError("No."))] * 4)
    keeper, _ = keeper_of(transport)
    async with kept(keeper):
        await until(lambda: keeper.announced)
    gaps = [later - earlier for earlier, later in zip(transport.began, transport.began[1:], strict=False)]
    assert all(gap >= wait for gap, wait in zip(gaps, (0.01, 0.02, 0.04, 0.08), strict=True))


async def test_a_jump_of_the_clock_is_handed_to_the_transport(caplog: pytest.LogCaptureFixture) -> None:
    transport = Announcing()
    keeper, _ = keeper_of(transport)
    keeper.woke()
    async with kept(keeper):
        await until(lambda: keeper.announced)
        keeper.woke()
        assert transport.wakes == 1
        transport.woke = fail(RuntimeError("x"))
        keeper.woke()
        assert keeper.announced
        assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_a_transport_that_fails_while_it_is_withdrawn_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stumbling(Announcing):
        async def announce(self, endpoint: Endpoint, *, task_status: TaskStatus[None]) -> None:
            try:
                await super().announce(endpoint, task_status=task_status)
            finally:
                raise RuntimeError("at the end")

    keeper, states = keeper_of(Stumbling())
    with anyio.fail_after(5):
        async with kept(keeper):
            await until(lambda: keeper.announced)
            keeper.ending()
    assert keeper.left == "It failed with RuntimeError."
    assert states[-1] == f"perhaps not withdrawn: {keeper.left}"
    assert keeper.left in caplog.text
