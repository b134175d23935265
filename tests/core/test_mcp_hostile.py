"""What instances say is data: nothing in it steers a terminal, hides from a reader or grows without bound."""

import re
from typing import Any

import pytest

from opencode_mcp.testing import Ask, FakeOpenCode, Gate, Question, Reply, ToolCall
from support.mcp_client import Answer, connected, in_both_eras, until

pytestmark = [pytest.mark.anyio, in_both_eras]

EVIL = "\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07 \x9b2J\u202eright\u2066\u200b \U000e0041tag \x00nul\r"
"""ANSI and C1 sequences, reordering and invisible characters, tags, a null byte, a lone carriage return."""
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)


def strings(value: Any) -> list[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in strings(one)]


def check(answer: Answer) -> Answer:
    """Fail if anything unsafe is in the answer, in whatever form."""
    for text in (answer.text, *answer.progress, *strings(answer.data)):
        assert UNSAFE.search(text) is None, repr(text)
    return answer


def lines_of(answer: Answer) -> list[str]:
    return answer.text.splitlines()


async def test_the_overview_shows_one_safe_line_for_each_instance(mode: str) -> None:
    fake = FakeOpenCode(directory=f"/srv/{EVIL}\n/fake | idle", version=f"1.18.33{EVIL}\nfake")
    fake.create_session(f"Title {EVIL}\nfake | idle")
    fake.script(Reply(tools=[Ask(questions=[Question(question=f"Sure?{EVIL}\nfake | idle")])]))
    async with (
        connected(fake, mode=mode) as connection,
        connection.meanwhile("send", instance="alpha", message="Go") as sending,
    ):
        while "Sure?" not in (answer := check(await connection.call("instances"))).text:
            pass
        assert len(lines_of(answer)) == 1
        assert "red bell" in answer.text
        sending.cancel()


async def test_a_long_title_and_a_long_question_are_cut(mode: str) -> None:
    fake = FakeOpenCode()
    fake.create_session("x" * 100_000)
    fake.script(Reply(tools=[ToolCall(asks=True, input={"command": "y" * 100_000})]))
    async with (
        connected(fake, mode=mode) as connection,
        connection.meanwhile("send", instance="alpha", message="Go") as sending,
    ):
        while "permission: bash: yyy" not in (answer := await connection.call("instances")).text:
            pass
        assert len(answer.text) < 1000
        sending.cancel()


async def test_what_an_agent_says_is_safe_while_it_streams_and_in_the_end(mode: str) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(reasoning=[EVIL], chunks=[f"Before {EVIL}", f"{EVIL} after\n\tindented"], delay=0.001))
    async with connected(fake, mode=mode) as connection:
        answer = check(await connection.call("send", instance="alpha", message="Go", listen=True))
        assert answer.text.startswith("Before red bell ")
        assert answer.text.endswith(" after\n\tindented")
        assert answer.streamed.endswith(" after\n\tindented")


async def test_an_escape_sequence_that_comes_in_two_pieces_does_no_harm(mode: str) -> None:
    fake = FakeOpenCode()
    fake.script(Reply(chunks=["Plain \x1b", "[31mred\x1b[", "0m plain"], delay=0.06))
    async with connected(fake, mode=mode) as connection:
        answer = check(await connection.call("send", instance="alpha", message="Go", listen=True))
        assert answer.text == "Plain red plain"


async def test_signs_of_life_are_one_safe_line(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opencode_mcp.conversation.listening.SIGN_OF_LIFE_SECONDS", 0.05)
    fake, gate = FakeOpenCode(), Gate()
    command = {"command": f"make {EVIL}\nfake"}
    fake.script(Reply(tools=[ToolCall(tool=f"ba{EVIL}sh", input=command)], text="Done.", gate=gate))
    async with connected(fake, mode=mode) as connection:
        async with connection.meanwhile("send", instance="alpha", message="Go") as sending:
            await until(lambda: "make red" in sending.streamed)
            gate.open()
        assert all("\n" not in sign for sign in sending.heard)
        check(sending.answer)


async def test_a_transcript_is_safe(mode: str) -> None:
    fake = FakeOpenCode()
    steps = [ToolCall(tool=f"ba{EVIL}sh", input={"command": EVIL}, fails=EVIL, says=EVIL)]
    fake.create_session(f"Title {EVIL}")
    fake.script(Reply(tools=steps, text=EVIL, error=EVIL))
    async with connected(fake, mode=mode) as connection:
        sent = check(await connection.call("send", instance="alpha", message=f"Go {EVIL}", listen=True))
        assert sent.is_error
        assert "red bell" in sent.text
        check(await connection.call("read", instance="alpha"))


async def test_error_messages_are_safe_and_bounded(mode: str) -> None:
    fake = FakeOpenCode()
    fake.create_session(f"One {EVIL}")
    fake.create_session(f"Two {EVIL}")
    async with connected(fake, mode=mode) as connection:
        cases: list[dict[str, Any]] = [
            {"instance": EVIL},
            {"instance": "x" * 500},
            {"instance": "alpha", "session": EVIL},
            {"instance": "alpha", "session": "red"},
            {"instance": "alpha", "session": "x" * 500},
        ]
        for arguments in cases:
            for tool in ("send", "read"):
                more: dict[str, Any] = {"message": "hi"} if tool == "send" else {}
                answer = check(await connection.call(tool, **arguments, **more))
                assert answer.is_error
                assert len(answer.text) < 1000
                assert len(lines_of(answer)) == 1


async def test_a_thousand_sessions_are_not_all_listed(mode: str) -> None:
    fake = FakeOpenCode()
    for number in range(300):
        fake.create_session(f"Session {number}")
    async with connected(fake, mode=mode) as connection:
        answer = await connection.call("read", instance="alpha", session="session")
        assert answer.is_error
        assert answer.text.endswith("and 280 more. Say which one.")


async def test_odd_times_and_ids_break_nothing(mode: str) -> None:
    fake = FakeOpenCode()
    session = fake.create_session("Odd")
    async with connected(fake, mode=mode) as connection:
        await connection.call("send", instance="alpha", message="Hi")
        for created in (-(2**60), 2**52, 1e300, "yesterday", None, True):
            fake.messages[session][0]["info"]["time"] = {"created": created}
            answer = await connection.call("read", instance="alpha")
            assert not answer.is_error, created
            assert answer.data["messages"][0]["text"] == "Hi"
        fake.messages[session][0]["info"] = {"id": "../../x", "role": 7}
        answer = await connection.call("read", instance="alpha")
        assert [message["text"] for message in answer.data["messages"]] == ["You said: Hi"]
