"""Without what only POSIX has, everything but `opencode-connected` still works.

No Windows runs these tests: `support.windows` takes away from a process here what Windows has not. That finds
an import or a call that is not guarded, and tells nothing of how Windows itself behaves.
"""

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from opencode_mcp.testing import FakeOpenCode, Reply
from support.command import Command, Outcome
from support.stdio_server import registered
from support.windows import module_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "import sys; sys.argv[0] = {name!r}; from {module} import main; main()"
GATEWAY = PROGRAM.format(name="opencode-mcp", module="opencode_mcp.cli")
CONNECTED = PROGRAM.format(name="opencode-connected", module="opencode_mcp.connect.command")
# `connect.command` refuses before it imports one of these; `state.announced` does without.
POSIX_ONLY = {
    *(f"opencode_mcp.connect.{name}" for name in ("child", "cleanup", "leaving", "report", "sessions")),
    *(f"opencode_mcp.connect.{name}" for name in ("slots", "start", "status", "supervise", "terminal")),
    *(f"opencode_mcp.connect.{name}" for name in ("beside", "place", "plan", "leadership", "wish")),
    "opencode_mcp.state.records",
    "opencode_mcp.testing.fleet",  # the processes behind the benchmarks
}
IMPORT_ALL = """
import importlib, json, traceback
from support.stdio_server import registered
from support.windows import module_names

failures = {}
for name in module_names():
    try:
        importlib.import_module(name)
    except Exception:
        failures[name] = traceback.format_exc(limit=-3)
print(json.dumps(failures))
"""


def words(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "support.windows", program, *arguments]


def environment(command: Command) -> dict[str, str]:
    return command.environment(PYTHONPATH=str(ROOT / "tests"))


@pytest.fixture
def command(tmp_path: Path) -> Command:
    command = Command(tmp_path)
    command.registry.mkdir(mode=0o700)
    return command


def run(command: Command, program: str, *arguments: str) -> Outcome:
    ended = subprocess.run(
        words(program, *arguments),
        capture_output=True,
        cwd=command.home,
        env=environment(command),
        timeout=60,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def test_every_module_that_a_gateway_or_a_transport_needs_is_imported_without_posix(command: Command) -> None:
    outcome = run(command, IMPORT_ALL)
    assert outcome.code == 0, outcome.err
    failures = {name: why for name, why in json.loads(outcome.out).items() if name not in POSIX_ONLY}
    assert not failures, "\n".join(failures.values())


def test_the_modules_that_may_need_posix_are_there() -> None:
    assert set(module_names()) >= POSIX_ONLY


def test_the_transports_are_listed_without_posix(command: Command) -> None:
    outcome = run(command, GATEWAY, "transports", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows = {row["name"]: row for row in json.loads(outcome.out)}
    assert {"local-relay", "mdns", "tailscale"} <= set(rows)


def test_opencode_connected_says_where_it_runs(command: Command) -> None:
    outcome = run(command, CONNECTED)
    assert (outcome.code, outcome.out) == (2, "")
    assert (
        outcome.err
        == "opencode-connected: opencode-connected needs a POSIX system. On Windows, run it inside WSL.\n"
    )


@pytest.mark.anyio
async def test_a_chat_client_drives_an_instance_without_posix(command: Command) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        args=words(GATEWAY)[1:],
        env=environment(command),
        cwd=command.home,
    )
    fake = FakeOpenCode(directory="/srv/shop", default_reply=lambda text: Reply(text=text.upper()))
    async with registered(command, fake, "shop"):
        with anyio.fail_after(60):
            async with Client(stdio_client(server)) as client:
                listed = await client.call_tool("instances", {})
                answer = await client.call_tool("send", {"instance": "shop", "message": "hello"})
    assert "shop" in str(listed.content)
    assert "HELLO" in str(answer.content)
