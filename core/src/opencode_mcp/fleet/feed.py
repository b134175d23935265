"""A subscription to one instance's events: bounded, and never a brake on the stream it is fed from."""

from collections.abc import Sequence

import anyio

from opencode_mcp.opencode.api import Event

_CAPACITY = 20_000


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
