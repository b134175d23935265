"""Whether an OpenCode answers at a place: asked in moderation, and one failure to answer is none."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from zeroconf import DNSIncoming, DNSOutgoing  # pyright: ignore[reportPrivateImportUsage] - as in asking

from mdns.unit_parts import place
from opencode_mcp import ProtocolError, Recognised, Route, UnreachableError
from opencode_mcp_mdns import places as module
from opencode_mcp_mdns.advert import Place
from opencode_mcp_mdns.asking import AFTER_CHANGE_SECONDS, AFTER_GOODBYE_SECONDS, Asking
from opencode_mcp_mdns.places import Outlook, Places, Visit

pytestmark = pytest.mark.anyio

HERE = place("192.168.1.20")
THERE = place("192.168.1.30")
OPENCODE = Recognised(version="1.0")
SILENT = UnreachableError("Nobody answers.")
PRINTER = ProtocolError("It is a printer.")

Outcome = Recognised | Exception


class Answers:
    """Takes the place of `recognise`: says what the test says, and counts."""

    def __init__(self) -> None:
        self.script: dict[str, list[Outcome]] = {}
        self.asked: list[str] = []
        self.seconds: list[float] = []
        self.busy = 0
        self.most = 0
        self.gate: anyio.Event | None = None
        """While there is one that is not set, nobody is answered."""

    def says(self, where: Place, *outcomes: Outcome) -> None:
        """Give these answers one after another, the last one for ever."""
        self.script[where.url] = list(outcomes)

    def times(self, where: Place) -> int:
        return self.asked.count(where.url)

    async def recognise(self, route: Route, *, seconds: float) -> Recognised:
        self.asked.append(route.base_url)
        self.seconds.append(seconds)
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            if self.gate is None:
                await anyio.lowlevel.checkpoint()
            else:
                await self.gate.wait()
        finally:
            self.busy -= 1
        outcomes = self.script.get(route.base_url, [SILENT])
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Nobody waits long, and nobody a random time."""
    answers = Answers()
    monkeypatch.setattr("opencode_mcp_mdns.places.recognise", answers.recognise)
    monkeypatch.setattr("opencode_mcp_mdns.places._RETRIES", (0.001,))
    monkeypatch.setattr("opencode_mcp_mdns.places._UNEASY_SECONDS", 0.001)
    monkeypatch.setattr("opencode_mcp_mdns.places.random.uniform", lambda low, high: 1.0)
    return answers


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was rested, though nobody really does."""
    rests: list[float] = []
    wait = anyio.move_on_after

    def move_on_after(seconds: float, **told: Any) -> anyio.CancelScope:
        rests.append(seconds)
        return wait(0, **told)

    monkeypatch.setattr("opencode_mcp_mdns.places.anyio.move_on_after", move_on_after)
    return rests


class Visiting:
    def __init__(self) -> None:
        self.uneasy: set[Place] = set()
        self.changes = 0
        self.places = Places(changed=self._changed, uneasy=lambda one: one in self.uneasy)

    def _changed(self) -> None:
        self.changes += 1

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that a visit brings about."""
        with anyio.fail_after(5):
            while not condition():
                await anyio.sleep(0.001)

    def visit(self, where: Place) -> Visit:
        visit = self.places.get(where)
        assert visit is not None
        return visit

    def answer(self, where: Place) -> Recognised | None:
        return self.visit(where).answer


@asynccontextmanager
async def visiting(*wanted: Place) -> AsyncGenerator[Visiting]:
    one = Visiting()
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: one.places.run(task_status=task_status))
        one.places.keep(wanted)
        yield one
        group.cancel_scope.cancel()


async def asked(answers: Answers, *outcomes: Outcome) -> list[Recognised | None]:
    """Ask at one place, once for each outcome; return what was known after each."""
    answers.says(HERE, *outcomes)
    visit = Visit(HERE)
    known: list[Recognised | None] = []
    for _ in outcomes:
        await visit.ask()
        known.append(visit.answer)
    return known


