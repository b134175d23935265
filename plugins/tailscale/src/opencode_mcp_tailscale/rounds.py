"""When which machine is asked: those that answer often, those that never do ever more rarely, 32 at once."""

import heapq
import itertools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import itemgetter

import anyio

from opencode_mcp_tailscale.asking import Answer, Outcome
from opencode_mcp_tailscale.index import Entry

logger = logging.getLogger(__name__)

AT_ONCE = 32
_MOST_DOUBTFUL = 24
"""Of those, so many at most wait for machines that have not answered, so that others need not wait too."""
PATIENCE = (0.1, 0.4, 2.0)
"""How many seconds a connection may take at the first, second and each further attempt, so that machines of
which nothing comes back do not keep the others waiting."""
GONE_SECONDS = 6.0
"""How long nobody must have listened where an instance was, before that is believed: an announcer that ends
is followed by another one of its machine within 5 s."""
_RETURN_SECONDS = 15.0
"""How long an index that comes back may lack what it had: announcers come back one by one."""
_CONFIRM_SECONDS = 2.0
_LEAST_SECONDS = 0.05
_INDEX_SECONDS = 5.0
_INDEXES_EACH_SECOND = 7.5
_QUESTIONS_EACH_SECOND = 10.0
_SPREAD, _FIRST_SPREAD = (0.9, 1.1), (0.1, 1.0)
_TOGETHER_SECONDS = 5.0
_LOST_SECONDS = (2.0, 5.0, 15.0, 30.0)
_SILENT_SECONDS = 60.0
_MOST_SILENT_SECONDS = 1800.0


