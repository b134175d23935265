"""Asks the network who is there, again and again: zeroconf itself asks four times and then hardly ever."""

from collections.abc import Callable, Collection

import anyio
from zeroconf.asyncio import AsyncServiceBrowser

from opencode_mcp_mdns.session import Session

AFTER_GOODBYE_SECONDS = (0.1, 1.1)
"""When to ask after a goodbye, which may be somebody else's. Zeroconf asks up to 0.12 s later than that."""
AFTER_CHANGE_SECONDS = (0.0, 1.0, 4.0)
"""When to ask after the network has changed."""

_QUESTION_SECONDS = 0.3
"""How long it takes to ask once; zeroconf would ask for the second time after 1 s."""


class Asking:
    """Asks for services of some types.

    Args:
        session: Zeroconf.
        types: The types, as DNS names.
        heard: Called, as by any browser of zeroconf, with whatever is known whenever it is asked for.
    """

    def __init__(self, session: Session, types: list[str], heard: Callable[..., None]) -> None:
        self._session = session
        self._types = types
        self._heard = heard
        self._due: list[float] = []
        self._changed = anyio.Event()

    def soon(self, delays: Collection[float]) -> None:
        """Ask once after each of `delays` seconds; what is about to be asked anyway counts."""
        now = anyio.current_time()
        for delay in delays:
            if not any(abs(due - now - delay) <= _QUESTION_SECONDS for due in self._due):
                self._due.append(now + delay)
        self._changed.set()

    async def run(self, every_seconds: float) -> None:
        """Ask when it is due, and every so many seconds, until cancelled."""
        regular = anyio.current_time() + every_seconds
        while True:
            self._changed = anyio.Event()
            due = min([regular, *self._due])
            with anyio.CancelScope(deadline=due):
                await self._changed.wait()
                continue
            self._due = [one for one in self._due if one > due]
            asking = AsyncServiceBrowser(self._session.zeroconf.zeroconf, self._types, handlers=[self._heard])
            try:
                await anyio.sleep(_QUESTION_SECONDS)
            finally:
                await asking.async_cancel()
            if due >= regular:
                regular = anyio.current_time() + every_seconds
