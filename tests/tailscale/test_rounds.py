"""When which machine is asked: how long, how often, how many at once, and when what is gone is believed."""

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import anyio
import pytest

from opencode_mcp_tailscale import rounds as module
from opencode_mcp_tailscale.asking import Answer, Outcome
from opencode_mcp_tailscale.index import Entry
from opencode_mcp_tailscale.rounds import AT_ONCE, GONE_SECONDS, PATIENCE, Pace, Question, Rounds
from support.fleets import until

pytestmark = pytest.mark.anyio

ENTRY, OTHER_ENTRY = Entry(id="k", path="/i/k/"), Entry(id="l", path="/i/l/")
BOTH = Answer(outcome=Outcome.FOUND, entries=[ENTRY, OTHER_ENTRY])
LATTER = Answer(outcome=Outcome.FOUND, entries=[OTHER_ENTRY])
FOUND = Answer(outcome=Outcome.FOUND, entries=[ENTRY])
NOBODY = Answer(outcome=Outcome.NOBODY)
SILENCE = Answer(outcome=Outcome.SILENCE)
OTHER = Answer(outcome=Outcome.OTHER, problem="A web page.")


class Clock:
    """The time of the rounds, which a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def current_time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.anyio.current_time", one.current_time)
    return one


class Asked:
    """A question with answers by hand.

    Attributes:
        patience: How long each connection could take.
        told: Whether each answer changed something.
    """

    def __init__(self, *answers: Answer, **given: Any) -> None:
        self.answers = list(answers)
        self.patience: list[float] = []
        self.told: list[bool] = []
        self.question = Question(self._ask, self.told.append, **given)

    async def _ask(self, patience: float) -> Answer:
        self.patience.append(patience)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def after(self, *answers: Answer) -> float:
        """Give some answers; return how long it rests after the last."""
        rest = 0.0
        for answer in answers:
            self.answers = [answer]
            await self.question.visit()
            rest = self.question.rest(Pace(30.0))
        return rest


# A question


async def test_a_connection_is_given_ever_more_time_until_something_comes_back() -> None:
    one = Asked(SILENCE)
    await one.after(*[SILENCE] * 5)
    assert one.patience == [0.1, 0.4, 2.0, 2.0, 2.0]
    await one.after(NOBODY, NOBODY)
    assert one.patience[5:] == [2.0, 0.1]


async def test_where_something_is_a_connection_gets_all_the_time_at_once() -> None:
    one = Asked(FOUND)
    await one.after(FOUND, FOUND)
    assert one.patience == [PATIENCE[0], PATIENCE[-1]]


async def test_who_never_answers_is_asked_ever_more_rarely() -> None:
    one = Asked(SILENCE)
    rests = [await one.after(SILENCE) for _ in range(20)]
    assert rests[:8] == [0, 0, 60, 120, 240, 480, 960, 1800]
    assert set(rests[8:]) == {1800}


async def test_where_nobody_listens_it_is_asked_at_the_regular_pace() -> None:
    one = Asked(NOBODY)
    assert [await one.after(answer) for answer in (NOBODY, OTHER, NOBODY)] == [30, 30, 30]
    assert await one.after(SILENCE, SILENCE, SILENCE) == 60
    assert await one.after(NOBODY) == 30  # it was not the rules of the tailnet after all
    assert await one.after(SILENCE) == 0


async def test_where_something_is_it_is_asked_at_its_own_pace() -> None:
    assert await Asked(FOUND, index=True).after(FOUND) == 5
    assert await Asked(FOUND).after(FOUND) == 30


async def test_what_falls_silent_stays_and_is_asked_ever_more_rarely() -> None:
    one = Asked(FOUND)
    rests = [await one.after(answer) for answer in (FOUND, *[SILENCE] * 6)]
    assert rests == [30, 2, 5, 15, 30, 30, 30]
    assert one.question.entries == [ENTRY]


async def test_what_is_refused_is_gone_after_six_seconds_and_not_before(clock: Clock) -> None:
    assert GONE_SECONDS == 6  # an announcer that ends is followed within 5 s
    one = Asked(FOUND)
    await one.after(FOUND)
    for seconds, rest in ((0, 2), (2, 2), (3, 1), (0.9, 0.1)):  # asked right when that time is over
        clock.now += seconds
        assert await one.after(NOBODY) == pytest.approx(rest)
        assert one.question.entries == [ENTRY]
    clock.now += 0.11
    assert await one.after(NOBODY) == 30
    assert one.question.entries is None


@pytest.mark.parametrize("between", [FOUND, SILENCE])
async def test_an_answer_between_two_refusals_starts_anew(clock: Clock, between: Answer) -> None:
    one = Asked(FOUND)
    await one.after(FOUND, NOBODY)
    clock.now += 5
    await one.after(between)
    clock.now += 5
    await one.after(NOBODY)
    assert one.question.entries == [ENTRY]


async def test_somebody_else_at_the_place_of_an_instance_is_as_nobody(clock: Clock) -> None:
    one = Asked(FOUND)
    await one.after(FOUND, OTHER)
    assert (one.question.entries, one.question.problem) == ([ENTRY], "A web page.")
    clock.now += 7
    await one.after(OTHER)
    assert one.question.entries is None


async def test_what_is_refused_once_and_silent_then_is_asked_ever_more_rarely() -> None:
    one = Asked(FOUND)
    assert await one.after(FOUND, NOBODY) == 2
    assert [await one.after(SILENCE) for _ in range(4)] == [2, 5, 15, 30]


async def test_an_instance_that_an_index_tells_no_more_of_is_gone_at_once() -> None:
    one = Asked(FOUND, index=True)
    await one.after(FOUND, Answer(outcome=Outcome.FOUND))
    assert one.question.entries == []


@pytest.mark.parametrize("away", [NOBODY, SILENCE, OTHER])
async def test_an_index_that_comes_back_may_lack_what_it_had_for_15_seconds(
    clock: Clock, away: Answer
) -> None:
    one = Asked(index=True)
    assert await one.after(BOTH) == 5
    await one.after(away)
    clock.now += 3
    assert await one.after(LATTER) == 5
    assert one.question.entries == [OTHER_ENTRY, ENTRY]
    clock.now += 14
    assert await one.after(LATTER) == pytest.approx(1)
    assert one.question.entries == [OTHER_ENTRY, ENTRY]
    clock.now += 1
    assert await one.after(LATTER) == 5
    assert one.question.entries == [OTHER_ENTRY]


async def test_what_is_told_again_by_an_index_that_came_back_is_told_once_and_can_go_at_once() -> None:
    one = Asked(index=True)
    await one.after(BOTH, NOBODY, LATTER, BOTH)
    assert one.question.entries == [ENTRY, OTHER_ENTRY]
    await one.after(LATTER)
    assert one.question.entries == [OTHER_ENTRY]


async def test_an_index_that_comes_and_goes_does_not_keep_what_it_lacks(clock: Clock) -> None:
    one = Asked(index=True)
    await one.after(BOTH)
    for _ in range(4):
        await one.after(NOBODY, LATTER)
        clock.now += 4
    await one.after(LATTER)
    assert one.question.entries == [OTHER_ENTRY]


async def test_an_index_that_is_refused_after_it_came_back_goes_with_all_it_had(clock: Clock) -> None:
    one = Asked(index=True)
    await one.after(BOTH, SILENCE, LATTER, NOBODY)
    clock.now += 6
    await one.after(NOBODY)
    assert one.question.entries is None
    await one.after(LATTER)
    assert one.question.entries == [OTHER_ENTRY]


async def test_an_index_that_was_silent_until_this_machine_was_back_may_lack_what_it_had() -> None:
    one = Asked(index=True)
    await one.after(BOTH, SILENCE)
    one.question.hurry()
    await one.after(LATTER)
    assert one.question.entries == [OTHER_ENTRY, ENTRY]


async def test_with_50_indexes_one_that_is_refused_is_gone_within_14_seconds(clock: Clock) -> None:
    pace = Pace(30.0)
    pace.questions, pace.indexes = 4000, 50
    one = Asked(NOBODY, index=True)
    await one.after(FOUND)
    one.answers = [NOBODY]
    spread = module._SPREAD[1]
    taken = one.question.rest(pace) * spread + 0.5  # and to a whole second
    for _ in range(20):
        await one.question.visit()
        if one.question.entries is None:
            break
        rest = one.question.rest(pace) * spread
        clock.now += rest
        taken += rest
    assert one.question.entries is None
    assert taken < 14


@pytest.mark.parametrize("answer", [NOBODY, FOUND, OTHER])
async def test_a_question_is_settled_by_any_answer(answer: Answer) -> None:
    one = Asked(answer)
    assert not one.question.settled
    await one.after(answer)
    assert one.question.settled


async def test_a_question_is_settled_by_silence_once_all_patience_is_used_up() -> None:
    one = Asked(SILENCE)
    settled: list[bool] = []
    for _ in range(5):
        await one.after(SILENCE)
        settled.append(one.question.settled)
    assert settled == [False, False, True, True, True]
    other = Asked(SILENCE)
    await other.after(FOUND, SILENCE)
    assert other.question.settled


async def test_a_visit_tells_whether_anything_has_changed() -> None:
    one = Asked(NOBODY, NOBODY, FOUND, FOUND, OTHER)
    assert [await one.question.visit() for _ in range(5)] == [True, False, True, False, True]


async def test_what_is_forgotten_is_not_known_until_it_answers() -> None:
    one = Asked(FOUND)
    await one.after(FOUND, NOBODY)
    one.question.forget()
    assert one.question.entries is None
    await one.after(FOUND)
    assert one.question.entries == [ENTRY]


async def test_hurry_makes_a_dropper_one_that_is_worth_asking() -> None:
    one = Asked(SILENCE)
    await one.after(*[SILENCE] * 5)
    one.question.hurry()
    assert one.question.rank == 6
    assert await one.after(SILENCE) == 0
    assert one.patience[-1] == PATIENCE[0]


async def test_the_more_likely_an_answer_the_sooner_one_is_asked() -> None:
    known, fresh = Asked(FOUND), Asked(NOBODY)
    busy, index, port = Asked(SILENCE, index=True, likely=True), Asked(SILENCE, index=True), Asked(SILENCE)
    await known.after(FOUND)
    await fresh.after(NOBODY)
    ranks = [one.question.rank for one in (known, busy, index, port, fresh)]
    assert ranks == [0, 1, 2, 6, 7]
    for one, worse in ((known, [3, 3, 3]), (busy, [4, 5, 10]), (port, [8, 9, 10]), (fresh, [8, 9, 10])):
        assert not one.question.is_doubtful
        for rank in worse:
            await one.after(SILENCE)
            assert (one.question.rank, one.question.is_doubtful) == (rank, True)


def test_with_thousands_of_machines_questions_are_rarer() -> None:
    pace = Pace(30.0)
    assert (pace.regular, pace.index) == (30, 5)
    pace.questions, pace.indexes = 4000, 100
    assert pace.regular == 4000 / module._QUESTIONS_EACH_SECOND > 30
    assert pace.index == 100 / module._INDEXES_EACH_SECOND > 5
    pace.indexes = 30
    assert pace.index == 5
    assert Pace(1.0).index == 1


# The rounds


@pytest.fixture
async def rounds() -> AsyncGenerator[Rounds]:
    one = Rounds(0.02)
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        yield one
        group.cancel_scope.cancel()


class Held:
    """Questions that are answered when the test says so.

    Attributes:
        asked: Which were asked, in order.
        now: How many are being asked.
        most: The most there were of these.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.now = self.most = 0
        self.release = anyio.Semaphore(0)

    def question(
        self, name: str, told: Callable[[bool], None] = lambda _: None, answer: Answer = NOBODY, **given: Any
    ) -> Question:
        async def ask(_: float) -> Answer:
            self.asked.append(name)
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await self.release.acquire()
            finally:
                self.now -= 1
            return answer

        return Question(ask, told, **given)

    def go(self, count: int) -> None:
        for _ in range(count):
            self.release.release()


