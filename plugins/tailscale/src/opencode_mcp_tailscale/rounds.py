"""When which machine is asked: those that answer often, those that never do ever more rarely, 32 at once."""

import heapq
import itertools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence

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
_DOUBTFUL = 5
"""The first rank of doubtful questions."""
_CONFIRM_SECONDS = 2.0
_INDEX_SECONDS = 5.0
_INDEXES_EACH_SECOND = 5.0
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
        self.told = told
        self.is_index = index
        self._likely = likely
        self.entries: Sequence[Entry] | None = None
        self.asked = False
        self.problem = ""
        self.retired = False
        self.ticket = -1
        self.running = False
        self.rested = False
        self._again = False
        self._attempt = 0
        self._failures = 0
        self._gone_since: float | None = None

    @property
    def is_doubtful(self) -> bool:
        """Whether nobody answered the last time, so that asking may take long and come to nothing again."""
        return bool(self._attempt or self._failures)

    @property
    def rank(self) -> int:
        """Who comes first of those that are due."""
        if self.is_doubtful:
            return _DOUBTFUL + (0 if self.entries is not None else 3 if self._failures else self._attempt)
        if self.entries is not None:
            return 0
        if self.asked:
            return 4
        return (1 if self._likely else 2) if self.is_index else 3

    async def visit(self) -> bool:
        """Ask once, and return whether what is known has changed by the answer."""
        before = (self.asked, self.entries, self.problem)
        answer = await self._ask(PATIENCE[-1 if self.entries is not None else self._attempt])
        self._take(answer)
        return before != (self.asked, self.entries, self.problem)

    def _take(self, answer: Answer) -> None:
        self.asked = True
        if answer.outcome is Outcome.SILENCE:
            if self.entries is not None:
                self._failures += 1  # it may be away for a while
            elif self._attempt + 1 < len(PATIENCE):
                self._attempt += 1
            else:
                self._failures += 1
            self.problem = answer.problem
            self._gone_since = None
            return
        self._failures = self._attempt = 0
        self.problem = answer.problem
        if answer.outcome is Outcome.FOUND:
            self.entries = answer.entries
            self._gone_since = None
        elif self.entries is not None:
            now = anyio.current_time()
            self._gone_since = self._gone_since or now
            if now - self._gone_since >= GONE_SECONDS:
                self.entries = self._gone_since = None

    def rest(self, pace: "Pace") -> float:
        """Return for how many seconds it is not to be asked."""
        if self._again:
            self._again = False
            return 0.0
        if self.entries is not None:
            if self._failures:
                return _LOST_SECONDS[min(self._failures, len(_LOST_SECONDS)) - 1]
            if self._gone_since is not None:
                return _CONFIRM_SECONDS
            return pace.index if self.is_index else pace.regular
        if self._failures:
            seconds = max(_SILENT_SECONDS, pace.regular) * 2.0 ** min(self._failures - 1, 16)
            return min(seconds, max(_MOST_SILENT_SECONDS, pace.regular))
        return 0.0 if self._attempt else pace.regular

    def forget(self) -> None:
        """Take note that whatever it has is gone, until it answers again."""
        self.entries = self._gone_since = None

    def hurry(self) -> None:
        """Take note that all is different now, so that it is worth asking."""
        self._attempt = self._failures = 0
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


class Rounds:
    """Asks the questions, each when it is due.

    Args:
        rescan_seconds: How long to wait between two looks where nobody is.
    """

    def __init__(self, rescan_seconds: float) -> None:
        self._pace = Pace(rescan_seconds)
        self._ready: list[tuple[int, int, Question]] = []
        self._resting: list[tuple[float, int, Question]] = []
        self._tickets = itertools.count()
        self._woken = anyio.Event()
        self._free = anyio.Semaphore(AT_ONCE)
        self._doubtful = 0
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
            question.ticket = next(self._tickets)
            heapq.heappush(self._ready, (question.rank, question.ticket, question))
            self._woken.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                await self._free.acquire()
                question = await self._next()
                question.running = True
                self._doubtful += question.is_doubtful
                group.start_soon(self._visit, question, question.is_doubtful)

    async def _next(self) -> Question:
        while True:
            now = anyio.current_time()
            while self._resting and self._resting[0][0] <= now:
                _, ticket, question = heapq.heappop(self._resting)
                if question.ticket == ticket and not question.retired:
                    heapq.heappush(self._ready, (question.rank, ticket, question))
            while self._ready and not self.paused:
                rank, ticket, question = self._ready[0]
                wanted = question.ticket == ticket and not question.retired
                if wanted and rank >= _DOUBTFUL and self._doubtful >= _MOST_DOUBTFUL:
                    break
                heapq.heappop(self._ready)
                if wanted:
                    return question
            until = self._resting[0][0] if self._resting else float("inf")
            self._woken = anyio.Event()
            with anyio.CancelScope(deadline=until):
                await self._woken.wait()

    async def _visit(self, question: Question, doubtful: bool) -> None:
        changed = False
        try:
            changed = await question.visit()
        except Exception:  # whatever a stranger can bring about, the others are to be asked all the same
            logger.exception("A machine could not be asked.")
        finally:
            question.running = False
            self._doubtful -= doubtful
            self._free.release()
        seconds = question.rest(self._pace)
        # All are asked at the start, and never all at once again.
        spread = random.uniform(*(_SPREAD if question.rested else _FIRST_SPREAD))  # noqa: S311
        question.rested = question.rested or seconds > 0
        question.ticket = next(self._tickets)
        until = anyio.current_time() + seconds * spread
        if seconds >= _TOGETHER_SECONDS:
            until = math.ceil(until)  # a process that wakes once for many takes half of the time for each
        heapq.heappush(self._resting, (until, question.ticket, question))
        self._woken.set()
        question.told(changed)
