"""Stream and snapshot side by side: whichever comes first, the end is right."""

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from opencode_mcp import Activity
from opencode_mcp.errors import ProtocolError, TooLargeError, UnreachableError
from opencode_mcp.fleet.follow import follow
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.fleet.picture import Picture
from opencode_mcp.opencode.api import ActivityChanged, Alive, Event, PartUpdated, Snapshot
from support.fleets import until

pytestmark = pytest.mark.anyio

SLOW = Pace(probe=5, silence=60)


class Scripted:
    """An `OpenCode` whose events and snapshots come when the test says."""

    version = "1.18.33"
    generation = 1

    def __init__(self, *busy: str):
        self.send, self._receive = anyio.create_memory_object_stream(100)
        self.snapshot_may_come = anyio.Event()
        self.asked = anyio.Event()
        self.busy = frozenset(busy)
        self.error: Exception | None = None
        self.pings = 0
        self.heard: Callable[[], None] = lambda: None
        self.logs: list[tuple[str, int]] = []

    @asynccontextmanager
    async def events(self, heard: Callable[[], None]) -> AsyncGenerator[AsyncIterator[Event]]:
        self.heard = heard

        async def received():
            async for event in self._receive:
                if isinstance(event, Exception):
                    raise event
                yield event

        yield received()

    async def snapshot(self, directories):
        self.asked.set()
        await self.snapshot_may_come.wait()
        if self.error:
            raise self.error
        return Snapshot(directory="/srv", sessions=(), busy=self.busy, requests=())

    async def log(self, session_id: str, after: int):
        self.logs.append((session_id, after))
        return [PartUpdated(session_id, "msg", "part", "text", f"behind {after}")]

    async def ping(self):
        self.pings += 1
        if self.error:
            raise self.error

    def close(self):
        self.send.close()
        self._receive.close()


class Notebook:
    directories = ()
    positions: Mapping[str, int] = {}
    puzzled = False

    def __init__(self):
        self.picture = Picture()
        self.stocked = 0
        self.streaming = True
        self.lives = 0
        self.caught_up: list[Event] = []

    def take_stock(self, snapshot, since=(), *, streaming):
        self.stocked += 1
        self.streaming = streaming
        self.picture.start(snapshot)
        for event in since:
            self.picture.apply(event)

    def take_note(self, event):
        self.picture.apply(event)

    def catch_up(self, events):
        assert self.stocked, "what is missed is heard after the snapshot"
        self.caught_up += events

    def overwhelmed(self, error):
        self.too_large = error

    def alive(self):
        self.lives += 1


async def test_an_event_that_overtakes_the_snapshot_is_not_undone_by_it():
    api: Any = Scripted("ses_1")
    notes = Notebook()
    async with anyio.create_task_group() as tasks:
        api.send.send_nowait(Alive())
        tasks.start_soon(follow, api, notes, SLOW)
        await api.asked.wait()
        api.send.send_nowait(ActivityChanged("ses_1", Activity.IDLE))  # newer than the snapshot below
        await until(lambda: api.send.statistics().current_buffer_used == 0)
        api.snapshot_may_come.set()
        await until(lambda: notes.stocked)
        assert not notes.picture.is_busy("ses_1")
        tasks.cancel_scope.cancel()
    api.close()


async def test_an_event_after_the_snapshot_counts():
    api: Any = Scripted("ses_1")
    notes = Notebook()
    api.snapshot_may_come.set()
    async with anyio.create_task_group() as tasks:
        api.send.send_nowait(Alive())
        tasks.start_soon(follow, api, notes, SLOW)
        await until(lambda: notes.stocked)
        assert notes.picture.is_busy("ses_1")
        api.send.send_nowait(ActivityChanged("ses_1", Activity.IDLE))
        await until(lambda: not notes.picture.is_busy("ses_1"))
        tasks.cancel_scope.cancel()
    api.close()


async def test_a_stream_that_ends_is_an_error_though_the_snapshot_still_hangs():
    api: Any = Scripted()
    api.send.send_nowait(Alive())
    api.send.close()
    with pytest.raises(UnreachableError, match="stream ended"), anyio.fail_after(2):
        await follow(api, Notebook(), SLOW)
    api.close()