@contextlib.asynccontextmanager
async def running(questions: Sequence[Question], rounds: Rounds | None = None) -> AsyncGenerator[Rounds]:
    """Rounds that begin with these."""
    one = rounds or Rounds(60.0)
    for question in questions:
        one.add(question)
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        yield one
        group.cancel_scope.cancel()


async def test_32_are_asked_at_once_and_never_more() -> None:
    held = Held()
    async with running([held.question(str(number)) for number in range(100)]):
        await until(lambda: held.now == AT_ONCE)
        held.go(100)
        await until(lambda: len(held.asked) == 100 and not held.now)
    assert AT_ONCE == 32
    assert held.most == AT_ONCE
    assert len(set(held.asked)) == 100


async def test_those_that_may_not_answer_leave_room_for_the_others() -> None:
    held = Held()
    silent = [held.question(f"silent {number}", answer=SILENCE) for number in range(60)]
    room = module._MOST_DOUBTFUL
    async with running(silent) as rounds:
        held.go(60)
        await until(lambda: len(held.asked) == 60 + room and held.now == room)
        for number in range(20):
            rounds.add(held.question(f"other {number}"))
        await until(lambda: held.now == AT_ONCE)
        assert {one.split()[0] for one in held.asked[60 + room :]} == {"other"}
        held.go(300)
        await until(lambda: len(held.asked) == 200 and not held.now)
    assert held.most == AT_ONCE


