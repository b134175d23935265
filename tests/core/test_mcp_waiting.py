"""How long `send` waits, and what it makes of a wait that ends early or a stream that fails."""

import dataclasses
import logging
from typing import Any

import anyio
import pytest

from opencode_mcp.mcp import tools
from opencode_mcp.model import Session
from opencode_mcp.opencode.v1 import V1
from opencode_mcp.opencode.v2 import V2
from opencode_mcp.testing import Fault, Gate, Reply, ToolCall
from support.generations import MakeFake
from support.mcp_client import QUICK, connected, hold_back_turns, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WITHOUT_PROGRESS = "opencode_mcp.mcp.tools.WITHOUT_PROGRESS_SECONDS"
SIGN = "opencode_mcp.conversation.listening.SIGN_OF_LIFE_SECONDS"
CHECK = "opencode_mcp.conversation.waiting.CHECK_SECONDS"


@pytest.mark.slow
async def test_when_the_waiting_ends_there_is_what_was_said_and_read_shows_the_rest(
    mode: str, make_fake: MakeFake
) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["The first half, ", "the second half."], gate=gate))
    gate.release()
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Tell me", wait=0.6)
        assert not answer.is_error
        assert answer.data["state"] == "running"
        assert answer.data["text"] == "The first half, "
        assert "The agent is still at work. Waited 1 s. `read` shows how it goes on" in answer.text
        transcript = await connection.call("read", instance="alpha")
        assert transcript.data["activity"] == "busy"
        gate.open()
        await connection.until("alpha", activity="idle")
        transcript = await connection.call("read", instance="alpha")
        assert transcript.data["messages"][-1]["text"] == "The first half, the second half."
        assert transcript.data["activity"] == "idle"


async def test_a_wait_of_zero_hands_the_message_over_and_returns(mode: str, make_fake: MakeFake) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(text="Later.", gate=gate))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Work", wait=0)
        assert (answer.data["state"], answer.data["text"]) == ("running", "")
        await until(lambda: fake.busy)
        gate.open()
        await until(lambda: not fake.busy)
        assert "Later." in (await connection.call("read", instance="alpha")).text


