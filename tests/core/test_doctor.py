"""`opencode-mcp doctor`, as a person or a script meets it: a process of its own, on real instances."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from core.doctor_parts import install_listed, listed
from opencode_mcp.testing import FakeFleet, FakeOpenCode, Fault
from opencode_mcp.testing.fleet import register
from support.command import MODULE, Command, Outcome
from support.distributions import Site
from support.model_server import ModelServer
from support.real_opencode import VERSION, running_opencode

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # each test starts processes

ROOT = Path(__file__).resolve().parents[2]
ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SECRET = "canary-4711"
PRINTED: tuple[tuple[str, ...], ...] = ((), ("--json",))
"""For a person, and for a program."""


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def registered(command: Command, name: str, port: int, **more: Any) -> Path:
    command.registry.mkdir(mode=0o700, exist_ok=True)
    path = command.registry / f"{name}.json"
    path.write_text(json.dumps({"name": name, "hostname": "laptop", "port": port, "cwd": "/x", **more}))
    path.chmod(0o600)
    return path


@asynccontextmanager
async def instance(command: Command, fake: FakeOpenCode, name: str = "laptop-shop") -> AsyncGenerator[None]:
    """Serve `fake` and register it as `name`."""
    async with fake.serve():
        registered(command, name, fake.port)
        yield


def lines(outcome: Outcome) -> list[str]:
    """The lines of a report, each without the blanks that only align it, and with plain dashes."""
    return [" ".join(line.replace("\u2013", "-").split()) for line in outcome.out.splitlines()]


async def test_what_is_well_is_said_in_a_line_each_with_exit_code_0(command: Command):
    async with instance(command, FakeOpenCode("/srv/shop")):
        ended = await command.meanwhile("doctor")
    assert (ended.code, ended.err) == (0, "")
    told = lines(ended)
    at = told.index("transport local-relay")
    assert [line for line in told[:at] if re.fullmatch(r"✓ settings \d+ at their defaults", line)]
    given = r"✓ settings RELAY_REGISTRY_DIR=~/registry; \d+ at their defaults"
    assert [line for line in told[at:] if re.fullmatch(given, line)]
    assert "✓ found 1 endpoint" in told
    (row,) = [line for line in told if "laptop-shop" in line]
    assert re.fullmatch(
        r"✓ laptop-shop http://\S+ OpenCode 1\.18\.33, first event [\d.]+ ms, round trip [\d.]+ ms", row
    )
    assert told[-1] == "All is well: 1 of 1 endpoints can be used."
    assert "fix:" not in ended.out
    assert not ESCAPE.search(ended.out)


async def test_what_is_broken_is_said_with_the_step_and_the_fix_and_exit_code_1(command: Command):
    async with instance(command, FakeOpenCode()), instance(command, FakeOpenCode(password="x"), "laptop-web"):
        ended = await command.meanwhile("doctor")
    assert (ended.code, ended.err) == (1, "")
    told = lines(ended)
    at = next(number for number, line in enumerate(told) if line.startswith("✗ laptop-web "))
    assert told[at + 1 : at + 4] == [
        "✓ admitted ✓ route ✓ reachable ✗ authenticated - api - events - round trip",
        "authenticated: It wants a password: set OPENCODE_SERVER_PASSWORD.",
        "fix: Give the password that it was started with: export OPENCODE_SERVER_PASSWORD='...'",
    ]
    assert told[-1] == "Something is broken, see ✗ above: 1 of 2 endpoints can be used."


async def test_nothing_found_is_no_failure_and_says_how_to_put_something_there(command: Command):
    ended, data = await command.meanwhile("doctor"), await command.meanwhile("doctor", "--json")
    assert (ended.code, ended.err, data.code) == (0, "", 0)
    told = lines(ended)
    at = next(number for number, line in enumerate(told) if line.startswith("! found Nothing, in "))
    assert told[at + 1].startswith("fix: Run `opencode-connected` in your project")
    assert "~/registry/my-project.json" in told[at + 1]
    assert told[-1] == "Nothing is broken, but no endpoint was found."
    report = json.loads(data.out)
    assert (report["state"], report["transports"][0]["endpoints"]) == ("warning", [])


async def test_what_was_left_out_is_said_with_the_file_and_the_reason(command: Command):
    path = registered(command, "broken", 1)
    path.write_text("{")
    os.utime(path, (1, 1))  # long ago, so that nobody takes it for half-written
    ended = await command.meanwhile("doctor")
    assert ended.code == 0
    assert any(line.startswith("- ~/registry/broken.json: it is not JSON") for line in lines(ended))


@pytest.mark.parametrize("arguments", [["doctor", "--nonsense"], ["doctor", "a", "b"], ["doctor", " , "]])
def test_what_it_does_not_know_is_told_with_the_usage_and_exit_code_2(command: Command, arguments: list[str]):
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: " in ended.err


def test_a_transport_is_examined_that_is_not_selected(command: Command, site: Site):
    site.install_transport("semaphore")
    ended = command("doctor", "semaphore", PYTHONPATH=str(site.path))
    assert ended.code == 0
    assert "transport semaphore" in ended.out
    assert "transport local-relay" not in ended.out
    missing = command("doctor", "semaphore,lamp", PYTHONPATH=str(site.path))
    assert missing.code == 1
    assert "- not tried imported, contract, settings, opened, found" in lines(missing)


KEYS = {
    "": ["schema", "state", "environment", "steps", "settings", "transports"],
    "environment": ["python", "platform", "packages", "proxies", "open_files", "open_files_most"],
    "steps": ["name", "state", "detail", "fix", "milliseconds"],
    "settings": ["variable", "value", "given", "secret"],
    "transports": [
        *("name", "distribution", "version", "state", "steps", "settings", "rejected", "endpoints"),
    ],
    "rejected": ["source", "reason"],
    "endpoints": [
        *("name", "id", "url", "hostname", "vouched", "version"),
        *("state", "first_event_ms", "round_trip_ms", "steps"),
    ],
}
"""The fields of the JSON. Programs rely on them: raise `schema` if one goes, or means something else."""


def assert_documented(value: Any, name: str = "") -> None:
    if isinstance(value, list):
        for one in value:
            assert_documented(one, name)
    elif isinstance(value, dict) and name != "packages":
        assert list(value) == KEYS[name]
        for key, one in value.items():
            assert_documented(one, key)


async def test_the_json_has_the_fields_that_programs_rely_on(command: Command):
    registered(command, "broken", 1).write_text("[]")
    async with instance(command, FakeOpenCode()), instance(command, FakeOpenCode(password="x"), "laptop-web"):
        ended = await command.meanwhile("doctor", "--json")
    assert (ended.code, ended.err) == (1, "")
    report = json.loads(ended.out)
    assert (report["schema"], report["state"]) == (1, "failed")
    assert_documented(report)
    (transport,) = report["transports"]
    assert transport["rejected"]
    steps = {step["name"]: step["state"] for one in transport["endpoints"] for step in one["steps"]}
    assert {"ok", "failed", "skipped"} >= set(steps.values())
    page = (ROOT / "docs/doctor.md").read_text("utf-8")
    for key in {key for keys in KEYS.values() for key in keys}:
        assert f"`{key}`" in page
    for step in (*steps, *(step["name"] for step in transport["steps"])):
        assert f"| {step} |" in page


async def test_no_secret_and_no_home_gets_into_a_report(command: Command, site: Site):
    install_listed(
        site, "async def discover(self): raise TransportError(f'No way to {self.settings.login}.')"
    )
    site.install(
        "dist-bad",
        transports={"bad": "bad"},
        modules={"bad": f"import os\nraise ValueError(os.environ['LISTED_TOKEN'], {str(command.home)!r})"},
    )
    variables = {
        "TRANSPORT": "local-relay,listed,bad",
        "PYTHONPATH": str(site.path),
        "OPENCODE_SERVER_PASSWORD": f"{SECRET}-password",
        "LISTED_TOKEN": f"{SECRET}-token",
        "LISTED_PASSWORD": f"{SECRET}-login",
        "RELAY_SSH_CMD": f"ssh -o Token={SECRET}-relay me@relay",
        "HTTPS_PROXY": f"http://me:{SECRET}-proxy@127.0.0.1:9",
        "OPENCODE_MCP_LOG_LEVEL": "CRITICAL",
    }
    async with instance(command, FakeOpenCode(password=f"{SECRET}-other")):
        broken = [await command.meanwhile("doctor", *more, stdin=b"", **variables) for more in PRINTED]
        del variables["OPENCODE_MCP_LOG_LEVEL"]
        told = [await command.meanwhile("doctor", *more, stdin=b"", **variables) for more in PRINTED]
    for one in (*broken, *told):
        assert one.code == 1
        assert SECRET not in one.out + one.err
        assert str(command.home) not in one.out
        assert "Traceback" not in one.err
    assert "No way to [secret]." in told[0].out
    assert "RELAY_SSH_CMD set" in told[0].out
    assert "OPENCODE_SERVER_PASSWORD set" in told[0].out
    assert "HTTPS_PROXY set; not used for instances" in told[0].out
    assert "ValueError: ('[secret]', '~')" in told[0].out


async def test_nothing_that_an_instance_or_a_plugin_says_steers_the_terminal(command: Command, site: Site):
    install_listed(
        site,
        "invitation = 'Come \\x1b[31min\\x07'\n"
        "def rejected(self): return [Rejection(source='\\x1b]0;x\\x07a', reason='b\\u202ec\\nd')]",
    )
    async with FakeOpenCode(directory="/srv/\x1b[31mshop", version="1.\x9b2J18").serve() as fake:
        variables = {"TRANSPORT": "listed", "PYTHONPATH": str(site.path)}
        ended = [
            await command.meanwhile("doctor", *more, stdin=b"", **variables, LISTED_ENDPOINTS=found)
            for more in PRINTED
            for found in ("[]", listed(fake))
        ]
    for one in ended:
        assert one.code == 0
        assert not ESCAPE.search(one.out + one.err)
        assert "\u202e" not in one.out


def test_what_a_plugin_prints_stays_out_of_the_report(command: Command, site: Site):
    site.install_transport("semaphore")
    module = site.path / "opencode_mcp_semaphore.py"
    module.write_text(f"print('hello')\n{module.read_text()}")
    ended = command("doctor", "semaphore", "--json", PYTHONPATH=str(site.path))
    assert (ended.code, ended.err) == (0, "hello\n")
    assert json.loads(ended.out)["state"] == "warning"


def test_a_thread_that_a_plugin_leaves_behind_does_not_keep_it_from_ending(command: Command, site: Site):
    site.install_transport("semaphore")
    module = site.path / "opencode_mcp_semaphore.py"
    stuck = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    module.write_text(f"{stuck}{module.read_text()}")
    for more in PRINTED:
        ended = command("doctor", "semaphore", *more, PYTHONPATH=str(site.path))
        assert (ended.code, ended.err) == (0, "")
        assert "semaphore" in ended.out


async def test_a_terminal_that_lacks_the_marks_gets_plain_ones(command: Command):
    async with instance(command, FakeOpenCode(password="x")):
        ended = await command.meanwhile("doctor", PYTHONIOENCODING="ascii")
        data = await command.meanwhile("doctor", "--json", PYTHONIOENCODING="ascii")
    assert ended.code == 1
    assert "+ admitted + route + reachable x authenticated - api - events - round trip" in lines(ended)
    assert "see x above" in ended.out
    assert "?" not in ended.out
    assert json.loads(data.out)["state"] == "failed"


def on_terminal(command: Command, columns: int, *arguments: str, **variables: str) -> list[str]:
    """Run the command on a terminal so wide; return the lines, without colours."""
    keyboard, terminal = os.openpty()
    try:
        running = subprocess.Popen(
            [*MODULE, *arguments],
            cwd=command.home,
            env=command.environment(COLUMNS=str(columns), TERM="xterm", **variables),
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.PIPE,
        )
        os.close(terminal)
        written = b""
        try:
            while piece := os.read(keyboard, 65_536):
                written += piece
        except OSError:  # how Linux says that nobody has the other side any more
            pass
        _, err = running.communicate(timeout=60)
    finally:
        os.close(keyboard)
    assert err == b""
    return re.sub(r"\x1b\[[\d;]*m", "", written.decode()).splitlines()


@pytest.mark.parametrize("columns", [40, 100])
async def test_on_a_terminal_lines_are_folded_in_their_column_and_commands_are_not(
    command: Command, columns: int
):
    async with instance(command, FakeOpenCode()), instance(command, FakeOpenCode(), "a-longer-name") as _:
        path = registered(command, "gone", 1)
        assert path.exists()
        shown = await anyio.to_thread.run_sync(on_terminal, command, columns, "doctor")
    assert [line for line in shown if len(line) > columns and "fix: " not in line] == []
    assert any(line.strip().startswith("fix: ") and line.endswith("/global/health") for line in shown)
    assert any(line.startswith("  ✓ laptop-shop") for line in shown)


async def test_hundreds_stay_readable(command: Command, tmp_path: Path):
    fleet = FakeFleet(150)
    async with fleet.serve():
        register(command.registry, fleet)
        for fake in fleet.fakes[:30]:
            fake.fault = Fault.HTML
        ended = await command.meanwhile("doctor", HEALTH_CHECK_TIMEOUT_MS="20000")
    assert ended.code == 1
    told = lines(ended)
    assert len([line for line in told if line.startswith("✓ fake-")]) == 120
    assert len([line for line in told if line.startswith("✗ fake-")]) == 30
    assert len([line for line in told if line.startswith("fix: ")]) == 10
    assert len(told) < 220
    assert told[-1] == "Something is broken, see ✗ above: 120 of 150 endpoints can be used."


async def test_all_official_transports_are_examined_side_by_side(command: Command, tmp_path: Path):
    async with instance(command, FakeOpenCode()):
        ended = await command.meanwhile(
            "doctor",
            "--json",
            TRANSPORT="local-relay,mdns,tailscale",
            MDNS_INTERFACES="no-such-interface",
            TAILSCALE_SOCKET=str(tmp_path / "no-such-socket"),
        )
    assert ended.code == 1
    relay, mdns, tailscale = json.loads(ended.out)["transports"]
    assert [one["name"] for one in (relay, mdns, tailscale)] == ["local-relay", "mdns", "tailscale"]
    assert relay["state"] == "ok"
    steps = [{step["name"]: step for step in one["steps"]} for one in (mdns, tailscale)]
    assert [one["opened"]["state"] for one in steps] == ["ok", "ok"]
    assert [one["found"]["state"] for one in steps] == ["failed", "failed"]
    assert steps[0]["found"]["detail"] == "This machine is on no network at present."
    assert "~/no-such-socket" in str(steps[1]["found"])


def loaded_by(statement: str) -> Sequence[str]:
    """Name the modules of ours that a statement imports."""
    code = f"import sys; {statement}; print(*(m for m in sys.modules if m.startswith('opencode_mcp')))"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()


def test_the_server_starts_without_it():
    loaded = loaded_by("import opencode_mcp.cli, opencode_mcp.cli.serve")
    assert "opencode_mcp.cli.serve" in loaded
    assert not [name for name in loaded if "doctor" in name]


@pytest.mark.real
async def test_a_real_opencode_is_well(command: Command, tmp_path: Path):
    project = tmp_path / "project"
    project.mkdir()
    model = ModelServer()
    async with model.serve(), running_opencode(project, model.url, password=SECRET) as server:
        registered(command, "real", int(server.url.rpartition(":")[2]))
        wrong = await command.meanwhile("doctor", "--json", HEALTH_CHECK_TIMEOUT_MS="20000")
        ended = await command.meanwhile(
            "doctor", "--json", HEALTH_CHECK_TIMEOUT_MS="20000", OPENCODE_SERVER_PASSWORD=SECRET
        )
    (endpoint,) = json.loads(wrong.out)["transports"][0]["endpoints"]
    assert [step["name"] for step in endpoint["steps"] if step["state"] == "failed"] == ["authenticated"]
    assert ended.code == 0, ended.out
    (endpoint,) = json.loads(ended.out)["transports"][0]["endpoints"]
    assert {step["state"] for step in endpoint["steps"]} == {"ok"}
    assert endpoint["version"] == VERSION
    assert endpoint["first_event_ms"] > 0
    assert SECRET not in ended.out
