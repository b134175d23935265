"""Talking with instances that are slow, odd, or leave in the middle."""

import time
from collections.abc import Mapping

import anyio
import pytest
from starlette.responses import JSONResponse

from opencode_mcp.conversation import Conversation
from opencode_mcp.conversation.listening import Silent
from opencode_mcp.errors import ConversationError
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.testing import FakeOpenCode, Fault, Gate, Reply
from support.fleets import Listed, endpoint, only, running_fleet, status, until
from support.generations import MakeFake

pytestmark = pytest.mark.anyio


class Odd(FakeOpenCode):
    """Answers some paths in a way of its own: after a delay, or with a status."""

    delays: Mapping[str, float] = {}
    answers: Mapping[str, JSONResponse] = {}
    takes_it_and_fails: str = ""

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        for end, seconds in self.delays.items():
            if path.endswith(end):
                await anyio.sleep(seconds)
        for end, response in self.answers.items():
            if path.endswith(end):
                await response(scope, receive, send)
                return
        if self.takes_it_and_fails and path.endswith(self.takes_it_and_fails):

            async def swallow(message):
                pass

            await super().__call__(scope, receive, swallow)
            await JSONResponse({"message": "scripted"}, 500)(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


class Hears(Silent):
    def __init__(self):
        self.pieces: list[str] = []
        self.signs: list[str] = []

    async def text(self, piece: str):
        self.pieces.append(piece)

    async def sign_of_life(self, what: str):
        self.signs.append(what)


@pytest.mark.slow
async def test_a_server_whose_sessions_are_not_known_yet_is_asked_for_them(make_fake: MakeFake):
    fake, listed = make_fake(of=Odd), Listed()
    other, session = fake.create_session("Another"), fake.create_session("My old work")
    fake.set_busy(other)
    fake.fault = Fault.HANG  # the snapshot is never complete
    fake.fault_path = make_fake.either("/permission", f"/api/session/{other}/permission")
    async with (
        fake.serve(),
        running_fleet(listed, pace=Pace(probe=5), server_password=make_fake.password) as fleet,
    ):
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "online")
        talk = Conversation(fleet, patience=0.1)
        assert (await talk.read("laptop")).session_id == session
        assert (await talk.send("laptop", "go on", seconds=5)).session_id == session
        assert list(fake.sessions) == [other, session]


@pytest.mark.slow
async def test_the_waiting_ends_in_time_though_the_server_takes_its_time(
    monkeypatch: pytest.MonkeyPatch, make_fake: MakeFake
):
    monkeypatch.setattr("opencode_mcp.conversation.listening.SIGN_OF_LIFE_SECONDS", 0.1)
    fake, listed, hears = make_fake(of=Odd), Listed(), Hears()
    fake.script(Reply(never_finishes=True))
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        monkeypatch.setattr("opencode_mcp.conversation.waiting.CHECK_SECONDS", 0.05)
        talk, began = Conversation(fleet), time.monotonic()
        async with anyio.create_task_group() as tasks:

            async def slow_down():
                await until(lambda: fake.busy)
                fake.delays = {"/message": 30, make_fake.either("/session/status", "/active"): 30}

            tasks.start_soon(slow_down)
            reply = await talk.send("laptop", "go", seconds=1, listener=hears)
        assert reply.state == "running"
        assert time.monotonic() - began < 5
        assert len(hears.signs) >= 3


@pytest.mark.slow
async def test_what_comes_before_the_prompt_is_accompanied_by_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, make_fake: MakeFake
):
    monkeypatch.setattr("opencode_mcp.conversation.listening.SIGN_OF_LIFE_SECONDS", 0.05)
    fake, listed, hears = make_fake(of=Odd), Listed(), Hears()
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        fake.delays = {"/message": 0.3}
        reply = await Conversation(fleet).send("laptop", "go", seconds=10, listener=hears)
        assert reply.state == "done"
        assert any("waiting for the instance" in sign for sign in hears.signs)


@pytest.mark.slow
async def test_an_instance_that_is_too_slow_to_begin_with_is_given_up_and_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, make_fake: MakeFake
):
    monkeypatch.setattr("opencode_mcp.conversation.talk._PREPARING_SECONDS", 0.1)
    fake, listed = make_fake(of=Odd), Listed()
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        fake.delays = {"/message": 30}
        with pytest.raises(ConversationError, match="Nothing was sent"):
            await Conversation(fleet).send("laptop", "go", seconds=10)
        assert not any(one.path.endswith(("/prompt_async", "/prompt")) for one in fake.requests)