async def test_who_shows_no_progress_is_not_kept_waiting_long(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tools.WITHOUT_PROGRESS_SECONDS == 45
    monkeypatch.setattr(WITHOUT_PROGRESS, 0)
    fake, gate = make_fake(), Gate()
    one, _ = fake.create_session("One"), fake.create_session("Two")
    fake.script(Reply(text="Yes, indeed.", gate=gate))
    async with connected(fake, mode=mode, send_timeout_ms=60_000) as connection:
        async with connection.meanwhile("send", instance="alpha", session="One", message="Hi") as sending:
            await until(lambda: fake.busy == {one})
            quiet = await connection.call("send", instance="alpha", session="Two", message="Hi")
            assert quiet.data["state"] == "running"
            assert not sending.is_over
            gate.open()
        assert sending.answer.text == "Yes, indeed."


async def test_send_timeout_bounds_the_wait_of_those_who_show_progress(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake()
    fake.script(Reply(never_finishes=True))
    async with connected(fake, mode=mode, send_timeout_ms=1) as connection:
        answer = await connection.call("send", instance="alpha", message="Hi", listen=True)
        assert answer.data["state"] == "running"
        busy = await connection.call("send", instance="alpha", message="Hi")
        assert busy.data["state"] == "busy"


async def test_send_timeout_bounds_the_wait_of_those_who_show_none_too(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake()
    fake.script(Reply(never_finishes=True))
    async with connected(fake, mode=mode, send_timeout_ms=1) as connection:
        answer = await connection.call("send", instance="alpha", message="Hi")
        assert answer.data["state"] == "running"


async def test_wait_overrides_both_defaults(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WITHOUT_PROGRESS, 0)
    async with connected(make_fake(), mode=mode, send_timeout_ms=1) as connection:
        for listen in (True, False):
            answer = await connection.call("send", instance="alpha", message="Hi", wait=20, listen=listen)
            assert answer.text == "You said: Hi"


async def test_a_cancelled_call_ends_the_waiting_and_not_the_agents_work(
    mode: str, make_fake: MakeFake
) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["I ", "go ", "on."], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Work") as sending:
            gate.release()
            await until(lambda: sending.heard)
            sending.cancel()
        assert not sending.is_over
        [session] = fake.sessions
        busy = await connection.call("send", instance="alpha", message="Too early")
        assert busy.data["state"] == "busy"
        gate.open()
        await until(lambda: not fake.busy)
        assert fake.messages[session][-1]["info"]["finish"] == "stop"
        assert "I go on." in (await connection.call("read", instance="alpha")).text
        assert not [request for request in fake.requests if request.path.endswith("/abort")]
        again = await connection.call("send", instance="alpha", message="Now")
        assert again.text == "You said: Now"


async def test_a_stream_that_is_cut_in_the_middle_costs_no_final_text(mode: str, make_fake: MakeFake) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["Before the cut, ", "during it, ", "and after."], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Talk") as sending:
            gate.release()
            await until(lambda: sending.heard)
            fake.cut_streams()
            gate.open()
        assert sending.answer.text == "Before the cut, during it, and after."


async def test_a_stream_that_cannot_be_had_costs_no_final_text(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHECK, 0.1)
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["Before the cut, ", "and after."], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Talk") as sending:
            gate.release()
            await until(lambda: sending.heard)
            fake.fault = Fault.STREAM_CUT
            gate.open()
        assert sending.answer.text == "Before the cut, and after."


async def test_a_server_without_a_usable_stream_is_polled(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp.conversation.waiting.CHECK_WITHOUT_STREAM_SECONDS", 0.05)
    fake = make_fake()
    fake.fault = Fault.STREAM_SILENT
    async with connected(fake, mode=mode, pace=dataclasses.replace(QUICK, probe=0.4)) as connection:
        answer = await connection.call("send", instance="alpha", message="Hi", listen=True)
        assert (answer.text, answer.data["state"]) == ("You said: Hi", "done")


@pytest.mark.slow
async def test_an_instance_that_dies_meanwhile_is_told_and_not_waited_for_beyond_the_wait(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SIGN, 0.05)
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["Half of ", "it"], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Talk", wait=1) as sending:
            gate.release()
            await until(lambda: sending.heard)
            await fake.kill()
            await until(lambda: "[the instance is offline; " in sending.streamed)
        assert sending.answer.data["state"] == "running"
        assert sending.answer.data["text"] == "Half of "
        assert "The instance is offline at present." in sending.answer.text
        assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_answer_cut_off_by_a_restart_is_an_error_and_no_answer(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHECK, 0.1)
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["Half of ", "it"], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Talk") as sending:
            gate.release()
            await until(lambda: sending.heard)
            await fake.kill()
            async with fake.serve(port=fake.port):
                await until(lambda: sending.is_over)
        assert sending.answer.is_error
        assert sending.answer.data["state"] == "failed"
        assert "stopped in the middle of its answer" in sending.answer.text


@pytest.mark.parametrize("tool", ["send", "read"])
async def test_nobody_waits_for_another_instance_that_hangs(
    mode: str, make_fake: MakeFake, tool: str
) -> None:
    fakes = make_fake(), make_fake()
    fakes[1].fault = Fault.HANG
    patience: dict[str, Any] = {
        "pace": dataclasses.replace(QUICK, probe=30),
        "health_check_timeout_ms": 30_000,
    }
    async with connected(*fakes, mode=mode, online=False, **patience) as connection:
        with anyio.fail_after(5):
            more: dict[str, Any] = {"message": "Hi"} if tool == "send" else {}
            assert not (await connection.call(tool, instance="alpha", **more)).is_error


async def test_an_agent_that_ends_while_it_is_asked_for_is_not_cut_short(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHECK, 0.05)
    fake, gate = make_fake(), Gate()
    fake.script(Reply(tools=[ToolCall(says="I look.")], text="Done.", gate=gate))
    kind: type[V1 | V2] = make_fake.either(V1, V2)
    ask = kind.is_busy

    async def ask_when_it_has_just_ended(api: Any, session: Session) -> bool:
        gate.open()
        await until(lambda: not fake.busy)
        return await ask(api, session)

    monkeypatch.setattr(kind, "is_busy", ask_when_it_has_just_ended)
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            gate.release()
        assert sending.answer.text == "Done."


async def test_an_agent_that_does_nothing_with_the_message_is_reported(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHECK, 0.05)
    monkeypatch.setattr("opencode_mcp.conversation.waiting.NOTHING_HAPPENS_SECONDS", 0.1)
    fake = make_fake()
    begin = hold_back_turns(fake, monkeypatch)
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Hello?")
        begin.set()
        assert answer.is_error
        assert "its agent did nothing with it" in answer.text