async def test_who_answers_is_known(answers: Answers) -> None:
    visit = Visit(HERE)
    assert (visit.asked, visit.answer, visit.problem) == (False, None, "")
    answers.says(HERE, OPENCODE)
    await visit.ask()
    assert (visit.asked, visit.answer, visit.problem) == (True, OPENCODE, "")
    assert answers.asked == ["http://192.168.1.20:4096"]
    assert answers.seconds == [2.0]


async def test_a_route_without_the_scope_in_its_host_header_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    routes: list[Route] = []

    async def recognise(route: Route, *, seconds: float) -> Recognised:
        routes.append(route)
        return OPENCODE

    monkeypatch.setattr(module, "recognise", recognise)
    await Visit(place("fe80::20%eth0")).ask()
    assert routes[0].headers == {"host": "[fe80::20]:4096"}


@pytest.mark.parametrize(
    ("outcomes", "known"),
    [
        ([SILENT], [None]),
        ([OPENCODE, SILENT], [OPENCODE, OPENCODE]),
        ([OPENCODE, SILENT, SILENT], [OPENCODE, OPENCODE, None]),
        ([OPENCODE, SILENT, OPENCODE, SILENT], [OPENCODE] * 4),
        ([OPENCODE, SILENT, SILENT, SILENT], [OPENCODE, OPENCODE, None, None]),
        ([OPENCODE, PRINTER], [OPENCODE, None]),
        ([OPENCODE, SILENT, PRINTER], [OPENCODE, OPENCODE, None]),
        ([OPENCODE, PRINTER, OPENCODE], [OPENCODE, None, OPENCODE]),
        ([SILENT, OPENCODE, SILENT], [None, OPENCODE, OPENCODE]),
        ([OPENCODE, Recognised(version="2.0")], [OPENCODE, Recognised(version="2.0")]),
    ],
)
async def test_two_failures_to_answer_drop_an_answer_and_another_answer_does_at_once(
    answers: Answers, outcomes: Sequence[Outcome], known: Sequence[Recognised | None]
) -> None:
    assert await asked(answers, *outcomes) == known


async def test_why_there_is_none_is_told_until_there_is_one(answers: Answers) -> None:
    answers.says(HERE, PRINTER, SILENT, OPENCODE)
    visit = Visit(HERE)
    problems: list[str] = []
    for _ in range(3):
        await visit.ask()
        problems.append(visit.problem)
    assert problems == ["It is a printer.", "Nobody answers.", ""]


async def test_a_visit_that_was_broken_off_counts_as_asked_and_keeps_the_answer(answers: Answers) -> None:
    await asked(answers, OPENCODE)
    visit = Visit(HERE)
    await visit.ask()
    answers.gate = anyio.Event()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await visit.ask()
    assert visit.asked
    assert visit.answer == OPENCODE


async def test_the_first_retry_is_soon_and_the_last_a_minute(
    monkeypatch: pytest.MonkeyPatch, rests: list[float]
) -> None:
    answers = Answers()
    monkeypatch.setattr(module, "recognise", answers.recognise)
    visit = Visit(HERE)
    for _ in range(9):
        await visit.ask()
        await visit.rest(uneasy=False)
    assert rests[0] < 0.5
    assert all(later > 1.3 * sooner for sooner, later in pairwise(rests[:7]))
    assert all(48 <= one <= 72 for one in rests[6:])
    assert len(set(rests)) == 9  # not all at the same moment


async def test_doubt_starts_the_waits_anew(
    monkeypatch: pytest.MonkeyPatch, answers: Answers, rests: list[float]
) -> None:
    monkeypatch.setattr(module, "_RETRIES", (1.0, 2.0, 3.0))
    visit = Visit(HERE)
    for _ in range(3):
        await visit.ask()
        await visit.rest(uneasy=False)
    visit.doubt()
    await visit.rest(uneasy=False)
    await visit.rest(uneasy=False)
    assert rests == [1.0, 2.0, 3.0, 1.0, 2.0]


