"""Asks whether an OpenCode answers at a place, for as long as somebody claims that there is one."""

import random
from collections import defaultdict
from collections.abc import Callable, Collection
from enum import IntEnum

import anyio
from anyio.abc import TaskGroup, TaskStatus

from opencode_mcp import OpenCodeMCPError, Recognised, UnreachableError, recognise
from opencode_mcp_mdns.advert import Place
from opencode_mcp_mdns.network import Address

_ASK_SECONDS = 2.0
_RETRIES = (0.3, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_UNEASY_SECONDS = 3.0
_REGULAR_SECONDS = 60.0
"""Somebody else may have taken over the port meanwhile, or it serves another project."""
_MISSES = 2
_SILENT_SECONDS = 30.0
_SILENT_ADDRESSES = 4_096


class Outlook(IntEnum):
    """What to expect at an address, best first; and how many are asked at once of those."""

    GOOD = 0
    """Somebody answers there."""
    OPEN = 1
    """Nobody knows yet."""
    BAD = 2
    """Nobody answered there, not even to refuse."""


_AT_ONCE = {Outlook.GOOD: 16, Outlook.OPEN: 32, Outlook.BAD: 8}
"""Each has its own share, so that a thousand places where nobody answers do not keep the others waiting."""


class Visit:
    """One place, and how it stands there.

    Attributes:
        place: Where it is.
        answer: What the OpenCode there said of itself; None if there is none, as far as is known.
        asked: Whether it was asked at all.
        problem: Why there is none, as a sentence; or empty.
        silent: Whether, when it was asked last, there was not even a refusal.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.answer: Recognised | None = None
        self.asked = False
        self.problem = ""
        self.scope = anyio.CancelScope()
        self.silent = False
        self._misses = 0
        self._attempts = 0
        self._doubted = anyio.Event()

    @property
    def standing(self) -> object:
        """All of it that others decide by."""
        return (self.asked, self.answer, self.problem, self.decided)

    @property
    def decided(self) -> bool:
        """Whether it is known by now whether there is one."""
        return self.asked and (self.answer is not None or self._misses >= _MISSES)

    def doubt(self) -> None:
        """Ask again at once."""
        self._attempts = 0
        self._doubted.set()

    def give_up(self) -> None:
        """Take note that it is gone, and find out whether it is."""
        self.answer = None
        self.doubt()

    async def ask(self) -> None:
        """Ask once. That nobody answers must happen twice to mean something."""
        began = anyio.current_time()
        self.silent = False
        try:
            self.answer = await recognise(self.place.route, seconds=_ASK_SECONDS)
            self.problem = ""
            self._misses = 0
        except OpenCodeMCPError as error:
            self.problem = str(error)
            self._misses = self._misses + 1 if isinstance(error, UnreachableError) else _MISSES
            self.silent = anyio.current_time() - began >= _ASK_SECONDS
            if self._misses >= _MISSES:
                self.answer = None
        finally:
            self.asked = True

    async def rest(self, *, uneasy: bool) -> None:
        """Wait until it is to be asked again."""
        if self.answer is not None and not self._misses:
            self._attempts = 0
            seconds = (_UNEASY_SECONDS if uneasy else _REGULAR_SECONDS) * random.uniform(0.8, 1.2)  # noqa: S311
        else:
            seconds = _RETRIES[min(self._attempts, len(_RETRIES) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311
            self._attempts += 1
        with anyio.move_on_after(seconds):
            await self._doubted.wait()
        self._doubted = anyio.Event()


class Places:
    """All places that are claimed.

    Args:
        changed: Called after a visit that has found something else than before.
        uneasy: Whether nobody claims a place any more, so that who answers there is to be watched.
    """

    def __init__(self, *, changed: Callable[[], None], uneasy: Callable[[Place], bool]) -> None:
        self._visits: dict[Place, Visit] = {}
        self._at: defaultdict[Address, set[Visit]] = defaultdict(set)
        self._changed = changed
        self._uneasy = uneasy
        self._shares = {outlook: anyio.CapacityLimiter(number) for outlook, number in _AT_ONCE.items()}
        self._silent: dict[Address, float] = {}
        self._group: TaskGroup | None = None

    def get(self, place: Place) -> Visit | None:
        """Return how it stands at a place; None if nobody asks there."""
        return self._visits.get(place)

    @property
    def settled(self) -> bool:
        """Whether everybody has been asked."""
        return all(visit.asked for visit in self._visits.values())

    def outlook(self, address: Address) -> Outlook:
        """Return what to expect at an address."""
        if any(visit.answer is not None for visit in self._at.get(address, ())):
            return Outlook.GOOD
        silent_until = self._silent.get(address)
        return Outlook.BAD if silent_until and anyio.current_time() < silent_until else Outlook.OPEN

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Visit until cancelled."""
        async with anyio.create_task_group() as self._group:
            task_status.started()
            await anyio.sleep_forever()

    def keep(self, wanted: Collection[Place]) -> None:
        """Visit these places, and no others any more."""
        for place in [place for place in self._visits if place not in wanted]:
            visit = self._visits.pop(place)
            visit.scope.cancel()
            self._at[place.address].discard(visit)
            if not self._at[place.address]:
                del self._at[place.address]
        for place in wanted:
            if place not in self._visits and self._group is not None:
                visit = self._visits[place] = Visit(place)
                self._at[place.address].add(visit)
                self._group.start_soon(self._look_after, visit)

    async def _look_after(self, visit: Visit) -> None:
        with visit.scope:
            while True:
                outlook = self._outlook(visit)
                async with self._shares[outlook]:
                    if outlook is Outlook.OPEN and self._outlook(visit) is Outlook.BAD:
                        continue  # found out while it waited for its turn
                    before = visit.standing
                    await visit.ask()
                if visit.silent:
                    self._note_silence(visit.place.address)
                if visit.standing != before:
                    self._changed()
                await visit.rest(uneasy=self._uneasy(visit.place))

    def _outlook(self, visit: Visit) -> Outlook:
        outlook = self.outlook(visit.place.address)
        return Outlook.BAD if outlook is Outlook.OPEN and visit.asked else outlook

    def _note_silence(self, address: Address) -> None:
        self._silent.pop(address, None)
        self._silent[address] = anyio.current_time() + _SILENT_SECONDS
        if len(self._silent) > _SILENT_ADDRESSES:
            del self._silent[next(iter(self._silent))]