class Question:
    """What is asked of a machine again and again.

    Args:
        ask: Asks once, with so many seconds for the connection.
        told: Called after each answer, with whether what is known has changed by it.
        index: Whether it is the index that is asked for.
        likely: Whether an answer is likely.

    Attributes:
        entries: What it has, as far as is known; None if that is not known, or nobody answers.
        asked: Whether it was asked at all.
        problem: Why it has none, as a sentence; or empty.
        retired: Whether it is not to be asked any more.
        rested: Whether it has rested already.
    """

    def __init__(
        self,
        ask: Callable[[float], Awaitable[Answer]],
        told: Callable[[bool], None],
        *,
        index: bool = False,
        likely: bool = False,
    ) -> None:
        self._ask = ask
        self._told = told
        self.is_index = index
        self._likely = likely
        self.entries: Sequence[Entry] | None = None
        self.asked = False
        self.problem = ""
        self.retired = False
        self.ticket = -1
        self.running = False
        self.rested = False
        self._new = True
        self._again = False
        self._attempt = 0
        self._failures = 0
        self._away = False
        self._gone_since: float | None = None
        self._kept: Mapping[str, tuple[Entry, float]] = {}
        self._logged: set[type[Exception]] = set()

    @property
    def settled(self) -> bool:
        """Whether it was asked, and is not to be asked again at once with more patience."""
        return self.asked and (not self._attempt or self._failures > 0)

    @property
    def is_doubtful(self) -> bool:
        """Whether nobody answered the last time, so that asking may take long and come to nothing again."""
        return bool(self._attempt or self._failures)

    @property
    def rank(self) -> int:
        """Who comes first of those that are due.

        An index that was only missed has to come back before thousands of ports are asked.
        """
        if self.entries is not None:
            return 3 if self.is_doubtful else 0
        if self._failures:
            return 10
        if self._attempt:
            return (3 if self.is_index else 7) + self._attempt
        if self._new:
            return (1 if self._likely else 2) if self.is_index else 6
        return 7

    async def visit(self) -> bool:
        """Ask once, and return whether what is known has changed by the answer."""
        before = self._standing
        try:
            answer = await self._ask(PATIENCE[-1 if self.entries is not None else self._attempt])
        except Exception as error:  # whatever a stranger can bring about, the others are to be asked
            self._log(error)
            answer = Answer(outcome=Outcome.SILENCE, problem="It could not be asked: see what was logged.")
        self._take(answer)
        return before != self._standing

    @property
    def _standing(self) -> object:
        """All that others go by."""
        return (self.asked, self.settled, self.entries, self.problem)

    def tell(self, changed: bool) -> None:
        """Say that there was an answer, and whether what is known has changed by it."""
        try:
            self._told(changed)
        except Exception as error:  # as above
            self._log(error)

    def _log(self, error: Exception) -> None:
        if type(error) not in self._logged:
            self._logged.add(type(error))
            logger.error("A machine could not be asked, or what it has not be listed.", exc_info=error)

    def _take(self, answer: Answer) -> None:
        self.asked, self._new = True, False
        self.problem = answer.problem
        if answer.outcome is Outcome.FOUND:
            self._found(answer.entries)
            return
        self._away = True
        if answer.outcome is Outcome.SILENCE:
            if self.entries is None and self._attempt + 1 < len(PATIENCE):
                self._attempt += 1
            else:
                self._failures += 1  # it may be away for a while
            self._gone_since = None
            return
        self._failures = self._attempt = 0
        if self.entries is not None:
            now = anyio.current_time()
            self._gone_since = self._gone_since or now
            if now - self._gone_since >= GONE_SECONDS:
                self.forget()

    def _found(self, entries: Sequence[Entry]) -> None:
        now = anyio.current_time()
        kept = dict(self._kept)
        if self.is_index and self._away:
            for entry in self.entries or ():
                kept.setdefault(entry.id, (entry, now + _RETURN_SECONDS))
        told = {entry.id for entry in entries}
        self._kept = {known: one for known, one in kept.items() if known not in told and now < one[1]}
        self.entries = [*entries, *(entry for entry, _ in self._kept.values())]
        self._failures = self._attempt = 0
        self._away, self._gone_since = False, None

    def rest(self, pace: "Pace") -> float:
        """Return for how many seconds it is not to be asked."""
        if self._again:
            self.hurry()  # also if nobody answered: that was before
            self._again = False
            return 0.0
        if self.entries is not None:
            if self._failures:
                return _LOST_SECONDS[min(self._failures, len(_LOST_SECONDS)) - 1]
            usual = pace.index if self.is_index else pace.regular
            ends = [until for _, until in self._kept.values()]
            if self._gone_since is not None:
                usual = _CONFIRM_SECONDS
                ends.append(self._gone_since + GONE_SECONDS)
            left = min(ends, default=math.inf) - anyio.current_time()
            return min(usual, max(left, _LEAST_SECONDS))
        if self._failures:
            seconds = max(_SILENT_SECONDS, pace.regular) * 2.0 ** min(self._failures - 1, 16)
            return min(seconds, max(_MOST_SILENT_SECONDS, pace.regular))
        return 0.0 if self._attempt else pace.regular

    def forget(self) -> None:
        """Take note that whatever it has is gone, until it answers again."""
        self.entries = self._gone_since = None
        self._kept = {}

    def hurry(self) -> None:
        """Take note that all is different now, so that it is worth asking."""
        self._attempt = self._failures = 0
        self._new = True
        self._again = self.running


class Pace:
    """How often questions are asked that are answered, or refused at once.

    Args:
        rescan_seconds: How long to wait between two looks where nobody is, if there are few machines.
    """

    def __init__(self, rescan_seconds: float) -> None:
        self._rescan = rescan_seconds
        self.questions = 0
        self.indexes = 0

    @property
    def regular(self) -> float:
        """Seconds between two questions for where nobody listens; longer with thousands of machines."""
        return max(self._rescan, self.questions / _QUESTIONS_EACH_SECOND)

    @property
    def index(self) -> float:
        """Seconds between two questions for an index that is there."""
        return max(min(_INDEX_SECONDS, self._rescan), self.indexes / _INDEXES_EACH_SECOND)


