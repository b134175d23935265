"""The tool `send`: to whom, into which session, what comes back, and when nothing is sent."""

import dataclasses
from typing import Any

import anyio
import pytest

from opencode_mcp.testing import Ask, FakeOpenCode, Fault, Gate, Reply, ToolCall
from support.mcp_client import QUICK, connected, hold_back_turns, in_both_eras, until

pytestmark = [pytest.mark.anyio, in_both_eras]


def prompts(fake: FakeOpenCode) -> list[tuple[str, str]]:
    """Session and text of every prompt that came in."""
    return [
        (request.path.split("/")[2], request.body["parts"][0]["text"])
        for request in fake.requests
        if request.path.endswith("/prompt_async")
    ]


def aborts(fake: FakeOpenCode) -> list[str]:
    return [request.path.split("/")[2] for request in fake.requests if request.path.endswith("/abort")]


async def test_the_answer_is_the_agents_final_text(mode: str) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(reasoning=["They greet me. "], tools=[ToolCall(says="I look.")], text="Hello to you."))
    session = fake.create_session("Greetings")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Say hello")
        assert not answer.is_error
        assert answer.text == "Hello to you."
        assert answer.data == {
            "instance": "alpha",
            "state": "done",
            "session_id": session,
            "session": "Greetings",
            "text": "Hello to you.",
            "note": "",
        }
        assert prompts(fake) == [(session, "Say hello")]


async def test_an_agent_that_says_nothing_is_reported_as_such(mode: str) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(tools=[ToolCall()]))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Work")
        assert (answer.is_error, answer.data["state"], answer.data["text"]) == (False, "done", "")
        assert answer.text == "[The agent finished without saying anything; `read` shows what it did.]"


async def test_a_session_is_created_when_there_is_none(mode: str) -> None:
    fake = FakeOpenCode()
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="First")
        assert answer.text == "You said: First"
        assert list(fake.sessions) == [answer.data["session_id"]]
        again = await connection.call("send", instance="alpha", message="Second")
        assert again.data["session_id"] == answer.data["session_id"]


async def test_by_default_the_session_used_last_goes_on(mode: str) -> None:
    fake = FakeOpenCode()
    older, newer = fake.create_session("Older"), fake.create_session("Newer")
    async with connected(fake, mode=mode) as connection:
        fake.prompt(older, "Touch it")
        await connection.until("alpha", session="Older", activity="idle")
        answer = await connection.call("send", instance="alpha", message="Go on")
        assert answer.data["session_id"] == older != newer


async def test_a_session_is_meant_by_id_title_or_part_of_it(mode: str) -> None:
    fake = FakeOpenCode()
    session = fake.create_session("Fix the login")
    fake.create_session("Paint it red")
    async with connected(fake, mode=mode) as connection:
        for wanted in (session, "Fix the login", "fix the LOGIN", "log", "  login "):
            answer = await connection.call("send", instance="alpha", message="Go", session=wanted)
            assert (answer.data["session_id"], answer.data["session"]) == (session, "Fix the login")


async def test_a_title_that_fits_exactly_wins_over_those_that_hold_it(mode: str) -> None:
    fake = FakeOpenCode()
    session = fake.create_session("Login")
    fake.create_session("Fix the login")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", session="login")
        assert answer.data["session_id"] == session


async def test_new_starts_afresh_and_leaves_the_others_alone(mode: str) -> None:
    fake = FakeOpenCode()
    old = fake.create_session("A new title")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", session="new")
        assert answer.data["session_id"] != old
        assert list(fake.sessions) == [old, answer.data["session_id"]]
        assert fake.messages[old] == []


async def test_a_session_of_another_project_is_reached_by_its_id(mode: str) -> None:
    fake = FakeOpenCode()
    fake.create_session("Here")
    there = fake.create_session("There", directory="/srv/other")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", session=there)
        assert (answer.text, answer.data["session_id"]) == ("You said: Go", there)


async def test_an_ambiguous_session_is_refused_with_the_candidates(mode: str) -> None:
    fake = FakeOpenCode()
    ids = [fake.create_session(title) for title in ("Fix the login", "Fix the logout", "Paint")]
    async with connected(fake, mode=mode) as connection:
        for tool in ("send", "read"):
            arguments: dict[str, Any] = {"message": "Go"} if tool == "send" else {}
            answer = await connection.call(tool, instance="alpha", session="fix", **arguments)
            assert answer.is_error
            assert answer.text == (
                f"'fix' fits several sessions of alpha: 'Fix the login' ({ids[0]}), "
                f"'Fix the logout' ({ids[1]}). Say which one."
            )
        assert prompts(fake) == []