async def test_a_prompt_that_may_have_arrived_is_said_to_be_open(make_fake: MakeFake):
    fake, listed = make_fake(of=Odd), Listed()
    fake.takes_it_and_fails = make_fake.either("/prompt_async", "/prompt")
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        with pytest.raises(ConversationError, match="Whether the message arrived is not known"):
            await Conversation(fleet).send("laptop", "go", seconds=10)


async def test_an_answer_is_found_though_its_registration_was_away_for_a_moment(make_fake: MakeFake):
    fake, listed, gate = make_fake(), Listed(), Gate()
    fake.script(Reply(chunks=["the ", "answer"], gate=gate))
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        replies = []

        async def send():
            replies.append(await Conversation(fleet).send("laptop", "go", seconds=20))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await until(lambda: fake.busy)
            listed.publish()
            await until(lambda: not fleet.monitors and fake.streams == 0)
            listed.publish(endpoint(fake))
            await until(lambda: status(fleet) == "online")
            gate.open()
        assert [(one.state, one.text) for one in replies] == [("done", "the answer")]


async def test_an_instance_that_was_withdrawn_for_good_ends_the_waiting(
    monkeypatch: pytest.MonkeyPatch, make_fake: MakeFake
):
    monkeypatch.setattr("opencode_mcp.conversation.waiting._WITHDRAWN_SECONDS", 0.1)
    monkeypatch.setattr("opencode_mcp.conversation.listening.SIGN_OF_LIFE_SECONDS", 0.2)
    fake, listed = make_fake(), Listed()
    fake.script(Reply(never_finishes=True))
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:

                async def withdraw():
                    await until(lambda: fake.busy)
                    listed.publish()

                tasks.start_soon(withdraw)
                reply = await Conversation(fleet).send("laptop", "go", seconds=60)
        assert reply.state == "running"
        assert "withdrawn" in reply.note


async def test_an_agent_that_does_not_stop_is_not_said_to_have_stopped(make_fake: MakeFake):
    fake, listed = make_fake(of=Odd), Listed()
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        session = fake.create_session("s")
        fake.answers = {make_fake.either("/abort", "/interrupt"): JSONResponse(True)}
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        fake.set_busy(session)
        await until(lambda: only(fleet).picture.is_busy(session))
        reply = await Conversation(fleet, patience=0.05).abort("laptop")
        assert (reply.state, "still at work" in reply.note) == ("running", True)


async def test_a_session_that_stays_busy_behind_its_answer_does_not_hide_it(
    monkeypatch: pytest.MonkeyPatch, make_fake: MakeFake
):
    monkeypatch.setattr("opencode_mcp.conversation.waiting._STUCK_BUSY_SECONDS", 0.1)
    monkeypatch.setattr("opencode_mcp.conversation.waiting._CHECK_COMPLETE_SECONDS", 0.05)
    fake, listed = make_fake(of=Odd), Listed()
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        session = fake.create_session("s")
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        at_work = {session: {"type": make_fake.either("busy", "running")}}
        told = make_fake.either(at_work, {"data": at_work})
        fake.answers = {make_fake.either("/session/status", "/active"): JSONResponse(told)}
        monkeypatch.setattr(only(fleet).picture, "is_busy", lambda _: False)  # the stream says that it rests
        reply = await Conversation(fleet).send("laptop", "hello", seconds=10)
        assert (reply.state, reply.text) == ("done", "You said: hello")


async def test_a_very_long_answer_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch, make_fake: MakeFake):
    monkeypatch.setattr("opencode_mcp.conversation.results.MOST_REPLY", 10)
    monkeypatch.setattr("opencode_mcp.conversation.results.MOST_MESSAGE", 20)
    fake, listed = make_fake(), Listed()
    fake.script(Reply(chunks=["x" * 100]))
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        talk = Conversation(fleet)
        reply = await talk.send("laptop", "go", seconds=10)
        assert (reply.text, reply.note) == ("x" * 10 + "…", "The text is cut: 10 of 100 characters.")
        said = (await talk.read("laptop")).messages[-1]
        assert said.text == "x" * 20 + "…\n[The text is cut: 20 of 100 characters.]"
