"""The tool `read`: the newest messages of a session, as text and as data, without sending anything."""

from datetime import datetime
from typing import Any

import pytest

from opencode_mcp.testing import Ask, FakeOpenCode, Gate, Reply, ToolCall
from support.generations import Keyring, MakeFake
from support.mcp_client import Connection, connected, until

pytestmark = pytest.mark.anyio


async def test_it_shows_who_said_what_and_which_tools_ran(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    steps = [ToolCall(says="I look."), ToolCall(input={"command": "rm x"}, fails="no such file")]
    fake.script(Reply(reasoning=["Hm."], tools=steps, text="It is gone."))
    session = fake.create_session("Tidy up")
    async with connected(fake, mode=mode) as connection:
        await connection.call("send", instance="alpha", message="Remove x")
        answer = await connection.call("read", instance="alpha")
        assert (answer.data["session_id"], answer.data["session"]) == (session, "Tidy up")
        assert (answer.data["activity"], answer.data["waiting_for"], answer.data["note"]) == ("idle", "", "")
        messages = answer.data["messages"]
        times = [message.pop("time") for message in messages]
        assert all(datetime.fromisoformat(time).tzinfo for time in times)
        assert messages == [
            {"role": "user", "text": "Remove x", "tools": [], "error": ""},
            {"role": "assistant", "text": "I look.", "tools": ["bash: echo hi → completed"], "error": ""},
            {"role": "assistant", "text": "", "tools": ["bash: rm x → error"], "error": ""},
            {"role": "assistant", "text": "It is gone.", "tools": [], "error": ""},
        ]
        assert answer.text == (
            f'alpha, session "Tidy up" ({session}), idle\n\n'
            f"user ({times[0]}):\nRemove x\n\n"
            f"assistant ({times[1]}):\nI look.\n  [bash: echo hi → completed]\n\n"
            f"assistant ({times[2]}):\n  [bash: rm x → error]\n\n"
            f"assistant ({times[3]}):\nIt is gone."
        )


async def test_it_sends_nothing(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.create_session("Quiet")
    async with connected(fake, mode=mode) as connection:
        await connection.call("read", instance="alpha")
        await connection.call("read", instance="alpha", session="quiet")
        assert {request.method for request in fake.requests} == {"GET"}


async def test_it_shows_the_newest_messages_up_to_the_limit(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    session = fake.create_session("Long")
    async with connected(fake, mode=mode) as connection:
        said = [f"Message {number}" for number in range(6)]
        for message in said:
            await prompted(fake, session, message)
        expected = [text for message in said for text in (message, f"You said: {message}")]
        for limit, shown in {None: 10, 1: 1, 3: 3, 200: 12}.items():
            arguments: dict[str, Any] = {} if limit is None else {"message_limit": limit}
            answer = await connection.call("read", instance="alpha", **arguments)
            texts = [message["text"] for message in answer.data["messages"]]
            assert texts == expected[-shown:]


async def test_a_session_is_chosen_as_for_send(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    login = fake.create_session("Fix the login")
    last = fake.create_session("Paint it red")
    there = fake.create_session("There", directory="/srv/other")
    async with connected(fake, mode=mode) as connection:
        newest = make_fake.either(last, there)  # 1.x tells those of its own project only
        for wanted, session in {None: newest, "login": login, login: login, there: there}.items():
            arguments: dict[str, Any] = {} if wanted is None else {"session": wanted}
            answer = await connection.call("read", instance="alpha", **arguments)
            assert answer.data["session_id"] == session
            assert answer.text.endswith("idle: no messages yet.")
        refused = await connection.call("read", instance="alpha", session="logout")
        assert refused.is_error
        assert refused.text.startswith("alpha has no session like 'logout'. It has: ")


@pytest.mark.parametrize("wanted", [None, "new"])
async def test_without_a_session_there_is_nothing_to_read(
    mode: str, make_fake: MakeFake, wanted: str | None
) -> None:
    fake = make_fake()
    async with connected(fake, mode=mode) as connection:
        arguments: dict[str, Any] = {} if wanted is None else {"session": wanted}
        answer = await connection.call("read", instance="alpha", **arguments)
        assert not answer.is_error
        assert answer.text == answer.data["note"] == "alpha has no session yet: use `send`."
        assert fake.sessions == {}


async def test_it_shows_what_the_agent_waits_for(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(tools=[Ask()]))
    async with (
        connected(fake, mode=mode) as connection,
        connection.meanwhile("send", instance="alpha", message="Paint it") as sending,
    ):
        await connection.until("alpha", waiting_for="question: Which colour?")
        answer = await connection.call("read", instance="alpha")
        assert answer.data["activity"] == "busy"
        assert answer.data["waiting_for"] == "question: Which colour?"
        assert "busy, waits for a person (question: Which colour?)" in answer.text
        sending.cancel()


async def test_an_answer_that_failed_shows_its_error(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(text="I begin.", error="rate limit reached"))
    async with connected(fake, mode=mode) as connection:
        await connection.call("send", instance="alpha", message="Go")
        answer = await connection.call("read", instance="alpha")
        error = make_fake.either("APIError", "provider.invalid-request") + ": rate limit reached"
        assert answer.data["messages"][-1]["error"] == error
        assert answer.text.endswith(f"I begin.\n  [error: {error}]")


async def test_what_an_agent_is_still_writing_is_not_lost(mode: str, make_fake: MakeFake) -> None:
    fake, gate = make_fake(), Gate()
    fake.script(Reply(chunks=["a", "b"], gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Write") as sending:
            gate.release()
            await until(lambda: sending.heard)
            answer = await connection.call("read", instance="alpha")
            assert answer.data["activity"] == "busy"
            assert [message["role"] for message in answer.data["messages"]] == ["user", "assistant"]
            gate.open()
        answer = await connection.call("read", instance="alpha")
        assert answer.data["messages"][-1]["text"] == "ab"


async def prompted(fake: FakeOpenCode, session: str, text: str) -> None:
    """Send a prompt, as if on the server's own screen, and wait for the end of its turn."""

    def answers() -> int:
        return sum("finish" in one["info"] for one in fake.messages[session])

    before = answers()
    fake.prompt(session, text)
    await until(lambda: answers() > before and not fake.busy)


async def becomes_a_stranger(connection: Connection) -> None:
    """Let the transport vouch no more for the one instance there is, and wait until it is followed again."""
    (known,) = connection.transport.endpoints
    connection.transport.endpoints[:] = [known.model_copy(update={"vouched": False})]
    await until(lambda: any(one.stocked and not one.endpoint.vouched for one in connection.fleet.monitors))


@pytest.mark.parametrize(("size", "shown"), [(120_000, 3), (300_000, 1)])
async def test_of_a_stranger_with_large_messages_fewer_are_read_and_that_is_said(
    mode: str, make_fake: MakeFake, size: int, shown: int
) -> None:
    fake = make_fake()
    session = fake.create_session("Large")
    async with connected(fake, mode=mode, hooks=[Keyring()]) as connection:
        await becomes_a_stranger(connection)
        for number in range(5):
            fake.script(Reply(text=f"{number}{'x' * size}"))
            await prompted(fake, session, "y" * size)
        answer = await connection.call("read", instance="alpha")
        assert len(answer.data["messages"]) == shown
        assert answer.data["messages"][-1]["text"].startswith("4xxx")
        newest = "the newest message is" if shown == 1 else f"the newest {shown} messages are"
        note = f"Only {newest} shown: more are too large to be read at once."
        assert answer.data["note"] == note
        assert answer.text.endswith(f"[{note}]")
        assert (await connection.call("read", instance="alpha", message_limit=1)).data["note"] == ""


async def test_a_message_of_a_stranger_that_is_too_large_by_itself_is_told_in_a_sentence(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake()
    session = fake.create_session("Large")
    async with connected(fake, mode=mode, hooks=[Keyring()]) as connection:
        await becomes_a_stranger(connection)
        fake.script(Reply(text="x" * 600_000))
        await prompted(fake, session, "Go")
        await connection.until("alpha")
        answer = await connection.call("read", instance="alpha")
        assert answer.is_error
        assert (
            "was answered with more than 524288 bytes, too much to be read. It is not vouched for"
            in answer.text
        )
        asked = [one for one in fake.requests if one.path.endswith("/message")]
        limits = {int(one.query["limit"]) for one in asked}
        assert sorted(limits - {20}) == [1, 3, 10], "2.x is asked for more where what is no message may stand"


async def test_an_answer_behind_large_messages_of_a_stranger_arrives(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    session = fake.create_session("Large")
    async with connected(fake, mode=mode, hooks=[Keyring()]) as connection:
        await becomes_a_stranger(connection)
        for _ in range(2):
            fake.script(Reply(text="x" * 300_000))
            await prompted(fake, session, "Go")
        await connection.until("alpha")
        answer = await connection.call("send", instance="alpha", message="And now?")
        assert answer.data["text"] == "You said: And now?"
