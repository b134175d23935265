"""Sessions with an agent at work: what `send` answers, and how abort stops it."""

import dataclasses

import anyio
import pytest

from opencode_mcp.testing import Fault, Gate, Reply, ToolCall
from support.generations import MakeFake, say_busy, say_tool
from support.mcp_client import QUICK, aborts, connected, hold_back_turns, prompts, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_a_busy_session_gets_nothing_and_the_answer_says_what_runs(
    mode: str, make_fake: MakeFake
) -> None:
    fake, gate = make_fake(), Gate()
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


async def test_busy_names_the_tool_at_work(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    session = fake.create_session("Deploy")
    async with connected(fake, mode=mode) as connection:
        fake.set_busy(session)
        await connection.until("alpha", activity="busy")
        say_tool(fake, session, "make deploy")
        with anyio.fail_after(5):
            while "bash: make deploy" not in (
                text := (await connection.call("send", instance="alpha", message="Hi")).text
            ):
                assert "is busy" in text
        assert text.startswith('[alpha is busy, "Deploy": bash: make deploy. Nothing was sent.')


async def test_a_session_that_only_seems_busy_is_not_refused(mode: str, make_fake: MakeFake) -> None:
    """OpenCode is known to say on its stream that a session is busy which has long ended."""
    fake = make_fake()
    session = fake.create_session("Odd")
    async with connected(fake, mode=mode) as connection:
        say_busy(fake, session)
        await connection.until("alpha", activity="busy")
        assert (await connection.call("send", instance="alpha", message="Hi")).text == "You said: Hi"


async def test_a_busy_session_is_noticed_in_a_directory_with_an_odd_name(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake(directory="/srv/two  spaces & more ")
    fake.set_busy(fake.create_session("Odd"))
    async with connected(fake, mode=mode) as connection:
        await connection.until("alpha", activity="busy", directory="/srv/two  spaces & more ")
        assert (await connection.call("send", instance="alpha", message="Hi")).data["state"] == "busy"


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "polled"])
async def test_of_two_at_once_to_one_session_the_second_is_told_busy(
    mode: str, make_fake: MakeFake, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp.conversation.waiting.CHECK_WITHOUT_STREAM_SECONDS", 0.05)
    fake, gate = make_fake(), Gate()
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
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, gate = make_fake(), Gate()
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
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_fake()
    fake.script(Reply(never_finishes=True))
    begin = hold_back_turns(fake, monkeypatch)
    async with connected(fake, mode=mode) as connection:
        sent = await connection.call("send", instance="alpha", message="One", wait=0)
        fake.requests.clear()
        async with connection.meanwhile("send", instance="alpha", abort=True) as aborting:
            # It looks again and again whether the agent has begun: earlier an abort could miss it.
            await until(lambda: sum(one.path.endswith("/message") for one in fake.requests) >= 3)
            assert aborts(fake) == []
            begin.set()
        assert aborting.answer.data["state"] == "aborted"
        assert aborts(fake) == [sent.data["session_id"]]
        assert fake.busy == set()
        [_, answer] = fake.messages[sent.data["session_id"]]
        assert answer["info"]["error"]["name"] == "MessageAbortedError"


async def test_abort_stops_the_agent_at_work(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
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


async def test_abort_of_a_session_leaves_the_others_at_work(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
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


async def test_with_nothing_at_work_there_is_nothing_to_abort(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
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


async def test_a_message_beside_abort_is_not_sent_and_that_is_told(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="And this?", abort=True)
        assert "Your message was not sent" in answer.text
        assert prompts(fake) == []


async def test_who_waits_for_an_aborted_agent_is_told(mode: str, make_fake: MakeFake) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["Some text", " more"], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            gate.release()
            await until(lambda: sending.heard)
            aborted = await connection.call("send", instance="alpha", abort=True)
            assert aborted.data["state"] == "aborted"
        assert sending.answer.is_error
        assert sending.answer.data["state"] == "failed"
        why = make_fake.either("MessageAbortedError: Aborted", "aborted: Step interrupted")
        assert why in sending.answer.text
        assert sending.answer.text.endswith("\n\nSome text")