async def test_an_unknown_session_is_refused_and_nothing_is_sent(mode: str) -> None:
    fake = FakeOpenCode()
    fake.create_session("Paint it red")
    async with connected(fake, mode=mode) as connection:
        for wanted in ("login", "ses_0000", "../../global/health", "ses_../../abort"):
            answer = await connection.call("send", instance="alpha", message="Go", session=wanted)
            assert answer.is_error
            assert answer.text.startswith("alpha has no session ")
            assert wanted in answer.text
            assert ("'Paint it red'" in answer.text) == (wanted != "ses_0000")
        assert len(fake.sessions) == 1
        assert prompts(fake) == []
        assert not [request for request in fake.requests if ".." in request.path]


async def test_names_are_found_by_part_and_unclear_ones_refused_with_the_candidates(mode: str) -> None:
    fakes = FakeOpenCode(), FakeOpenCode(), FakeOpenCode()
    async with connected(*fakes, mode=mode, names=("laptop-shop", "laptop-blog", "Tower")) as connection:
        for query, text in {
            "laptop": "'laptop' fits several instances: laptop-blog, laptop-shop. Say which one.",
            "phone": "There is no instance 'phone'. Known: Tower, laptop-blog, laptop-shop.",
            "": "There is no instance ''. Known: Tower, laptop-blog, laptop-shop.",
        }.items():
            for tool in ("send", "read"):
                arguments: dict[str, Any] = {"message": "hi"} if tool == "send" else {}
                refused = await connection.call(tool, instance=query, **arguments)
                assert (refused.is_error, refused.text) == (True, text)
        for query in ("tower", "TOW", "Tower"):
            answer = await connection.call("send", instance=query, message=query)
            assert (answer.data["instance"], answer.text) == ("Tower", f"You said: {query}")
        assert prompts(fakes[0]) == prompts(fakes[1]) == []


async def test_an_offline_instance_is_refused_with_when_it_was_last_seen(mode: str) -> None:
    fake = FakeOpenCode()
    async with connected(fake, mode=mode, health_check_timeout_ms=500) as connection:
        await fake.kill()
        row = await connection.until("alpha", "offline")
        for tool in ("send", "read"):
            arguments: dict[str, Any] = {"message": "hi"} if tool == "send" else {}
            answer = await connection.call(tool, instance="alpha", **arguments)
            assert answer.is_error
            assert answer.text == (
                f"alpha is offline, last seen {row['last_seen']}. Nothing accepts connections at its address."
            )


async def test_a_busy_session_gets_nothing_and_the_answer_says_what_runs(mode: str) -> None:
    fake, gate = FakeOpenCode(), Gate()
    session = fake.create_session("Deploy")
    fake.script(Reply(tools=[ToolCall(asks=True, input={"command": "make deploy"})], text="ok", gate=gate))
    async with connected(fake, mode=mode) as connection:
        fake.prompt(session, "Deploy it")
        await connection.until("alpha", waiting_for="permission: bash: make deploy")
        answer = await connection.call("send", instance="alpha", message="And now?")
        assert not answer.is_error
        assert (answer.data["state"], answer.data["session_id"], answer.data["text"]) == ("busy", session, "")
        assert answer.text.startswith(
            '[alpha is busy, "Deploy": it waits for a person (permission: bash: make deploy). '
            "Nothing was sent."
        )
        assert prompts(fake) == []
        # Another session of the same instance is free.
        fresh = await connection.call("send", instance="alpha", message="Hi", session="new", wait=0)
        assert fresh.data["state"] == "running"


async def test_busy_names_the_tool_at_work(mode: str) -> None:
    fake = FakeOpenCode()
    session = fake.create_session("Deploy")
    async with connected(fake, mode=mode) as connection:
        fake.set_busy(session)
        await connection.until("alpha", activity="busy")
        state = {"status": "running", "input": {"command": "make deploy"}}
        part = {"id": "prt_1", "messageID": "msg_1", "sessionID": session, "type": "tool", "tool": "bash"}
        fake.emit("message.part.updated", {"sessionID": session, "part": {**part, "state": state}})
        with anyio.fail_after(5):
            while "bash: make deploy" not in (
                text := (await connection.call("send", instance="alpha", message="Hi")).text
            ):
                assert "is busy" in text
        assert text.startswith('[alpha is busy, "Deploy": bash: make deploy. Nothing was sent.')


