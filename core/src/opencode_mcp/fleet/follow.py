"""Follows one connected server: its event stream, a snapshot beside it, and a watch over its silence.

A stream that never says anything (behind a proxy that buffers), or too much at once, is replaced by polling.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

import anyio

from opencode_mcp.errors import OpenCodeMCPError, TooLargeError, UnreachableError
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.opencode.api import (
    Alive,
    Delta,
    Event,
    Logged,
    MessageUpdated,
    OpenCode,
    PartUpdated,
    Snapshot,
)

_MOST_MEANWHILE = 5_000


class StreamEndedError(UnreachableError):
    """The event stream was closed in good order, which says nothing of the server itself."""


class Follower(Protocol):
    """Takes note of what is learnt; none of its methods waits."""

    @property
    def directories(self) -> Collection[str]:
        """Projects to ask about besides the server's own."""
        ...

    @property
    def positions(self) -> Mapping[str, int]:
        """How far the logs of those sessions have come that somebody listens to, as far as is known."""
        ...

    @property
    def puzzled(self) -> bool:
        """Whether it has heard of something that only a fresh snapshot can tell it more of."""
        ...

    def take_stock(self, snapshot: Snapshot, since: Sequence[Event] = (), *, streaming: bool) -> None:
        """Start afresh from a snapshot, and from what the stream said since it was asked for."""
        ...

    def catch_up(self, events: Sequence[Event]) -> None:
        """Hear what a session's log tells of a time in which there was no stream."""
        ...

    def take_note(self, event: Event) -> None:
        """Learn from one event."""
        ...

    def alive(self) -> None:
        """Hear that the server answered."""
        ...

    def overwhelmed(self, error: TooLargeError) -> None:
        """Hear that an event was too large, so that the server is polled for a while."""
        ...


async def follow(api: OpenCode, follower: Follower, pace: Pace, *, stream: bool = True) -> None:
    """Follow a server until a fresh connection is due; by polling alone if `stream` is false.

    Raises:
        OpenCodeMCPError: It is lost, or behaves as no OpenCode server does.
    """
    if stream:
        try:
            await _Stream(api, follower, pace).run()
        except TooLargeError as error:  # the server is well, and what the event said is learnt by asking
            follower.overwhelmed(error)
    await _poll(api, follower, pace)


async def _poll(api: OpenCode, follower: Follower, pace: Pace) -> None:
    until = time.monotonic() + pace.restream
    while time.monotonic() < until:
        follower.take_stock(await api.snapshot(follower.directories), streaming=False)
        await anyio.sleep(pace.poll)


def _is_level(event: Event) -> bool:
    """Whether an event changes the picture of the server, which it may have to do once more."""
    if isinstance(event, PartUpdated):
        return event.tool is not None
    return not isinstance(event, Alive | Delta | Logged | MessageUpdated)


class _Stream:
    def __init__(self, api: OpenCode, follower: Follower, pace: Pace) -> None:
        self._api = api
        self._follower = follower
        self._pace = pace
        self._heard = 0.0
        self._meanwhile: list[Event] | None = None
        self._puzzled = anyio.Event()
        self._verdict: OpenCodeMCPError | None = None
        late = api.generation > 1
        self._silence, self._mute = (pace.silence_of_2, pace.mute_of_2) if late else (pace.silence, pace.mute)

    async def run(self) -> None:
        """Follow the stream until it breaks, which raises; return if it says nothing from the start."""
        missed = dict(self._follower.positions)
        async with self._api.events(self._hear) as events:
            first: Event | None = None
            with anyio.move_on_after(self._pace.probe):
                first = await anext(events, None)
            if first is None:
                return
            self._heard = time.monotonic()
            async with anyio.create_task_group() as tasks:

                async def until_it_fails(work: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await work()
                    except OpenCodeMCPError as error:
                        self._verdict = self._verdict or error
                        tasks.cancel_scope.cancel()

                tasks.start_soon(until_it_fails, lambda: self._keep_stocked(missed))
                tasks.start_soon(until_it_fails, self._watch_silence)
                await until_it_fails(lambda: self._read(events))
        raise self._verdict or StreamEndedError("Its event stream ended.")

    def _hear(self) -> None:
        self._heard = time.monotonic()
        self._follower.alive()

    async def _read(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self._heard = time.monotonic()
            if self._meanwhile is not None and _is_level(event):
                if len(self._meanwhile) < _MOST_MEANWHILE:
                    self._meanwhile.append(event)
                else:
                    self._puzzled.set()  # so that stock is taken again
            self._follower.take_note(event)
            if self._follower.puzzled:
                self._puzzled.set()
        raise StreamEndedError("Its event stream ended.")

    async def _keep_stocked(self, missed: Mapping[str, int]) -> None:
        """Take stock once the stream hears everything, so that nothing is lost between the two; and again."""
        await anyio.sleep(self._pace.deaf)
        await self._take_stock()
        for session_id, position in missed.items():
            self._follower.catch_up(await self._api.log(session_id, position))
        while True:
            await self._puzzled.wait()
            await anyio.sleep(self._pace.restock)
            self._puzzled = anyio.Event()
            await self._take_stock()

    async def _take_stock(self) -> None:
        """Take a snapshot while the stream runs, and apply again what it said meanwhile.

        The snapshot may be older or newer than those events; they are levels in order, so the end is right.
        """
        self._meanwhile = meanwhile = list[Event]()
        snapshot = await self._api.snapshot(self._follower.directories)
        self._meanwhile = None
        self._follower.take_stock(snapshot, meanwhile, streaming=True)

    async def _watch_silence(self) -> None:
        while True:
            left = self._heard + self._silence - time.monotonic()
            if left > 0:
                await anyio.sleep(left)
                continue
            await self._api.ping()
            self._follower.alive()
            left = self._heard + self._mute - time.monotonic()
            if left <= 0:
                raise UnreachableError("Its event stream fell silent.")
            await anyio.sleep(min(self._silence, left))
