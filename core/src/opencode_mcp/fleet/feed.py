"""A subscription to one instance's events: bounded, and never a brake on the stream it is fed from."""

from collections.abc import Sequence

import anyio

from opencode_mcp.opencode.api import Event

_CAPACITY = 100_000


class Feed:
    """Collects events until they are fetched.

    A reader that stays away for very long loses the oldest ones and can see so in `lost`: what counts in
    the end is what OpenCode stored.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.lost = False
        self._events: list[Event] = []
        self._arrived = anyio.Event()

    def put(self, event: Event) -> None:
        """Add an event; called by the monitor."""
        if len(self._events) >= _CAPACITY:
            del self._events[: _CAPACITY // 2]
            self.lost = True
        self._events.append(event)
        self._arrived.set()

    def wake(self) -> None:
        """Let a waiting reader look around although nothing was added."""
        self._arrived.set()

    async def fetch(self, seconds: float) -> Sequence[Event]:
        """Return what has arrived, in order; wait for something at most `seconds`, then return nothing."""
        with anyio.move_on_after(seconds):
            await self._arrived.wait()
        self._arrived = anyio.Event()
        events, self._events = self._events, []
        return events