async def test_those_that_are_due_are_asked_by_rank_and_then_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)
    held = Held()
    held.go(10)
    questions = [
        held.question("port"),
        held.question("index"),
        held.question("index 2", index=True),
        held.question("likely", index=True, likely=True),
        held.question("index 3", index=True),
    ]
    await questions[1].visit()
    held.asked.clear()
    one = Rounds(60.0)
    for question in questions[2:]:
        one.add(question)
    one._put(questions[1], 97)
    one._put(questions[0], 98)
    async with running([], rounds=one):
        await until(lambda: len(held.asked) == 5)
    assert held.asked == ["likely", "index 2", "index 3", "port", "index"]


async def test_a_question_is_asked_again_after_its_rest(rounds: Rounds) -> None:
    one = Asked(NOBODY)
    rounds.add(one.question)
    await until(lambda: len(one.patience) >= 3)
    assert one.told[:3] == [True, False, False]


async def test_a_retired_question_is_asked_no_more_and_one_that_is_added_anew_is(rounds: Rounds) -> None:
    one, other = Asked(NOBODY), Asked(NOBODY)
    rounds.add(one.question)
    rounds.add(other.question)
    await until(lambda: len(one.patience) >= 2)
    one.question.retired = True
    asked = len(one.patience)
    seen = len(other.patience)
    await until(lambda: len(other.patience) > seen + 3)
    assert len(one.patience) <= asked + 1  # it may just have been under way
    one.question.retired = False
    rounds.add(one.question)
    asked = len(one.patience)
    await until(lambda: len(one.patience) > asked)