async def test_who_answers_is_asked_again_each_minute_for_somebody_else_may_be_there(
    monkeypatch: pytest.MonkeyPatch, rests: list[float]
) -> None:
    answers = Answers()
    monkeypatch.setattr(module, "recognise", answers.recognise)
    answers.says(HERE, OPENCODE)
    visit = Visit(HERE)
    for _ in range(20):
        await visit.ask()
        await visit.rest(uneasy=False)
    assert all(48 <= one <= 72 for one in rests)
    assert len(set(rests)) > 1  # not all at the same moment
    rests.clear()
    await visit.rest(uneasy=True)
    assert rests[0] < 4


async def test_who_is_somebody_else_by_then_is_found_out(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REGULAR_SECONDS", 0.001)
    answers.says(HERE, OPENCODE, OPENCODE, PRINTER)
    async with visiting(HERE) as one:
        await one.until(lambda: one.answer(HERE))
        await one.until(lambda: one.answer(HERE) is None)
        assert one.visit(HERE).problem == "It is a printer."


async def test_an_answer_starts_the_waits_anew(
    monkeypatch: pytest.MonkeyPatch, answers: Answers, rests: list[float]
) -> None:
    monkeypatch.setattr(module, "_RETRIES", (1.0, 2.0, 3.0))
    answers.says(HERE, SILENT, SILENT, OPENCODE, SILENT)
    visit = Visit(HERE)
    for _ in range(4):
        await visit.ask()
        await visit.rest(uneasy=True)
    assert rests == [1.0, 2.0, 0.001, 1.0]


async def test_who_answers_is_left_alone_until_there_is_a_doubt(answers: Answers) -> None:
    answers.says(HERE, OPENCODE)
    answers.says(THERE, SILENT)
    async with visiting(HERE, THERE) as one:
        await one.until(lambda: answers.times(THERE) > 20)
        assert answers.times(HERE) == 1
        one.visit(HERE).doubt()
        await one.until(lambda: answers.times(HERE) == 2)
        before = answers.times(THERE)
        await one.until(lambda: answers.times(THERE) > before + 20)
        assert answers.times(HERE) == 2


async def test_who_answers_where_nobody_claims_any_more_is_watched(answers: Answers) -> None:
    answers.says(HERE, OPENCODE)
    async with visiting() as one:
        one.uneasy.add(HERE)
        one.places.keep({HERE})
        await one.until(lambda: answers.times(HERE) > 5)
        one.uneasy.clear()
        answers.says(THERE, SILENT)
        one.places.keep({HERE, THERE})
        await one.until(lambda: answers.times(THERE) > 3)
        before = answers.times(HERE)
        await one.until(lambda: answers.times(THERE) > 20)
        assert answers.times(HERE) == before


async def test_who_failed_once_is_asked_again_soon_and_dropped_the_second_time(answers: Answers) -> None:
    answers.says(HERE, OPENCODE, SILENT)
    async with visiting(HERE) as one:
        await one.until(lambda: one.answer(HERE))
        one.visit(HERE).doubt()
        await one.until(lambda: one.answer(HERE) is None)
        assert answers.times(HERE) == 3


async def test_a_doubt_while_it_is_asked_makes_it_ask_again(answers: Answers) -> None:
    answers.says(HERE, OPENCODE)
    answers.gate = anyio.Event()
    async with visiting(HERE) as one:
        with anyio.fail_after(5):
            while not answers.busy:
                await anyio.lowlevel.checkpoint()
        one.visit(HERE).doubt()
        answers.gate.set()
        await one.until(lambda: answers.times(HERE) == 2 and not answers.busy)


async def test_one_that_is_given_up_is_no_more_and_asked_at_once(answers: Answers) -> None:
    answers.says(HERE, OPENCODE)
    async with visiting(HERE) as one:
        await one.until(lambda: one.answer(HERE))
        answers.gate = anyio.Event()
        one.visit(HERE).give_up()
        assert one.answer(HERE) is None
        answers.gate.set()
        await one.until(lambda: one.answer(HERE) == OPENCODE)
        assert answers.times(HERE) == 2


async def test_a_visit_is_told_of_only_if_it_found_something_else_than_before(answers: Answers) -> None:
    answers.says(HERE, OPENCODE)
    async with visiting(HERE) as one:
        await one.until(lambda: one.answer(HERE))
        assert one.changes == 1
        one.visit(HERE).doubt()
        await one.until(lambda: answers.times(HERE) == 2 and not answers.busy)
        await anyio.wait_all_tasks_blocked()
        assert one.changes == 1
        answers.says(HERE, Recognised(version="2.0"))
        one.visit(HERE).doubt()
        await one.until(lambda: one.changes == 2)


async def test_all_are_settled_when_each_was_asked_once(answers: Answers) -> None:
    answers.says(HERE, OPENCODE)
    async with visiting() as one:
        assert one.places.settled
        answers.gate = anyio.Event()
        one.places.keep({HERE, THERE})
        assert not one.places.settled
        answers.gate.set()
        await one.until(lambda: one.places.settled)
        assert {one.answer(HERE), one.answer(THERE)} == {OPENCODE, None}


async def test_what_is_wanted_no_more_is_asked_no_more(answers: Answers) -> None:
    answers.says(HERE, SILENT)
    answers.says(THERE, SILENT)
    async with visiting(HERE, THERE) as one:
        await one.until(lambda: answers.times(HERE) > 3 and answers.times(THERE) > 3)
        kept = one.visit(THERE)
        one.places.keep({THERE})
        assert one.places.get(HERE) is None
        before, later = answers.times(HERE), answers.times(THERE) + 20
        await one.until(lambda: answers.times(THERE) > later)
        assert answers.times(HERE) == before
        assert one.visit(THERE) is kept


async def test_a_question_under_way_ends_with_the_visit(answers: Answers) -> None:
    answers.gate = anyio.Event()
    async with visiting(HERE) as one:
        with anyio.fail_after(5):
            while not answers.busy:
                await anyio.lowlevel.checkpoint()
            one.places.keep(set())
            while answers.busy:
                await anyio.lowlevel.checkpoint()
        assert one.changes == 0


async def test_what_is_dropped_and_wanted_again_in_the_same_breath_is_asked_anew(answers: Answers) -> None:
    answers.says(HERE, OPENCODE)
    async with visiting(HERE) as one:
        one.places.keep(set())
        one.places.keep({HERE})
        await one.until(lambda: one.answer(HERE))
        first = one.visit(HERE)
        one.places.keep(set())
        one.places.keep({HERE})
        assert one.visit(HERE) is not first
        assert one.answer(HERE) is None
        await one.until(lambda: one.answer(HERE))


async def test_thirty_two_newcomers_are_asked_at_once_and_no_more(answers: Answers) -> None:
    many = [place(f"192.168.1.{number}") for number in range(20, 120)]
    for one in many:
        answers.says(one, OPENCODE)
    answers.gate = anyio.Event()
    async with visiting(*many) as one:
        with anyio.fail_after(5):
            while answers.busy < 32:
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert answers.busy == 32
        answers.gate.set()
        await one.until(lambda: one.places.settled)
        assert answers.most == 32
        assert len(answers.asked) == 100


async def test_what_to_expect_at_an_address_is_what_was_found_there(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.says(HERE, OPENCODE)
    answers.says(THERE, SILENT)
    async with visiting(HERE, THERE) as one:
        await one.until(lambda: one.places.settled)
        assert one.places.outlook(HERE.address) is Outlook.GOOD
        assert one.places.outlook(THERE.address) is Outlook.OPEN  # it refused
        monkeypatch.setattr(module, "_ASK_SECONDS", 0.0)  # now no answer is silence
        await one.until(lambda: one.places.outlook(THERE.address) is Outlook.BAD)
        monkeypatch.setattr(module, "_SILENT_SECONDS", 0.0)
        await one.until(lambda: one.places.outlook(THERE.address) is Outlook.OPEN)
        one.places.keep(set())
        assert one.places.outlook(HERE.address) is Outlook.OPEN


async def test_those_that_do_not_answer_leave_room_for_newcomers(answers: Answers) -> None:
    many = [place(f"192.168.1.{number}") for number in range(20, 120)]
    answers.says(HERE, OPENCODE)
    async with visiting(*many) as one:
        await one.until(lambda: one.places.settled)
        answers.gate = anyio.Event()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            while answers.busy < 8:
                await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        assert answers.busy == 8
        new = place("192.168.1.200")
        one.places.keep({*many, new})
        with anyio.fail_after(5):
            while not answers.times(new):
                await anyio.lowlevel.checkpoint()
        answers.gate.set()


async def test_one_that_answered_is_asked_again_before_those_that_did_not(answers: Answers) -> None:
    many = [place(f"192.168.1.{number}") for number in range(20, 60)]
    answers.says(HERE, OPENCODE)
    async with visiting(*many) as one:
        await one.until(lambda: one.places.settled)
        answers.gate = anyio.Event()
        with anyio.fail_after(5):
            while answers.busy < 8:
                await anyio.sleep(0.001)
            one.visit(HERE).doubt()
            while answers.times(HERE) < 2:
                await anyio.lowlevel.checkpoint()
        answers.gate.set()


async def test_nothing_is_visited_before_it_runs() -> None:
    one = Visiting()
    one.places.keep({HERE})
    assert one.places.get(HERE) is None
    assert one.places.settled


async def test_all_visits_end_with_the_run(answers: Answers) -> None:
    answers.gate = anyio.Event()
    async with visiting(HERE, THERE):
        with anyio.fail_after(5):
            while answers.busy < 2:
                await anyio.lowlevel.checkpoint()
    assert answers.busy == 0


async def test_newcomers_at_an_address_where_nobody_answers_leave_room_for_others(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.0)  # no answer is silence
    many = [place("192.168.1.66", port) for port in range(4000, 4100)]
    async with visiting(many[0]) as one:
        await one.until(lambda: one.places.outlook(many[0].address) is Outlook.BAD)
        answers.gate = anyio.Event()
        one.places.keep({*many, HERE})
        with anyio.fail_after(5):
            while not answers.times(HERE):
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert answers.busy == 8 + 1
        answers.gate.set()


async def test_newcomers_that_wait_give_their_turn_up_when_the_address_turns_out_to_be_silent(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(module, "_RETRIES", (60.0,))
    many = [place("192.168.1.66", port) for port in range(4000, 4100)]
    answers.gate = anyio.Event()
    async with visiting(*many) as one:
        with anyio.fail_after(5):
            while answers.busy < 32:
                await anyio.lowlevel.checkpoint()
        gate, answers.gate, answers.most = answers.gate, anyio.Event(), 0
        gate.set()
        await anyio.wait_all_tasks_blocked()
        assert len(answers.asked) == 32 + 8
        assert answers.busy == 8
        answers.gate.set()
        await one.until(lambda: one.places.settled)
        assert len(answers.asked) == 100


async def test_a_refusal_is_no_silence(answers: Answers) -> None:
    answers.says(HERE, SILENT)
    visit = Visit(HERE)
    await visit.ask()
    assert not visit.silent


async def test_silence_is_that_of_the_last_time(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit(HERE)
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.0)
    await visit.ask()
    assert visit.silent
    answers.says(HERE, OPENCODE)
    await visit.ask()
    assert not visit.silent


async def test_only_so_many_silent_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENT_ADDRESSES", 3)
    one = Visiting().places
    for number in (20, 21, 22, 20, 23):
        one._note_silence(place(f"192.168.1.{number}").address)
    silent = [
        number for number in range(20, 24) if one.outlook(place(f"192.168.1.{number}").address) is Outlook.BAD
    ]
    assert silent == [20, 22, 23]


# When the network is asked who is there


class Questions:
    """Take the place of zeroconf: note what was sent, and when."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.sent: list[DNSOutgoing] = []
        self.asked = anyio.Event()

    def async_send(self, question: DNSOutgoing) -> None:
        self.began.append(anyio.current_time())
        self.sent.append(question)
        self.asked.set()
        self.asked = anyio.Event()

    async def until(self, times: int) -> None:
        with anyio.fail_after(5):
            while len(self.began) < times:
                await self.asked.wait()


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Questions:
    monkeypatch.setattr("opencode_mcp_mdns.asking._APART_SECONDS", 0.01)
    return Questions()


def asking(questions: Questions, asked: Callable[[], None] = lambda: None) -> Asking:
    session: Any = SimpleNamespace(zeroconf=SimpleNamespace(zeroconf=questions))
    return Asking(session, ["_x._tcp.local.", "_y._tcp.local."], asked)


@asynccontextmanager
async def running(one: Asking, every_seconds: float = 3600) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(one.run, every_seconds)
        await anyio.wait_all_tasks_blocked()
        yield
        group.cancel_scope.cancel()


async def test_the_network_is_asked_again_and_again(questions: Questions) -> None:
    async with running(asking(questions), every_seconds=0.02):
        await questions.until(3)
    assert all(later - sooner >= 0.02 for sooner, later in pairwise(questions.began))


async def test_it_is_not_asked_before_that_unless_somebody_wants_to_know(questions: Questions) -> None:
    one = asking(questions)
    async with running(one):
        assert questions.began == []
        began = anyio.current_time()
        one.soon((0.03,))
        await questions.until(1)
        assert 0.03 <= questions.began[0] - began < 1
        await anyio.sleep(0.05)
        assert len(questions.began) == 1


async def test_a_hundred_goodbyes_are_one_question(questions: Questions) -> None:
    one = asking(questions)
    async with running(one):
        for _ in range(100):
            one.soon((0.02,))
        await questions.until(1)
        await anyio.sleep(0.08)
        assert len(questions.began) == 1
        one.soon((0.02,))  # what has been asked does not count any more
        await questions.until(2)


async def test_a_question_that_is_wanted_sooner_than_any_is_asked_sooner(questions: Questions) -> None:
    one = asking(questions)
    async with running(one):
        one.soon((3600,))
        one.soon((0.3,))
        one.soon((0.0,))
        began = anyio.current_time()
        await questions.until(1)
        assert anyio.current_time() - began < 0.3
        await questions.until(2)  # the others are asked all the same


async def test_a_question_is_one_packet_for_answers_by_multicast_that_says_nothing_of_what_is_known(
    questions: Questions,
) -> None:
    one = asking(questions)
    one.soon((0.0,))
    async with running(one):
        await questions.until(1)
    (packet,) = questions.sent[0].packets()
    question = DNSIncoming(packet)
    assert question.is_query()
    assert [(it.name, it.type, it.class_, it.unique) for it in question.questions] == [
        ("_x._tcp.local.", 12, 1, False),
        ("_y._tcp.local.", 12, 1, False),
    ]
    assert question.answers() == []


async def test_somebody_is_told_of_each_regular_question_and_of_no_other(questions: Questions) -> None:
    told: list[int] = []
    one = asking(questions, lambda: told.append(len(questions.sent)))
    async with running(one, every_seconds=3600):
        one.soon((0.0,))
        await questions.until(1)
        await anyio.wait_all_tasks_blocked()
        assert told == []
    async with running(one, every_seconds=0.02):
        await questions.until(3)
        await anyio.wait_all_tasks_blocked()
    assert told[:2] == [2, 3]


async def test_what_is_asked_at_about_that_time_anyway_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    one = asking(Questions())
    one.soon(AFTER_GOODBYE_SECONDS)
    assert len(one._due) == 2
    one.soon([delay + 0.2 for delay in AFTER_GOODBYE_SECONDS])
    assert len(one._due) == 2
    one.soon(AFTER_CHANGE_SECONDS)
    assert len(one._due) == 3


async def test_after_a_goodbye_there_are_two_questions_before_it_is_believed() -> None:
    assert AFTER_GOODBYE_SECONDS == (0.2, 1.2)


@pytest.mark.parametrize("delays", [AFTER_GOODBYE_SECONDS, AFTER_CHANGE_SECONDS])
async def test_it_is_asked_once_after_each_of_the_delays(
    questions: Questions, delays: Sequence[float]
) -> None:
    one = asking(questions)
    short = [delay / 20 for delay in delays]
    async with running(one):
        began = anyio.current_time()
        for _ in range(3):
            one.soon(short)
        await anyio.sleep(short[-1] + 0.15)
    assert len(questions.began) == len(delays)
    assert all(asked - began >= delay for asked, delay in zip(questions.began, short, strict=True))
