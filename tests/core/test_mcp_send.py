"""The tool `send`: to whom, into which session, what comes back, and when nothing is sent."""

from typing import Any

import pytest

from opencode_mcp.testing import Ask, Gate, Reply, ToolCall
from support.generations import MakeFake, say_error
from support.mcp_client import connected, prompts, until

pytestmark = pytest.mark.anyio


async def test_the_answer_is_the_agents_final_text(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
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


async def test_an_agent_that_says_nothing_is_reported_as_such(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(tools=[ToolCall()]))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Work")
        assert (answer.is_error, answer.data["state"], answer.data["text"]) == (False, "done", "")
        assert answer.text == "[The agent finished without saying anything; `read` shows what it did.]"


async def test_a_session_is_created_when_there_is_none(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="First")
        assert answer.text == "You said: First"
        assert list(fake.sessions) == [answer.data["session_id"]]
        again = await connection.call("send", instance="alpha", message="Second")
        assert again.data["session_id"] == answer.data["session_id"]


async def test_by_default_the_session_used_last_goes_on(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    older, newer = fake.create_session("Older"), fake.create_session("Newer")
    async with connected(fake, mode=mode) as connection:
        fake.prompt(older, "Touch it")
        await connection.until("alpha", session="Older", activity="idle")
        answer = await connection.call("send", instance="alpha", message="Go on")
        assert answer.data["session_id"] == older != newer


async def test_a_session_is_meant_by_id_title_or_part_of_it(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    session = fake.create_session("Fix the login")
    fake.create_session("Paint it red")
    async with connected(fake, mode=mode) as connection:
        for wanted in (session, "Fix the login", "fix the LOGIN", "log", "  login "):
            answer = await connection.call("send", instance="alpha", message="Go", session=wanted)
            assert (answer.data["session_id"], answer.data["session"]) == (session, "Fix the login")


async def test_a_title_that_fits_exactly_wins_over_those_that_hold_it(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    session = fake.create_session("Login")
    fake.create_session("Fix the login")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", session="login")
        assert answer.data["session_id"] == session


async def test_new_starts_afresh_and_leaves_the_others_alone(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    old = fake.create_session("A new title")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", session="new")
        assert answer.data["session_id"] != old
        assert list(fake.sessions) == [old, answer.data["session_id"]]
        assert fake.messages[old] == []


async def test_a_session_of_another_project_is_reached_by_its_id(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.create_session("Here")
    there = fake.create_session("There", directory="/srv/other")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", session=there)
        assert (answer.text, answer.data["session_id"]) == ("You said: Go", there)


async def test_an_ambiguous_session_is_refused_with_the_candidates(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
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


async def test_an_unknown_session_is_refused_and_nothing_is_sent(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
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


async def test_names_are_found_by_part_and_unclear_ones_refused_with_the_candidates(
    mode: str, make_fake: MakeFake
) -> None:
    fakes = make_fake(), make_fake(), make_fake()
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


async def test_an_offline_instance_is_refused_with_when_it_was_last_seen(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake()
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


async def test_an_error_of_the_agent_comes_back_as_one(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(text="I begin.", error="rate limit reached"))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go")
        assert answer.is_error
        kind = make_fake.either("APIError", "provider.invalid-request")
        assert answer.text == (
            f"alpha: The agent stopped with an error: {kind}: rate limit reached\n\nI begin."
        )
        assert (answer.data["state"], answer.data["text"]) == ("failed", "I begin.")


async def test_a_model_that_does_not_exist_comes_back_as_an_error(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(bad_model=True))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go")
        assert answer.is_error
        assert answer.data["state"] == "failed"
        assert make_fake.either("Model not found: fake/fake.", "Model unavailable: fake/fake") in answer.text


async def test_an_error_of_someone_elses_prompt_does_not_spoil_a_good_answer(
    mode: str, make_fake: MakeFake
) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["All ", "is well."], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            gate.release()
            await until(lambda: sending.heard)
            say_error(fake, next(iter(fake.sessions)), "no title today")
            gate.open()
        assert not sending.answer.is_error
        assert sending.answer.text == "All is well."


@pytest.mark.parametrize(
    ("step", "what"),
    [(ToolCall(asks=True), "permission: bash: echo hi"), (Ask(), "question: Which colour?")],
    ids=["permission", "question"],
)
async def test_waiting_for_a_person_is_told_when_the_waiting_ends(
    mode: str, make_fake: MakeFake, step: ToolCall | Ask, what: str
) -> None:
    fake = make_fake()
    fake.script(Reply(tools=[step]))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", wait=0.4)
        assert not answer.is_error
        assert answer.data["state"] == "running"
        assert f"It waits for a person to decide: {what}." in answer.text
        assert "`read`" in answer.text
        transcript = await connection.call("read", instance="alpha")
        assert (transcript.data["activity"], transcript.data["waiting_for"]) == ("busy", what)