async def test_a_question_that_is_retired_before_its_turn_is_not_asked() -> None:
    one, other = Asked(NOBODY), Asked(NOBODY)
    async with running([]) as rounds:
        rounds.add(one.question)
        rounds.add(other.question)
        one.question.retired = True
        await until(lambda: other.told)
    assert one.patience == []


async def test_a_question_that_is_added_twice_is_asked_once() -> None:
    held = Held()
    question = held.question("x")
    async with running([question, question, held.question("y")]):
        await until(lambda: len(held.asked) == 2)
        held.go(2)
        await until(lambda: not held.now)
    assert sorted(held.asked) == ["x", "y"]


async def test_a_question_in_a_hurry_is_not_asked_twice_at_once_but_again_right_after() -> None:
    held = Held()
    question = held.question("x")
    async with running([question]) as rounds:
        await until(lambda: held.now == 1)
        rounds.add(question)
        rounds.add(question)
        held.go(1)
        await until(lambda: len(held.asked) == 2)
        held.go(5)
        await until(lambda: not held.now)
    assert (held.asked, held.most) == (["x", "x"], 1)


async def test_a_question_that_rests_is_asked_at_once_if_it_is_added_anew() -> None:
    one = Asked(NOBODY)
    async with running([one.question]) as rounds:
        await until(lambda: len(one.told) == 1)
        rounds.add(one.question)
        await until(lambda: len(one.told) == 2)


async def test_while_the_rounds_pause_nobody_is_asked() -> None:
    one = Asked(NOBODY)
    rounds = Rounds(0.02)
    rounds.pause(True)
    rounds.add(one.question)
    async with anyio.create_task_group() as group:
        group.start_soon(rounds.run)
        await anyio.wait_all_tasks_blocked()
        assert one.patience == []
        rounds.pause(False)
        await until(lambda: len(one.patience) >= 2)
        group.cancel_scope.cancel()


async def test_an_index_that_was_missed_is_asked_again_before_thousands_of_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)
    held = Held()
    held.go(300)
    missed = held.question("missed", answer=SILENCE, index=True)
    async with running([missed, *(held.question(f"port {number}") for number in range(100))]):
        await until(lambda: len(held.asked) == 103)
    assert held.asked[:4] == ["missed", "missed", "missed", "port 0"]


