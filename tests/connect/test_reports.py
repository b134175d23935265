"""`status`, `cleanup` and `sessions`: what they show, what they remove, and their exit codes."""

import json
import os
import signal
from pathlib import Path

import anyio.to_thread
import pytest

from local_relay.relay_parts import register
from opencode_mcp.testing import FakeOpenCode, Fault
from support.connected import PROMPTLY, Connected, eventually

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


def killed(connected: Connected, **variables: str) -> Path:
    """Start one and kill it; return the registration that it leaves."""
    before = connected.files()
    with connected.announced(**variables) as started:
        [path] = [path for path in connected.files() if path not in before]
        processes = set(connected.processes())
        started.signal(signal.SIGKILL)
        started.code()
    eventually(lambda: started.pid not in connected.processes(), PROMPTLY)
    eventually(lambda: len(connected.processes()) == len(processes) - 2, PROMPTLY)
    return path


def test_status_shows_how_each_stands(connected: Connected) -> None:
    with connected.announced(INSTANCE_NAME="one") as one, connected.announced(INSTANCE_NAME="two"):
        outcome = connected("status")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"one  (process {one.pid}, since " in outcome.out
    rows = [line.split(maxsplit=2) for line in outcome.out.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows] == ["project", "opencode", "local-relay", "registration", "log"] * 2
    assert rows[0][1] == str(connected.project)
    assert [row[1] for row in rows[1:4]] == ["ok"] * 3
    assert "1.18.33 answers at http://127.0.0.1:" in rows[1][2]
    assert f"{connected.registry}/one.json" in rows[3][2]
    assert rows[4][1] == str(connected.state / "one.log")