async def test_a_snapshot_that_fails_ends_the_connection_with_its_reason():
    api: Any = Scripted()
    api.error = ProtocolError("no good")
    api.snapshot_may_come.set()
    api.send.send_nowait(Alive())
    with pytest.raises(ProtocolError, match="no good"), anyio.fail_after(2):
        await follow(api, Notebook(), SLOW)
    api.close()


async def test_silence_leads_to_a_ping_and_a_mute_stream_is_given_up_though_pings_are_answered():
    api: Any = Scripted()
    notes = Notebook()
    api.snapshot_may_come.set()
    api.send.send_nowait(Alive())
    with pytest.raises(UnreachableError, match="fell silent"), anyio.fail_after(5):
        await follow(api, notes, Pace(probe=1, silence=0.02, mute=0.1))
    assert api.pings >= 2
    assert notes.lives >= 2
    api.close()


async def test_an_event_too_large_to_read_leads_to_polling_whenever_it_comes():
    for before in ([], [Alive()]):
        api: Any = Scripted("ses_1")
        notes = Notebook()
        api.snapshot_may_come.set()
        for event in before:
            api.send.send_nowait(event)
        api.send.send_nowait(TooLargeError("an event of 1 GiB"))
        with anyio.fail_after(2):
            await follow(api, notes, Pace(probe=1, deaf=0, poll=0.01, restream=0.05))
        assert notes.stocked >= 2
        assert not notes.streaming
        api.close()


async def test_a_snapshot_too_large_to_read_ends_the_connection_with_its_reason():
    api: Any = Scripted()
    api.error = TooLargeError("a snapshot of 1 GiB")
    api.snapshot_may_come.set()
    api.send.send_nowait(Alive())
    with pytest.raises(TooLargeError, match="1 GiB"), anyio.fail_after(2):
        await follow(api, Notebook(), SLOW)
    api.close()


class Clock:
    """Time as the test says."""

    def __init__(self):
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("generation", [1, 2])
async def test_whatever_arrives_counts_as_life_and_only_silence_is_probed_and_given_up(
    generation: int, monkeypatch: pytest.MonkeyPatch
):
    clock, failure = Clock(), list[UnreachableError]()
    monkeypatch.setattr("opencode_mcp.fleet.follow.time", clock)
    api: Any = Scripted()
    api.generation = generation
    api.snapshot_may_come.set()
    api.send.send_nowait(Alive())
    late, other = ("_of_2", "") if generation == 2 else ("", "_of_2")
    own = {f"silence{late}": 0.02, f"mute{late}": 0.1, f"silence{other}": 1e-9, f"mute{other}": 1e-9}
    pace = dataclasses.replace(Pace(probe=5, deaf=0), **own)
    notes = Notebook()

    async def run():
        try:
            await follow(api, notes, pace)
        except UnreachableError as error:
            failure.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(lambda: notes.stocked)
        for _ in range(50):
            clock.now += 0.015
            api.heard()  # a comment: no event comes of it
            await anyio.wait_all_tasks_blocked()
        assert (api.pings, failure) == (0, [])
        clock.now += 0.021
        await until(lambda: api.pings)
        assert not failure
        clock.now += 0.1
        await until(lambda: failure)
    assert "fell silent" in str(failure[0])
    api.close()


async def test_of_sessions_that_are_listened_to_the_logs_are_read_behind_what_was_known_when_it_connected():
    api: Any = Scripted()
    notes = Notebook()
    notes.positions = {"ses_1": 7, "ses_2": 0}
    api.send.send_nowait(Alive())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow, api, notes, SLOW)
        await api.asked.wait()
        notes.positions = {"ses_1": 9}  # the new stream has told that already
        api.snapshot_may_come.set()
        await until(lambda: len(notes.caught_up) == 2)
        assert api.logs == [("ses_1", 7), ("ses_2", 0)]
        tasks.cancel_scope.cancel()
    api.close()


async def test_who_is_puzzled_has_stock_taken_again():
    api: Any = Scripted()
    notes = Notebook()
    api.snapshot_may_come.set()
    api.send.send_nowait(Alive())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow, api, notes, Pace(probe=5, silence=60, deaf=0, restock=0.01))
        await until(lambda: notes.stocked == 1)
        api.send.send_nowait(Alive())
        await until(lambda: api.send.statistics().current_buffer_used == 0)
        assert notes.stocked == 1
        notes.puzzled = True
        api.send.send_nowait(Alive())
        await until(lambda: notes.stocked == 2)
        tasks.cancel_scope.cancel()
    api.close()