async def test_when_there_is_no_room_for_the_doubtful_the_others_are_asked_though_they_rank_lower() -> None:
    held = Held()
    room = module._MOST_DOUBTFUL
    silent = [held.question("silent", answer=SILENCE, index=True) for _ in range(room + 4)]
    async with running([*silent, *(held.question("port") for _ in range(3))]):
        held.go(room + 4)
        await until(lambda: held.now == room + 3)
        assert sorted(held.asked[room + 4 :]) == ["port"] * 3 + ["silent"] * room


async def test_all_are_asked_at_once_when_this_machine_is_back_those_that_are_known_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)
    held = Held()
    names = ("port", "dropper", "index", "known", "retired", "under way")
    questions = {
        name: held.question(name, answer=NOBODY, index=name in ("index", "known", "dropper"))
        for name in names
    }
    rounds = Rounds(60.0)
    for name, question in questions.items():
        if name != "under way":
            held.go(1)
            await question.visit()
            for _ in range(4 * (name == "dropper")):
                question._take(SILENCE)
            if name == "known":
                question._take(FOUND)
                question._take(SILENCE)
            rounds._rest(question, 1000.0)
    questions["retired"].retired = True
    held.asked.clear()
    rounds.add(questions["under way"])
    async with running([], rounds=rounds):
        await until(lambda: held.now == 1)
        rounds.hurry_all()
        held.go(10)
        await until(lambda: len(held.asked) == 6)
        await anyio.wait_all_tasks_blocked()
    assert held.asked[:2] == ["under way", "known"]
    assert sorted(held.asked[2:4]) == ["dropper", "index"]
    assert sorted(held.asked[4:]) == ["port", "under way"]
    assert not questions["dropper"].is_doubtful


async def test_a_silence_that_began_before_this_machine_was_back_does_not_count() -> None:
    held = Held()
    question = held.question("x", answer=SILENCE)
    async with running([question]) as rounds:
        await until(lambda: held.now == 1)
        rounds.hurry_all()
        held.go(1)
        await until(lambda: len(held.asked) == 2)
        assert not question.is_doubtful


async def test_to_hurry_thousands_takes_no_time() -> None:
    took: list[float] = []
    for _ in range(5):
        rounds = Rounds(60.0)
        for number in range(4000):
            rounds._rest(Asked(NOBODY).question, 1000.0 + number % 10)
        began = time.thread_time()
        rounds.hurry_all()
        took.append(time.thread_time() - began)
        assert len(rounds._ready) == 4000
    assert min(took) < 0.2  # 0.01 on a machine of today, but for what else it does


class Unforeseen:
    """Something that fails in a way that nobody thought of.

    Attributes:
        failed: How often.
        error: What it raises.
    """

    def __init__(self) -> None:
        self.failed = 0
        self.error: type[Exception] = RuntimeError

    def fail(self) -> None:
        self.failed += 1
        raise self.error("unforeseen")

    async def ask(self, _: float) -> Answer:
        self.fail()
        return NOBODY

    def told(self, _: bool) -> None:
        self.fail()


async def test_a_question_that_fails_in_an_unforeseen_way_is_logged_once_and_the_others_are_asked(
    rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    unforeseen = Unforeseen()
    bad, good = Question(unforeseen.ask, lambda _: None), Asked(NOBODY)
    for turn in range(AT_ONCE + 1):
        unforeseen.error = RuntimeError if turn < AT_ONCE - 5 else LookupError
        rounds.add(bad)
        seen = len(good.patience)
        rounds.add(good.question)
        await until(lambda: len(good.patience) > seen)  # noqa: B023
    assert unforeseen.failed > AT_ONCE
    assert [one.exc_info[0] for one in caplog.records if one.exc_info] == [RuntimeError, LookupError]
    assert bad.asked
    assert "could not be asked" in bad.problem


async def test_who_is_told_and_fails_in_an_unforeseen_way_harms_nobody(
    rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    unforeseen, good = Unforeseen(), Asked(NOBODY)
    rounds.add(Question(Asked(NOBODY)._ask, unforeseen.told))
    rounds.add(good.question)
    await until(lambda: unforeseen.failed > AT_ONCE)
    await until(lambda: len(good.patience) > AT_ONCE)
    assert len(caplog.records) == 1


async def test_cancellation_is_no_failure_of_a_machine() -> None:
    cancelled = anyio.get_cancelled_exc_class()

    def told(_: bool) -> None:
        raise cancelled

    async def ask(_: float) -> Answer:
        raise cancelled

    with pytest.raises(cancelled):
        Question(ask, told).tell(True)
    with pytest.raises(cancelled):
        await Question(ask, told).visit()
