"""A subscription to one instance's events: bounded, and never a brake on the stream it is fed from."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import anyio

from opencode_mcp.opencode.api import (
    ActivityChanged,
    Delta,
    Event,
    Logged,
    MessageUpdated,
    PartUpdated,
    SessionFailed,
)

_CAPACITY = 20_000
_POSITIONS_KEPT = 1_000


class Feed:
    """Collects events until they are taken.

    A reader that stays away for very long loses the oldest ones: what counts in the end is what OpenCode
    stored.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self._events: list[Event] = []
        self._arrived = anyio.Event()

    def put(self, event: Event) -> None:
        """Add an event; called by the monitor."""
        if len(self._events) >= _CAPACITY:
            del self._events[: _CAPACITY // 2]
        self._events.append(event)
        self._arrived.set()

    def wake(self) -> None:
        """Let a waiting reader look around although nothing was added."""
        self._arrived.set()

    def take(self) -> Sequence[Event]:
        """Return what has arrived, in order."""
        self._arrived = anyio.Event()
        events, self._events = self._events, []
        return events

    async def wait(self, seconds: float) -> None:
        """Wait until something arrives or happens, at most `seconds`."""
        with anyio.move_on_after(seconds):
            await self._arrived.wait()


class Feeds:
    """The subscriptions to one instance."""

    def __init__(self) -> None:
        self._open: list[Feed] = []
        self._positions: dict[str, int] = {}  # by session, those heard of last at the end

    @contextmanager
    def opened(self, session_id: str) -> Generator[Feed]:
        """Subscribe to a session for as long as the context is entered."""
        feed = Feed(session_id)
        self._open.append(feed)
        try:
            yield feed
        finally:
            self._open.remove(feed)

    @property
    def positions(self) -> Mapping[str, int]:
        """How far the logs of the sessions have come that somebody follows."""
        followed = {feed.session_id for feed in self._open}
        return {one: self._positions[one] for one in followed if one in self._positions}

    def advance(self, logged: Logged) -> None:
        """Take note of how far a session's log has come."""
        self._positions.pop(logged.session_id, None)
        self._positions[logged.session_id] = logged.position
        if len(self._positions) > _POSITIONS_KEPT:
            del self._positions[next(iter(self._positions))]

    def put(self, event: Event) -> None:
        """Pass an event on to those who follow its session; any other lets all look around."""
        if not self._open:
            return
        match event:
            case (
                Delta(session_id)
                | MessageUpdated(session_id)
                | PartUpdated(session_id)
                | SessionFailed(session_id)
                | ActivityChanged(session_id)
            ):
                for feed in self._open:
                    if feed.session_id == session_id:
                        feed.put(event)
            case _:
                self.wake()

    def wake(self) -> None:
        """Let all waiting readers look around."""
        for feed in self._open:
            feed.wake()