async def test_a_session_that_only_seems_busy_is_not_refused(mode: str) -> None:
    """OpenCode is known to say on its stream that a session is busy which has long ended."""
    fake = FakeOpenCode()
    session = fake.create_session("Odd")
    async with connected(fake, mode=mode) as connection:
        fake.emit("session.status", {"sessionID": session, "status": {"type": "busy"}})
        await connection.until("alpha", activity="busy")
        assert (await connection.call("send", instance="alpha", message="Hi")).text == "You said: Hi"


async def test_a_busy_session_is_noticed_in_a_directory_with_an_odd_name(mode: str) -> None:
    fake = FakeOpenCode(directory="/srv/two  spaces & more ")
    fake.set_busy(fake.create_session("Odd"))
    async with connected(fake, mode=mode) as connection:
        await connection.until("alpha", activity="busy", directory="/srv/two  spaces & more ")
        assert (await connection.call("send", instance="alpha", message="Hi")).data["state"] == "busy"


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "polled"])
async def test_of_two_at_once_to_one_session_the_second_is_told_busy(
    mode: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp.conversation.waiting.CHECK_WITHOUT_STREAM_SECONDS", 0.05)
    fake, gate = FakeOpenCode(), Gate()
    fake.create_session("One at a time")
    fake.script(Reply(text="Done.", gate=gate))
    fake.fault = None if streaming else Fault.STREAM_SILENT
    pace = QUICK if streaming else dataclasses.replace(QUICK, probe=0.4)
    async with connected(fake, mode=mode, pace=pace) as connection:
        async with (
            connection.meanwhile("send", instance="alpha", message="One") as one,
            connection.meanwhile("send", instance="alpha", message="Two") as two,
        ):
            await until(lambda: one.is_over or two.is_over)
            refused, sent = (one, two) if one.is_over else (two, one)
            gate.open()
        assert refused.answer.data["state"] == "busy"
        assert sent.answer.text == "Done."
        assert len(prompts(fake)) == 1


async def test_a_message_that_the_agent_has_not_begun_with_yet_makes_its_session_busy(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, gate = FakeOpenCode(), Gate()
    fake.script(Reply(text="Done.", gate=gate))
    begin = hold_back_turns(fake, monkeypatch)
    async with connected(fake, mode=mode) as connection:
        first = await connection.call("send", instance="alpha", message="One", wait=0)
        assert first.data["state"] == "running"
        assert (await connection.call("read", instance="alpha")).data["activity"] == "busy"
        second = await connection.call("send", instance="alpha", message="Two", wait=0)
        assert second.data["state"] == "busy"
        begin.set()
        await connection.until("alpha", activity="busy")
        gate.open()
        await connection.until("alpha", activity="idle")
        assert (await connection.call("read", instance="alpha")).data["activity"] == "idle"
        third = await connection.call("send", instance="alpha", message="Three")
        assert third.text == "You said: Three"
        assert [text for _, text in prompts(fake)] == ["One", "Three"]


async def test_abort_reaches_an_agent_that_has_not_begun_yet(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(never_finishes=True))
    begin = hold_back_turns(fake, monkeypatch)
    async with connected(fake, mode=mode) as connection:
        sent = await connection.call("send", instance="alpha", message="One", wait=0)
        async with connection.meanwhile("send", instance="alpha", abort=True) as aborting:
            begin.set()
        assert aborting.answer.data["state"] == "aborted"
        assert aborts(fake) == [sent.data["session_id"]]
        assert fake.busy == set()
        [_, answer] = fake.messages[sent.data["session_id"]]
        assert answer["info"]["error"]["name"] == "MessageAbortedError"


async def test_abort_stops_the_agent_at_work(mode: str) -> None:
    fake = FakeOpenCode()
    busy, idle = fake.create_session("Busy"), fake.create_session("Idle, used last")
    fake.script(Reply(text="Endless", never_finishes=True))
    async with connected(fake, mode=mode) as connection:
        fake.prompt(busy, "Run")
        await connection.until("alpha", activity="busy")
        answer = await connection.call("send", instance="alpha", abort=True)
        assert not answer.is_error
        assert (answer.data["state"], answer.data["session_id"]) == ("aborted", busy)
        assert answer.text == "[The agent of alpha was stopped.]"
        assert aborts(fake) == [busy] != [idle]
        assert fake.busy == set()
        assert prompts(fake) == []
        await connection.until("alpha", activity="idle")


async def test_abort_of_a_session_leaves_the_others_at_work(mode: str) -> None:
    fake = FakeOpenCode()
    one, two = fake.create_session("One"), fake.create_session("Two")
    async with connected(fake, mode=mode) as connection:
        for session in (one, two):
            fake.script(Reply(never_finishes=True))
            fake.prompt(session, "Run")
        await until(lambda: fake.busy == {one, two})
        await connection.until("alpha", activity="busy")
        answer = await connection.call("send", instance="alpha", abort=True, session="one")
        assert (answer.data["state"], answer.data["session_id"]) == ("aborted", one)
        assert fake.busy == {two}


async def test_with_nothing_at_work_there_is_nothing_to_abort(mode: str) -> None:
    fake = FakeOpenCode()
    async with connected(fake, mode=mode) as connection:
        for title in ("", "A session"):
            if title:
                fake.create_session(title)
                await connection.until("alpha", session=title)
            answer = await connection.call("send", instance="alpha", abort=True)
            assert not answer.is_error
            assert answer.data["state"] == "nothing to abort"
            assert answer.text == "[No agent is at work on alpha: nothing to abort.]"
        assert aborts(fake) == prompts(fake) == []


async def test_a_message_beside_abort_is_not_sent_and_that_is_told(mode: str) -> None:
    fake = FakeOpenCode()
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="And this?", abort=True)
        assert "Your message was not sent" in answer.text
        assert prompts(fake) == []


async def test_who_waits_for_an_aborted_agent_is_told(mode: str) -> None:
    fake, gate = FakeOpenCode(), Gate()
    fake.script(Reply(chunks=["Some text", " more"], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            gate.release()
            await until(lambda: sending.heard)
            aborted = await connection.call("send", instance="alpha", abort=True)
            assert aborted.data["state"] == "aborted"
        assert sending.answer.is_error
        assert sending.answer.data["state"] == "failed"
        assert "MessageAbortedError: Aborted" in sending.answer.text
        assert sending.answer.text.endswith("\n\nSome text")


async def test_an_error_of_the_agent_comes_back_as_one(mode: str) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(text="I begin.", error="rate limit reached"))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go")
        assert answer.is_error
        assert answer.text == (
            "alpha: The agent stopped with an error: APIError: rate limit reached\n\nI begin."
        )
        assert (answer.data["state"], answer.data["text"]) == ("failed", "I begin.")


async def test_a_model_that_does_not_exist_comes_back_as_an_error(mode: str) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(bad_model=True))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go")
        assert answer.is_error
        assert answer.data["state"] == "failed"
        assert "Model not found: fake/fake." in answer.text


async def test_an_error_of_someone_elses_prompt_does_not_spoil_a_good_answer(mode: str) -> None:
    fake, gate = FakeOpenCode(), Gate()
    fake.script(Reply(chunks=["All ", "is well."], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            gate.release()
            await until(lambda: sending.heard)
            error = {"name": "UnknownError", "data": {"message": "no title today"}}
            fake.emit("session.error", {"sessionID": next(iter(fake.sessions)), "error": error})
            gate.open()
        assert not sending.answer.is_error
        assert sending.answer.text == "All is well."


@pytest.mark.parametrize(
    ("step", "what"),
    [(ToolCall(asks=True), "permission: bash: echo hi"), (Ask(), "question: Which colour?")],
    ids=["permission", "question"],
)
async def test_waiting_for_a_person_is_told_when_the_waiting_ends(
    mode: str, step: ToolCall | Ask, what: str
) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(tools=[step]))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", wait=0.4)
        assert not answer.is_error
        assert answer.data["state"] == "running"
        assert f"It waits for a person to decide: {what}." in answer.text
        assert "`read`" in answer.text
        transcript = await connection.call("read", instance="alpha")
        assert (transcript.data["activity"], transcript.data["waiting_for"]) == ("busy", what)
