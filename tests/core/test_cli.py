"""The command `opencode-mcp`, as a person or a script meets it: a process of its own, on real instances."""

import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import pytest

from opencode_mcp.cli.show import Typing
from opencode_mcp.conversation import Reply
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp.testing import Reply as Answers
from support.command import MODULE, Command, Outcome

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # each test starts processes

ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@asynccontextmanager
async def instance(command: Command, fake: FakeOpenCode, name: str = "laptop-shop") -> AsyncGenerator[None]:
    """Serve `fake` and register it as `name`."""
    async with fake.serve():
        registry = anyio.Path(command.registry)
        await registry.mkdir(mode=0o700, exist_ok=True)
        path = registry / f"{name}.json"
        content = {"name": name, "hostname": "laptop", "port": fake.port, "cwd": "/x"}
        await path.write_text(json.dumps(content))
        await path.chmod(0o600)
        yield


def said(fake: FakeOpenCode) -> list[str]:
    """What was prompted, in order."""
    return [
        part["text"]
        for stored in fake.messages.values()
        for message in stored
        if message["info"]["role"] == "user"
        for part in message["parts"]
    ]


def assert_plain(*outcomes: Outcome) -> None:
    for one in outcomes:
        assert not ESCAPE.search(one.out + one.err)
        assert "Traceback" not in one.err


# Without any instance.


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands(command: Command, flag: str):
    ended = command(flag)
    assert (ended.code, ended.err) == (0, "")
    for name in ("instances", "send", "read", "transports"):
        assert re.search(rf"^\W*{name}\s", ended.out, re.MULTILINE)
    assert_plain(ended)


def test_the_installed_command_says_its_version(command: Command):
    for script in (True, False):
        ended = command("--version", script=script)
        assert (ended.code, ended.out) == (0, f"opencode-mcp {version('opencode-mcp-core')}\n")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["send"], ["instances", "--nonsense"], ["read", "x", "-n", "0"]]
)
def test_what_it_does_not_know_is_told_with_the_usage(command: Command, arguments: list[str]):
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: " in ended.err
    assert_plain(ended)


@pytest.mark.parametrize("exists", [False, True])
def test_with_an_empty_registry_it_tells_how_to_connect_an_instance(command: Command, exists: bool):
    if exists:
        command.registry.mkdir(mode=0o700)
    table, data = command("instances"), command("instances", "--json")
    assert (table.code, table.err, data.code, data.err) == (0, "", 0, "")
    assert table.out.startswith("No OpenCode instance is connected.\nnote: ")
    overview = json.loads(data.out)
    assert overview["instances"] == []
    (note,) = overview["notes"]
    assert str(command.registry) in note
    assert f"note: {note}" in table.out.splitlines()  # in one line, to be copied
    assert_plain(table, data)


@pytest.mark.parametrize("arguments", [["send", "laptop", "hello"], ["read", "laptop"]])
def test_with_no_instance_at_all_nothing_can_be_said_to_it(command: Command, arguments: list[str]):
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("opencode-mcp: No instance is connected. ")
    assert_plain(ended)


@pytest.mark.parametrize(
    ("arguments", "stdin"), [(["send", "x", b"caf\xe9"], b""), (["send", "x", "-"], b"caf\xe9")]
)
def test_a_message_that_is_no_text_is_refused(command: Command, arguments: list[str | bytes], stdin: bytes):
    ended = command(*arguments, stdin=stdin)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "opencode-mcp: The message is not text in this terminal's encoding, utf-8.\n"


def test_a_terminal_that_lacks_a_character_shows_the_others(tmp_path: Path):
    home = tmp_path / "caf\u00e9"
    home.mkdir()
    command = Command(home)
    table = command("instances", PYTHONIOENCODING="ascii")
    assert (table.code, table.err) == (0, "")
    assert "caf?/registry/my-project.json" in table.out
    data = command("instances", "--json", PYTHONIOENCODING="ascii")
    assert str(command.registry) in json.loads(data.out)["notes"][0]


