"""Asks the network who is there, again and again: zeroconf itself asks four times and then hardly ever."""

from collections.abc import Callable, Collection

import anyio
from zeroconf import DNSOutgoing, DNSQuestion  # pyright: ignore[reportPrivateImportUsage] - but not in __all__

from opencode_mcp_mdns.session import Session

AFTER_GOODBYE_SECONDS = (0.2, 1.2)
"""When to ask after a goodbye, which may be somebody else's."""
AFTER_CHANGE_SECONDS = (0.0, 1.0, 4.0)
"""When to ask after the network has changed."""

_APART_SECONDS = 0.3
"""Questions that are closer together are one."""
_QUERY, _PTR, _IN = 0, 12, 1  # RFC 1035, sections 3.2 and 4.1.1


class Asking:
    """Asks for services of some types.

    For answers by multicast, since by unicast only one of several processes on a machine would get them. And
    without saying what is known: then all who are there answer, and what they said stays fresh.

    Args:
        session: Zeroconf.
        types: The types, as DNS names.
        asked: Called after each regular question.
    """

    def __init__(self, session: Session, types: Collection[str], asked: Callable[[], None]) -> None:
        self._session = session
        self._types = types
        self._asked = asked
        self._due: list[float] = []
        self._changed = anyio.Event()

    def soon(self, delays: Collection[float]) -> None:
        """Ask once after each of `delays` seconds; what is asked at about that time anyway counts."""
        now = anyio.current_time()
        for delay in delays:
            if not any(abs(due - now - delay) <= _APART_SECONDS for due in self._due):
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
            self._ask()
            if due >= regular:
                regular = anyio.current_time() + every_seconds
                self._asked()

    def _ask(self) -> None:
        question = DNSOutgoing(_QUERY)
        for one in self._types:
            question.add_question(DNSQuestion(one, _PTR, _IN))
        self._session.zeroconf.zeroconf.async_send(question)