_Due = tuple[int, int, Question]
"""Its rank, its ticket, and a question."""


class Rounds:
    """Asks the questions, each when it is due.

    Args:
        rescan_seconds: How long to wait between two looks where nobody is.
    """

    def __init__(self, rescan_seconds: float) -> None:
        self._pace = Pace(rescan_seconds)
        self._ready: list[_Due] = []
        self._doubtful: list[_Due] = []
        self._resting: list[tuple[float, int, Question]] = []
        self._running: set[Question] = set()
        self._running_doubtful = 0
        self._tickets = itertools.count()
        self._woken = anyio.Event()
        self._free = anyio.Semaphore(AT_ONCE)
        self.paused = False

    def pause(self, paused: bool) -> None:
        """Ask nothing for a while, or go on."""
        self.paused = paused
        self._woken.set()

    def take(self, questions: int, indexes: int) -> None:
        """Take note of how many questions there are, and how many indexes that answer."""
        self._pace.questions, self._pace.indexes = questions, indexes

    def add(self, question: Question) -> None:
        """Ask a question now, or anew now."""
        question.hurry()
        if not question.running:
            self._put(question, next(self._tickets))
            self._woken.set()

    def hurry_all(self) -> None:
        """Ask all questions anew now: this machine was cut off, so that nobody's silence says anything."""
        due = [*self._ready, *self._doubtful, *self._resting]
        self._ready, self._doubtful, self._resting = [], [], []
        for _, ticket, question in sorted(due, key=itemgetter(1)):
            if question.ticket == ticket and not question.retired:
                question.hurry()
                question.rested = False
                self._put(question, ticket)
        for question in self._running:
            question.hurry()
        self._woken.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                await self._free.acquire()
                question = await self._next()
                question.running = True
                self._running.add(question)
                self._running_doubtful += question.is_doubtful
                group.start_soon(self._visit, question, question.is_doubtful)

    def _put(self, question: Question, ticket: int) -> None:
        question.ticket = ticket
        heap = self._doubtful if question.is_doubtful else self._ready
        heapq.heappush(heap, (question.rank, ticket, question))

    async def _next(self) -> Question:
        while True:
            now = anyio.current_time()
            while self._resting and self._resting[0][0] <= now:
                _, ticket, question = heapq.heappop(self._resting)
                if question.ticket == ticket and not question.retired:
                    self._put(question, ticket)
            while (heap := self._first()) and not self.paused:
                _, ticket, question = heapq.heappop(heap)
                if question.ticket == ticket and not question.retired:
                    return question
            until = self._resting[0][0] if self._resting else float("inf")
            self._woken = anyio.Event()
            with anyio.CancelScope(deadline=until):
                await self._woken.wait()

    def _first(self) -> "list[_Due]":
        """Return what has the first of those that are due, as far as there is room for it."""
        if not self._doubtful or self._running_doubtful >= _MOST_DOUBTFUL:
            return self._ready
        if not self._ready:
            return self._doubtful
        return min(self._ready, self._doubtful, key=itemgetter(0))

    async def _visit(self, question: Question, doubtful: bool) -> None:
        try:
            changed = await question.visit()
        finally:
            question.running = False
            self._running.discard(question)
            self._running_doubtful -= doubtful
            self._free.release()
        self._rest(question, question.rest(self._pace))
        question.tell(changed)

    def _rest(self, question: Question, seconds: float) -> None:
        # All are asked at the start, and never all at once again.
        spread = random.uniform(*(_SPREAD if question.rested else _FIRST_SPREAD))  # noqa: S311
        question.rested = question.rested or seconds > 0
        question.ticket = next(self._tickets)
        until = anyio.current_time() + seconds * spread
        if seconds >= _TOGETHER_SECONDS:
            until = round(until)  # a process that wakes once for many takes half of the time for each
        heapq.heappush(self._resting, (until, question.ticket, question))
        self._woken.set()