# With an instance.


async def test_instances_are_listed_with_what_is_known_of_them(command: Command):
    fake = FakeOpenCode(directory="/srv/shop")
    async with instance(command, fake, "a-name-long-enough-to-be-folded-on-a-narrow-screen"):
        fake.create_session("Fix the till")
        table = await command.meanwhile("instances", COLUMNS="40")
        data = await command.meanwhile("instances", "--json")
    assert (table.code, table.err, data.code, data.err) == (0, "", 0, "")
    head, row = table.out.splitlines()
    assert head.split() == ["name", "state", "host", "directory", "session", "version", "last", "seen"]
    assert re.split(r"\s{2,}", row.strip()) == [
        "a-name-long-enough-to-be-folded-on-a-narrow-screen",
        "idle",
        "laptop",
        "/srv/shop",
        "Fix the till",
        "1.18.33",
    ]
    (found,) = json.loads(data.out)["instances"]
    assert found["last_seen"]
    assert {key: found[key] for key in ("name", "status", "activity", "host", "directory", "session")} == {
        "name": "a-name-long-enough-to-be-folded-on-a-narrow-screen",
        "status": "online",
        "activity": "idle",
        "host": "laptop",
        "directory": "/srv/shop",
        "session": "Fix the till",
    }
    assert_plain(table, data)


async def test_nothing_that_an_instance_says_steers_the_terminal(command: Command):
    fake = FakeOpenCode(directory="/srv/\x1b[31mshop")
    async with instance(command, fake):
        session = fake.create_session("\x1b]0;owned\x07Fix\x9b2J the \u202etill")
        fake.script(Answers(text="\x1b[2JAll \x1b]52;c;eA==\x07is well.\x00"))
        ended = [
            await command.meanwhile("send", "laptop", "hello"),
            await command.meanwhile("instances"),
            await command.meanwhile("read", "laptop"),
            await command.meanwhile("read", "laptop", "--json"),
        ]
    assert [one.code for one in ended] == [0, 0, 0, 0]
    assert ended[0].out == "All is well.\n"
    assert "/srv/shop" in ended[1].out
    assert session in ended[2].out
    assert_plain(*ended)


async def test_send_prints_the_answer_alone(command: Command):
    fake = FakeOpenCode()
    fake.script(Answers(reasoning=["hm"], text="First.\n\nThen second."))
    async with instance(command, fake):
        ended = await command.meanwhile("send", "LAPTOP", "What first?")
    assert (ended.code, ended.out, ended.err) == (0, "First.\n\nThen second.\n", "")
    assert said(fake) == ["What first?"]
    assert_plain(ended)


