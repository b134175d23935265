"""The server as a process on stdio: it starts whatever it finds, says only JSON-RPC, ends when it should."""

import base64
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from opencode_mcp.testing import FakeOpenCode, Gate, Reply
from support.command import Command
from support.mcp_client import call, in_both_eras, until_shown
from support.stdio_server import Wire, announce, client_of, fleet_process, registered, serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PROMPTLY = 3.0
"""Seconds in which a signal or the end of stdin must end the process."""


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


async def begin_send(wire: Wire, gate: Gate) -> None:
    """Start a `send` and wait until its text streams; the fake never finishes it by itself."""
    await wire.start_tool("send", instance="laptop-shop", message="Go", wait=60)
    gate.release()
    await wire.until_progress("Some ")


def endless() -> tuple[FakeOpenCode, Gate]:
    fake, gate = FakeOpenCode(), Gate()
    fake.script(Reply(chunks=["Some ", "text"], gate=gate))
    return fake, gate


@pytest.mark.parametrize("registry", ["missing", "empty", "unusable"])
async def test_initialize_is_answered_whatever_the_registry_is(command: Command, registry: str) -> None:
    if registry == "empty":
        command.registry.mkdir(mode=0o700)
    elif registry == "unusable":
        command.registry.write_text("a file")
    async with serving(command) as wire:
        result = await wire.initialize()
        assert result["serverInfo"]["name"] == "opencode-mcp"
        assert result["instructions"]
        listing = (await wire.tool("instances"))["structuredContent"]
        assert listing["instances"] == []
        assert listing["notes"]
        await wire.close_stdin()
        assert await wire.exit_code(PROMPTLY) == 0
        assert (b"registry" in wire.err) == (registry == "unusable")


async def test_hanging_instances_hold_nothing_up(command: Command) -> None:
    async with fleet_process(command, count=21, hang=20), serving(command) as wire:
        await wire.initialize()
        began = time.monotonic()
        rows = (await wire.tool("instances"))["structuredContent"]["instances"]
        assert time.monotonic() - began < 2
        assert {row["name"]: row["status"] for row in rows}["fake-000"] == "online"
        assert sum(row["status"] == "connecting" for row in rows) == 20
        answer = await wire.tool("send", instance="fake-000", message="Hi")
        assert answer["structuredContent"]["text"] == "You said: Hi"
        await wire.close_stdin()
        assert await wire.exit_code(PROMPTLY) == 0
        assert wire.err == b""


async def test_the_end_of_stdin_ends_it_even_before_the_first_message(command: Command) -> None:
    async with serving(command) as wire:
        await wire.close_stdin()
        assert await wire.exit_code() == 0
    assert (wire.out, wire.err) == (b"", b"")


async def test_the_end_of_stdin_ends_it_while_a_send_is_running(command: Command) -> None:
    fake, gate = endless()
    async with registered(command, fake), serving(command) as wire:
        await wire.initialize()
        await begin_send(wire, gate)
        await wire.close_stdin()
        assert await wire.exit_code(PROMPTLY) == 0
        assert wire.err == b""
        assert fake.busy, "the agent's work goes on"


async def test_a_client_that_vanishes_leaves_no_process_and_no_traceback(command: Command) -> None:
    fake, gate = endless()
    async with registered(command, fake), serving(command) as wire:
        await wire.initialize()
        await begin_send(wire, gate)
        assert wire.process.stdout
        await wire.process.stdout.aclose()
        gate.open()
        await wire.close_stdin()
        assert await wire.exit_code(PROMPTLY) == 0
        assert wire.err == b""