def test_status_of_a_stopped_opencode_is_a_failure(connected: Connected) -> None:
    with connected.announced():
        pid = connected.run()["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            outcome = connected("status", HEALTH_CHECK_TIMEOUT_MS="200")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert outcome.code == 1
    [line] = [line for line in outcome.out.splitlines() if line.startswith("  opencode ")]
    assert line.split()[1] == "FAILED"


def test_status_tells_of_a_registration_that_is_missing(connected: Connected) -> None:
    connected.registry.touch()  # a file, where a directory should be
    with connected.started("--headless"):
        eventually(lambda: "Next attempt in" in connected.logs())
        outcome = connected("status")
    assert outcome.code == 1
    [line] = [line for line in outcome.out.splitlines() if "not announced: " in line]
    assert line.split()[:2] == ["local-relay", "FAILED"]


def test_status_of_nothing_says_so(connected: Connected) -> None:
    outcome = connected("status")
    assert (outcome.code, outcome.out) == (1, "No instance of yours is announced from this machine.\n")


def test_status_needs_neither_opencode_nor_a_folder(connected: Connected) -> None:
    (connected.programs / "opencode").unlink()
    assert connected("status", cwd=Path("/")).err == ""


def test_what_was_killed_is_told_and_cleaned_up_and_nothing_else(connected: Connected) -> None:
    with connected.announced(INSTANCE_NAME="living"):
        living = connected.files()
        dead = killed(connected, INSTANCE_NAME="dead")
        foreign = [
            register(connected.registry, "other", name="dead", port=1, localPort=1),
            register(connected.registry, "dead-2", id="other", name="dead", port=2, localPort=2),
        ]
        notes = connected.registry / "notes.json"
        notes.write_text("not JSON")
        status = connected("status")
        assert "Something was left behind by dead: opencode-connected cleanup\n" in status.out
        assert "living  (process" in status.out
        outcome = connected("cleanup")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out == f"dead: removed registration {dead}\ndead: nothing is left\n"
        assert connected.files() == sorted([*living, *foreign, notes])
        assert "dead" not in connected("status").out.replace(str(connected.home), "")
        assert connected("cleanup").out == ""


def test_cleanup_where_nothing_was_ever_started_does_nothing(connected: Connected) -> None:
    outcome = connected("cleanup")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert not connected.registry.exists()


def test_what_cannot_be_cleaned_up_is_kept_for_the_next_time(connected: Connected) -> None:
    dead = killed(connected, INSTANCE_NAME="dead")
    connected.registry.chmod(0o777)
    outcome = connected("cleanup")
    assert outcome.code == 1
    assert outcome.out.startswith("dead: transport local-relay: ")
    assert str(connected.registry) in outcome.out
    assert dead.exists()
    connected.registry.chmod(0o700)
    assert connected("cleanup").out.endswith("dead: nothing is left\n")
    assert not dead.exists()


def test_what_was_announced_elsewhere_is_not_taken_for_gone(connected: Connected) -> None:
    dead = killed(connected, INSTANCE_NAME="dead")
    elsewhere = str(connected.home / "elsewhere")
    outcome = connected("cleanup", RELAY_REGISTRY_DIR=elsewhere)
    assert outcome.code == 1
    assert "with other settings than those of this shell" in outcome.out
    assert dead.exists()
    assert connected("cleanup").out == f"dead: removed registration {dead}\ndead: nothing is left\n"
    with connected.announced(INSTANCE_NAME="living"):
        assert "with other settings" in connected("status", RELAY_REGISTRY_DIR=elsewhere).out


def test_a_start_elsewhere_does_not_forget_what_was_left_where_it_was(connected: Connected) -> None:
    dead = killed(connected, INSTANCE_NAME="dead")
    elsewhere = connected.home / "elsewhere"
    with connected.started("--headless", INSTANCE_NAME="dead", RELAY_REGISTRY_DIR=str(elsewhere)) as started:
        eventually(lambda: list(elsewhere.glob("*.json")))
        started.signal(signal.SIGTERM)
        started.code()
    assert list(elsewhere.iterdir()) == []
    assert dead.exists()
    assert connected("cleanup").out == f"dead: removed registration {dead}\ndead: nothing is left\n"


def test_what_another_machine_left_in_a_shared_home_is_not_ours(connected: Connected) -> None:
    killed(connected, INSTANCE_NAME="dead")
    record = connected.state / "dead.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "machine": "another"}))
    assert connected("cleanup").out == ""
    assert "dead" not in connected("status").out
    assert record.exists()


def test_cleanup_after_a_transport_is_gone_says_so(connected: Connected) -> None:
    killed(connected, INSTANCE_NAME="dead")
    record = connected.state / "dead.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "places": {"pigeon": ""}}))
    outcome = connected("cleanup")
    assert outcome.code == 1
    assert outcome.out.startswith("dead: transport pigeon: ")
    connected.end()


async def test_sessions_lists_those_of_every_registered_instance(connected: Connected) -> None:
    shop, bank = FakeOpenCode(), FakeOpenCode(password="s3cret")
    async with shop.serve(), bank.serve():
        connected.registry.mkdir(mode=0o700)
        register(connected.registry, "shop", name="shop", port=shop.port)
        register(connected.registry, "bank", name="bank", port=bank.port)
        session = shop.create_session("Fix the\x1b[31m till")
        outcome = await anyio.to_thread.run_sync(lambda: connected("sessions"))
        assert outcome.code == 1, "the bank wants a password"
        assert outcome.err == ""
        assert outcome.out.index("bank (laptop") < outcome.out.index("shop (laptop")
        assert "OPENCODE_SERVER_PASSWORD" in outcome.out
        known = await anyio.to_thread.run_sync(
            lambda: connected("sessions", OPENCODE_SERVER_PASSWORD="s3cret")
        )
        assert (known.code, known.err) == (0, "")
        assert known.out.count("no session yet") == 1
        assert f"  {session} " in known.out
        assert " Fix the till\n" in known.out


async def test_sessions_of_an_instance_that_fails_are_told_beside_the_others(connected: Connected) -> None:
    well, ill = FakeOpenCode(), FakeOpenCode()
    ill.fault = Fault.HANG
    async with well.serve(), ill.serve():
        connected.registry.mkdir(mode=0o700)
        register(connected.registry, "well", name="well", port=well.port)
        register(connected.registry, "ill", name="ill", port=ill.port)
        outcome = await anyio.to_thread.run_sync(lambda: connected("sessions", HEALTH_CHECK_TIMEOUT_MS="500"))
    assert outcome.code == 1
    assert "no session yet" in outcome.out


def test_sessions_of_nobody_say_so(connected: Connected) -> None:
    outcome = connected("sessions")
    assert (outcome.code, outcome.out, outcome.err) == (0, "No instance is registered.\n", "")


def test_sessions_of_a_registry_that_cannot_be_used_is_a_failure(connected: Connected) -> None:
    connected.registry.touch()
    outcome = connected("sessions")
    assert outcome.code == 1
    assert outcome.out.startswith("Transport local-relay: ")