async def test_send_with_json_prints_everything(command: Command):
    fake = FakeOpenCode()
    async with instance(command, fake):
        session = fake.create_session("Fix the till")
        ended = await command.meanwhile("send", "laptop", "Grüße, 東京", "--session", "till", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == {
        "instance": "laptop-shop",
        "state": "done",
        "session_id": session,
        "session": "Fix the till",
        "text": "You said: Grüße, 東京",
        "note": "",
    }
    assert "東京" in ended.out  # for people as well


async def test_a_message_of_several_lines_comes_over_stdin(command: Command):
    fake = FakeOpenCode(default_reply=lambda text: Answers(text=text.upper()))
    async with instance(command, fake):
        ended = await command.meanwhile("send", "laptop", "-", stdin="one\ntwo ß\n".encode())
    assert (ended.code, ended.out) == (0, "ONE\nTWO SS\n")
    assert said(fake) == ["one\ntwo ß\n"]


async def test_send_without_a_message_is_refused(command: Command):
    fake = FakeOpenCode()
    async with instance(command, fake):
        for ended in (
            await command.meanwhile("send", "laptop"),
            await command.meanwhile("send", "laptop", "-"),
        ):
            assert (ended.code, ended.out) == (2, "")
            assert ended.err == "opencode-mcp: There is no message to send.\n"
    assert said(fake) == []


async def test_an_unknown_or_ambiguous_name_is_refused_with_the_candidates(command: Command):
    fakes = FakeOpenCode(), FakeOpenCode()
    async with instance(command, fakes[0], "laptop-shop"), instance(command, fakes[1], "laptop-web"):
        unknown = await command.meanwhile("send", "tablet", "hello")
        ambiguous = await command.meanwhile("read", "laptop")
    assert (unknown.code, unknown.out, ambiguous.code, ambiguous.out) == (2, "", 2, "")
    assert unknown.err == ("opencode-mcp: There is no instance 'tablet'. Known: laptop-shop, laptop-web.\n")
    assert ambiguous.err == (
        "opencode-mcp: 'laptop' fits several instances: laptop-shop, laptop-web. Say which one.\n"
    )
    assert [said(fake) for fake in fakes] == [[], []]


async def test_who_does_not_wait_is_told_how_to_go_on_with_exit_code_1(command: Command):
    fake = FakeOpenCode()
    fake.script(Answers(chunks=["Half"], never_finishes=True))
    async with instance(command, fake):
        ended = await command.meanwhile("send", "laptop", "hello", "--wait", "0")
        assert ended.code == 1
        assert ended.out in ("", "Half\n")  # what there is, if it is there already
        assert "`read` shows how it goes on" in ended.err
        again = await command.meanwhile("send", "laptop", "hello again", "--json")
        assert again.code == 1
        assert json.loads(again.out)["state"] == "busy"
        aborted = await command.meanwhile("send", "laptop", "--abort")
        assert (aborted.code, aborted.out) == (0, "")
        assert aborted.err == "The agent of laptop-shop was stopped.\n"
        assert not fake.busy
        idle = await command.meanwhile("send", "laptop", "--abort", "--json")
        assert idle.code == 0
        assert json.loads(idle.out)["state"] == "nothing to abort"
    assert said(fake) == ["hello"]


async def test_send_timeout_bounds_the_waiting_of_who_does_not_say_how_long(command: Command):
    fake = FakeOpenCode()
    fake.script(Answers(never_finishes=True))
    async with instance(command, fake):
        ended = await command.meanwhile("send", "laptop", "hello", SEND_TIMEOUT_MS="1")
    assert ended.code == 1
    assert "Waited 0 s." in ended.err


async def test_an_error_of_the_agent_is_told_with_exit_code_1(command: Command):
    fake = FakeOpenCode()
    fake.script(Answers(text="So far.", error="no credit"))
    async with instance(command, fake):
        ended = await command.meanwhile("send", "laptop", "hello")
    assert (ended.code, ended.out) == (1, "So far.\n")
    assert "no credit" in ended.err
    assert_plain(ended)


async def test_read_prints_the_newest_messages(command: Command):
    fake = FakeOpenCode()
    async with instance(command, fake):
        empty = await command.meanwhile("read", "laptop")
        fake.script(Answers(text="One."), Answers(text="Two."))
        await command.meanwhile("send", "laptop", "first")
        await command.meanwhile("send", "laptop", "second")
        whole = await command.meanwhile("read", "laptop")
        last = await command.meanwhile("read", "laptop", "-n", "1")
        data = await command.meanwhile("read", "laptop", "--limit", "2", "--json")
    assert (empty.code, empty.out) == (0, "laptop-shop has no session yet: use `send`.\n")
    assert (whole.code, last.code, data.code) == (0, 0, 0)
    assert re.findall(r"^(?:user|assistant) \(.*\):\n(.*)$", whole.out, re.MULTILINE) == [
        "first",
        "One.",
        "second",
        "Two.",
    ]
    assert "second" not in last.out
    assert "Two." in last.out
    read: dict[str, Any] = json.loads(data.out)
    assert [one["text"] for one in read["messages"]] == ["second", "Two."]
    assert [one["role"] for one in read["messages"]] == ["user", "assistant"]
    assert (read["instance"], read["activity"]) == ("laptop-shop", "idle")
    assert_plain(empty, whole, last, data)


async def test_an_instance_that_is_gone_is_told_as_such(command: Command):
    fake = FakeOpenCode()
    async with instance(command, fake):
        await fake.kill()
        listed = await command.meanwhile("instances")
        ended = await command.meanwhile("send", "laptop", "hello")
    assert listed.code == 0
    assert re.search(r"laptop-shop +unreachable .*Nothing accepts connections.* never", listed.out)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("opencode-mcp: laptop-shop is unreachable")
    assert_plain(listed, ended)


async def test_the_password_goes_where_it_is_wanted_and_is_never_shown(command: Command):
    fake = FakeOpenCode(password="hunter2")
    async with instance(command, fake):
        without = await command.meanwhile("instances")
        good = await command.meanwhile(
            "send", "laptop", "hello", OPENCODE_SERVER_PASSWORD="hunter2", OPENCODE_MCP_LOG_LEVEL="DEBUG"
        )
    assert "needs credentials" in without.out
    assert "OPENCODE_SERVER_PASSWORD" in without.out
    assert (good.code, good.out) == (0, "You said: hello\n")
    assert "hunter2" not in good.out + good.err


# On a terminal.


async def test_started_by_a_person_it_says_what_it_is_and_how_to_configure_a_client(command: Command):
    keyboard, terminal = os.openpty()
    try:
        async with await anyio.open_process(
            MODULE, stdin=terminal, cwd=command.home, env=command.environment()
        ) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            told = ""
            with anyio.fail_after(30):
                while "Ctrl-C ends it." not in told:
                    told += (await process.stderr.receive()).decode()
                process.send_signal(signal.SIGINT)
                rest = b"".join([piece async for piece in process.stderr])
                out = b"".join([piece async for piece in process.stdout])
                await process.wait()
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert told.startswith("opencode-mcp is an MCP server")
    assert "claude mcp add opencode -- opencode-mcp" in told
    (configuration,) = re.findall(r"\{.*\}", told)
    assert json.loads(configuration) == {"mcpServers": {"opencode": {"command": "opencode-mcp"}}}
    assert (rest, out, process.returncode) == (b"", b"", 130)


def test_started_by_a_client_it_says_nothing(command: Command):
    ended = command()
    assert (ended.code, ended.out, ended.err) == (0, "", "")


async def test_on_a_terminal_the_answer_is_typed_once(command: Command):
    fake = FakeOpenCode()
    fake.script(Answers(chunks=["All ", "is ", "well."]))
    async with instance(command, fake):
        screen, terminal = os.openpty()
        try:
            with anyio.fail_after(60):
                ended = await anyio.run_process(
                    [*MODULE, "send", "laptop", "hello"],
                    stdout=terminal,
                    stderr=subprocess.PIPE,
                    check=False,
                    cwd=command.home,
                    env=command.environment(),
                )
            shown = os.read(screen, 10_000)
        finally:
            os.close(screen)
            os.close(terminal)
    assert (ended.returncode, ended.stderr, shown) == (0, b"", b"All is well.\r\n")


def reply(text: str) -> Reply:
    return Reply(instance="laptop", state="done", text=text)


@pytest.mark.parametrize(
    ("typed", "answer", "shown"),
    [
        (["All ", "is well."], "All is well.", "All is well.\n"),
        (["Looking.\n\n", "All is well.\n"], "All is well.", "Looking.\n\nAll is well.\n\n"),
        (["All is w"], "All is well.", "All is w\nAll is well.\n"),
        ([], "All is well.", "All is well.\n"),
        (["Looking."], "", "Looking.\n"),
        ([], "", ""),
    ],
)
async def test_if_what_was_typed_is_not_the_answer_the_answer_follows(
    typed: list[str], answer: str, shown: str, capsys: pytest.CaptureFixture[str]
):
    typing = Typing()
    for piece in typed:
        await typing.text(piece)
        assert capsys.readouterr().out == piece  # at once
    typing.end(reply(answer))
    assert "".join(typed) + capsys.readouterr().out == shown