@pytest.mark.parametrize("state", ["idle", "sending", "hanging instances"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["TERM", "INT"])
async def test_a_signal_ends_it_at_once(
    command: Command, state: str, number: signal.Signals, code: int
) -> None:
    fake, gate = endless()
    async with registered(command, fake), fleet_process(command, 3, hang=3), serving(command) as wire:
        await wire.initialize()
        if state == "sending":
            await begin_send(wire, gate)
        elif state == "hanging instances":
            await wire.tool("instances")
        wire.process.send_signal(number)
        assert await wire.exit_code(PROMPTLY) == code
        assert (wire.err, wire.junk) == (b"", [])


async def test_nothing_but_json_rpc_is_on_stdout(command: Command) -> None:
    (command.home / "registry").mkdir(mode=0o700)
    (command.registry / "bad.json").write_text("{")
    fake = FakeOpenCode()
    async with (
        registered(command, fake),
        serving(command, OPENCODE_MCP_LOG_LEVEL="DEBUG", PYTHONWARNINGS="always") as wire,
    ):
        await wire.initialize()
        for line in (b"", b"hello", b'{"jsonrpc":"2.0"', b"[]", b"\xff\xfe", b'{"jsonrpc":"1.0","id":7}'):
            await wire.write(line)
        await wire.ask("tools/list", {})
        await wire.tool("instances")
        await wire.tool("send", instance="laptop-shop", message="Hi")
        await wire.tool("read", instance="laptop-shop")
        await wire.tool("read", instance="nobody")
        await wire.close_stdin()
        assert await wire.exit_code() == 0
        assert wire.junk == []
        assert wire.err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"DISCOVERY_INTERVAL_MS": "soon"}, ["DISCOVERY_INTERVAL_MS", "'soon'", "milliseconds"]),
        ({"SEND_TIMEOUT_MS": "-5"}, ["SEND_TIMEOUT_MS", "'-5'", "milliseconds"]),
        ({"TRANSPORT": "carrier-pigeon"}, ["TRANSPORT", "'carrier-pigeon'", "local-relay", "install"]),
        ({"RELAY_PRUNE_AFTER_MS": "never"}, ["RELAY_PRUNE_AFTER_MS", "'never'", "milliseconds"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_a_bad_environment_ends_it_with_one_message(
    command: Command, variables: dict[str, str], words: list[str]
) -> None:
    async with serving(command, **variables) as wire:
        assert await wire.exit_code() == 2
    assert wire.out == b""
    [line] = wire.err.decode().splitlines()
    assert line.startswith("opencode-mcp: ")
    assert all(word in line for word in words)


@in_both_eras
async def test_every_delta_reaches_the_official_client(command: Command, mode: str) -> None:
    fake = FakeOpenCode()
    pieces = [f"{number} " for number in range(400)]
    fake.script(Reply(chunks=pieces))
    async with registered(command, fake), client_of(command, mode) as client:
        heard: list[str] = []
        with anyio.fail_after(30):
            answer = await call(client, "send", heard=heard, instance="shop", message="Count")
        assert "".join(heard) == answer.text == "".join(pieces)


@in_both_eras
async def test_a_registration_that_appears_later_is_found_within_a_second(
    command: Command, mode: str
) -> None:
    fake = FakeOpenCode()
    async with fake.serve(), client_of(command, mode) as client:
        assert (await call(client, "instances")).data["instances"] == []
        await anyio.to_thread.run_sync(announce, command, "one", fake.port)
        await until_shown(client, "one", seconds=1)  # the directory itself was missing
        async with FakeOpenCode().serve() as other:
            await anyio.to_thread.run_sync(announce, command, "two", other.port)
            await until_shown(client, "two", seconds=1)
            row = await until_shown(client, "two", status="online")
            assert row["transport"] == "local-relay"


async def test_a_killed_instance_is_offline_within_two_seconds(command: Command) -> None:
    async with fleet_process(command, count=2) as instances, client_of(command) as client:
        await until_shown(client, "fake-000", status="online")
        await until_shown(client, "fake-001", status="online")
        instances.kill()
        await until_shown(client, "fake-000", status="offline", seconds=2)
        row = await until_shown(client, "fake-001", status="offline", seconds=1)
        assert row["last_seen"]


async def test_passwords_are_nowhere_in_its_output(command: Command) -> None:
    right, wrong = "s3cret-right", "s3cret-wrong"
    locked = FakeOpenCode(password=right)
    async with registered(command, locked):
        for password, status in ((right, "online"), (wrong, "needs credentials")):
            variables = {"OPENCODE_SERVER_PASSWORD": password, "OPENCODE_MCP_LOG_LEVEL": "DEBUG"}
            async with serving(command, **variables) as wire:
                await wire.initialize()
                [row] = (await wire.tool("instances"))["structuredContent"]["instances"]
                assert row["status"] == status
                await wire.tool("send", instance="laptop-shop", message="Hi")
                await wire.tool("read", instance="laptop-shop")
                await wire.close_stdin()
                assert await wire.exit_code() == 0
            encoded = base64.b64encode(f"opencode:{password}".encode())
            everything = bytes(wire.out + wire.err)
            assert b"s3cret" not in everything
            assert encoded.rstrip(b"=") not in everything
            assert b"httpcore" in wire.err, "DEBUG was not in force"


async def test_a_bad_password_variable_is_not_repeated(command: Command) -> None:
    variables: dict[str, Any] = {"OPENCODE_SERVER_PASSWORD": "s3cret", "SEND_TIMEOUT_MS": "s"}
    async with serving(command, **variables) as wire:
        assert await wire.exit_code() == 2
    assert b"s3cret" not in wire.err
