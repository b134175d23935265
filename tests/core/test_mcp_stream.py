"""What a client hears while `send` waits: the agent's words in order, and signs of life."""

from typing import Any

import anyio
import pytest

from opencode_mcp.conversation import listening, waiting
from opencode_mcp.testing import Gate, Reply, SubAgent, ToolCall
from support.generations import MakeFake, answer_permission, say_delta
from support.mcp_client import connected, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

JOINED = "opencode_mcp.conversation.waiting.JOINED_SECONDS"
SIGN = "opencode_mcp.conversation.listening.SIGN_OF_LIFE_SECONDS"


async def test_every_one_of_400_deltas_arrives_in_order(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    pieces = [f"{number} " for number in range(400)]
    fake.script(Reply(chunks=pieces))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Count", listen=True)
        assert answer.streamed == answer.text == "".join(pieces)
        assert 1 < len(answer.progress) < 400


async def test_the_first_pieces_arrive_while_the_agent_goes_on(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JOINED, 0)
    fake, gate = make_fake(), Gate()
    pieces = ["One, ", "two, ", "three."]
    fake.script(Reply(chunks=pieces, gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Count") as sending:
            for count in (1, 2):
                gate.release()
                await until(lambda wanted=count: len(sending.heard) == wanted)
                assert not sending.is_over
            gate.release()
        assert sending.heard == pieces


async def test_pieces_close_together_are_joined(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waiting.JOINED_SECONDS == 0.05
    monkeypatch.setattr(JOINED, 60)
    fake, gate = make_fake(), Gate()
    pieces = [f"{number} " for number in range(50)]
    fake.script(Reply(chunks=pieces, gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Count") as sending:
            gate.release()
            await until(lambda: sending.heard)
            gate.open()
        assert sending.heard == [pieces[0], "".join(pieces[1:])]


async def test_joined_pieces_are_not_held_back_until_the_end(mode: str, make_fake: MakeFake) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["a", "b", "c", "d"], gate=gate))
    async with (
        connected(fake, mode=mode) as connection,
        connection.meanwhile("send", instance="alpha", message="Count") as sending,
    ):
        gate.release()
        await until(lambda: sending.heard)
        gate.release(2)
        await until(lambda: sending.streamed == "abc")
        gate.open()


async def test_neither_reasoning_nor_the_question_is_in_the_text(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(reasoning=["They want ", "tea."], text="Tea it is, for you.", delay=0.001))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Tea, please", listen=True)
        assert answer.streamed == answer.text == "Tea it is, for you."


async def test_text_between_tool_calls_streams_and_the_final_text_is_returned(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake()
    fake.script(Reply(tools=[ToolCall(says="First I look."), ToolCall(says="Then I do.")], text="Done."))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Go", listen=True)
        assert answer.streamed == "First I look.\n\nThen I do.\n\nDone."
        assert answer.text == "Done."


async def test_what_counts_is_what_was_stored_not_what_streamed(mode: str, make_fake: MakeFake) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["Hello ", "world."], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Hi") as sending:
            gate.release()
            await until(lambda: sending.heard)
            [session] = fake.messages
            say_delta(fake, session, "cruel ")
            gate.open()
        assert sending.streamed == "Hello cruel world."
        assert sending.answer.text == sending.answer.data["text"] == "Hello world."


async def test_a_sub_agents_words_are_not_mixed_in(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    child = Reply(text="I am the sub-agent and I talk a lot.", delay=0.001)
    fake.script(Reply(tools=[SubAgent(reply=child)], text="It looked around."))
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Look", listen=True)
        assert answer.streamed == answer.text == "It looked around."


async def test_another_sessions_words_are_not_mixed_in(mode: str, make_fake: MakeFake) -> None:
    fake, gate = make_fake(), Gate()
    mine, other = fake.create_session("Mine"), fake.create_session("Other")
    fake.script(Reply(chunks=["My ", "answer."], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go", session="Mine") as sending:
            gate.release()
            await until(lambda: sending.heard)
            fake.prompt(other, "Something else")
            await until(lambda: fake.busy == {mine})
            gate.open()
        assert sending.streamed == sending.answer.text == "My answer."


async def test_the_answer_to_somebody_elses_message_is_not_mixed_in(mode: str, make_fake: MakeFake) -> None:
    """A person at the machine writes into the same session; OpenCode answers both in one go."""
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["My ", "answer."], gate=gate), Reply(text="Their answer.", gate=gate))
    session = fake.create_session("Shared")
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Mine") as sending:
            gate.release()
            await until(lambda: sending.heard)
            fake.prompt(session, "Theirs")
            gate.open()
        assert sending.streamed == sending.answer.text == "My answer."
        await connection.until("alpha", activity="idle")
        assert "Their answer." in (await connection.call("read", instance="alpha")).text


async def test_a_permission_is_told_while_waiting_and_the_answer_follows_it(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SIGN, 0.05)
    fake = make_fake()
    fake.script(Reply(tools=[ToolCall(asks=True)], text="It said hi."))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            await until(lambda: "waits for a person to decide: permission: bash: echo hi" in sending.streamed)
            await answer_permission(fake)
        assert sending.answer.text == "It said hi."


async def test_a_sub_agents_permission_is_told_as_well(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SIGN, 0.05)
    fake = make_fake()
    child = Reply(tools=[ToolCall(asks=True)], text="Looked.")
    fake.script(Reply(tools=[SubAgent(reply=child)], text="It looked around."))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            await until(lambda: "waits for a person to decide: permission: bash: echo hi" in sending.streamed)
            await answer_permission(fake)
        assert sending.answer.text == "It looked around."


async def test_a_silent_agent_gives_signs_of_life(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listening.SIGN_OF_LIFE_SECONDS <= 10
    monkeypatch.setattr(SIGN, 0.05)
    fake, gate = make_fake(), Gate()
    fake.script(Reply(text="Finally.", gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Think") as sending:
            await until(lambda: sum(sign.startswith("[at work; ") for sign in sending.heard) >= 3)
            assert all(sign.endswith(" s]") for sign in sending.heard)
            gate.open()
        assert sending.heard[-1] == sending.answer.text == "Finally."


async def test_a_sign_of_life_names_the_tool_at_work(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SIGN, 0.05)
    fake, gate = make_fake(), Gate()
    command = {"command": "make test", "description": "Run the tests"}
    fake.script(Reply(tools=[ToolCall(input=command)], text="Green.", gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Test") as sending:
            await until(lambda: "[at work: bash: make test; " in sending.streamed)
            gate.open()
        assert sending.answer.text == "Green."


async def test_who_did_not_ask_for_progress_gets_the_answer_alone(mode: str, make_fake: MakeFake) -> None:
    async with connected(make_fake(), mode=mode) as connection:
        answer = await connection.call("send", instance="alpha", message="Hi")
        assert (answer.text, answer.progress) == ("You said: Hi", [])


async def test_progress_numbers_rise(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(chunks=["a ", "b ", "c"], delay=0.06))
    numbers: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        numbers.append(progress)

    async with connected(fake, mode=mode) as connection:
        with anyio.fail_after(10):
            arguments: dict[str, Any] = {"instance": "alpha", "message": "Go"}
            await connection.client.call_tool("send", arguments, progress_callback=hear)
        assert len(numbers) > 1
        assert numbers == sorted(set(numbers))
