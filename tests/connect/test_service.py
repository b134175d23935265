"""OpenCode 2.x in the terminal: its background service is announced beside it, followed, and left running."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support.connected import PROMPTLY, Connected, Started, eventually, patched

pytestmark = pytest.mark.slow

HOST = os.uname().nodename.partition(".")[0]
NIMBLE = patched(
    "service._FILE_SECONDS = 0.05", "service._PATIENCE_SECONDS = 0.5", "supervise._TURN_SECONDS = 0.05"
)


def tui(connected: Connected) -> dict[str, Any]:
    """Wait until the one TUI was started, and return how."""
    return connected.run()


def leave(connected: Connected, started: Started, code: int = 0) -> None:
    """Leave the TUI, as a person does."""

    def there() -> list[int]:
        alive = connected.processes()
        return [run["pid"] for run in connected.runs() if run["pid"] in alive]

    for pid in eventually(there):
        os.kill(pid, signal.SIGUSR1)
    assert started.code() == code


def listed(connected: Connected) -> list[dict[str, Any]]:
    """What the gateway on this machine lists, with nothing set up."""
    return json.loads(
        connected.gateway("instances", "--json", XDG_STATE_HOME=str(connected.state.parent)).out
    )["instances"]


def test_it_is_started_announced_under_the_machines_name_and_left_running(second: Connected) -> None:
    with second.started("--", "--model", "x/y", program=NIMBLE) as started:
        registration, told = second.registration(), second.told()
        assert tui(second)["argv"] == ["--model", "x/y"]
        assert (registration["name"], registration["cwd"]) == (HOST, "")
        assert registration["version"] == "2.1.2"
        assert f":{registration['port']}" in told["url"]
        rows = dict(line.strip().split(":", 1) for line in started.said.splitlines()[2:-1])
        assert rows["Instance"].strip() == HOST
        assert str(second.service) in rows["Password"]
        status = second("status")
        assert (status.code, "2.1.2 answers at" in status.out) == (0, True), status
        sessions = second("sessions")
        assert (sessions.code, sessions.out.count("ses_1")) == (0, 1), sessions
        [one] = listed(second)
        assert (one["name"], one["status"]) == (HOST, "online")
        leave(second, started)
    assert second.files() == []
    os.kill(told["pid"], 0)
    [one] = listed(second)
    assert (one["name"], one["status"]) == (HOST, "online"), "by its file, with no registration"
    sessions = second("sessions")
    assert (sessions.code, sessions.out.count("ses_1")) == (0, 1), sessions
    everything = [*second.state.rglob("*"), *second.home.glob("*.err"), *second.home.glob("*.out")]
    assert [path for path in everything if path.is_file() and told["password"] in path.read_text()] == []
    assert told["password"] not in str(registration) + status.out + sessions.out + str(tui(second)["argv"])


def test_one_that_runs_is_not_started_again_and_a_name_of_ones_own_counts(second: Connected) -> None:
    second.opencode("service", "start")
    before = second.told()
    with second.started(program=NIMBLE, INSTANCE_NAME="mine") as started:
        assert second.registration()["name"] == "mine"
        assert second.told() == before
        leave(second, started)


def test_secrets_of_the_transports_do_not_reach_the_service(second: Connected) -> None:
    with second.started(RELAY_SSH_CMD="/bin/false canary") as started:
        pid = second.told()["pid"]
        assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "RELAY_SSH_CMD" not in tui(second)["environment"]
        leave(second, started)


def test_it_is_followed_to_another_port_and_password(second: Connected) -> None:
    with second.started(program=NIMBLE) as started:
        before = second.registration()
        second.opencode("service", "stop")
        eventually(lambda: not second.files(), show=second.logs)
        second.opencode("service", "start", LIGHT_SERVICE_PASSWORD="another")
        after = second.registration()
        assert (after["id"], after["name"]) == (before["id"], before["name"])
        assert after["port"] != before["port"]
        status = second("status")
        assert status.code == 0, status
        assert started.process.poll() is None
        leave(second, started)


def test_a_restart_at_the_same_address_withdraws_nothing(second: Connected) -> None:
    slow = patched("service._FILE_SECONDS = 0.05", "service._PATIENCE_SECONDS = 20")
    with second.started(program=slow) as started:
        before = second.registration()
        inode = second.files()[0].stat().st_ino
        port = str(before["port"])
        second.opencode("service", "stop")
        second.opencode("service", "start", LIGHT_SERVICE_PASSWORD="another", LIGHT_SERVICE_PORT=port)
        eventually(lambda: second("status").code == 0)
        assert second.files()[0].stat().st_ino == inode
        assert "Withdrawn" not in second.logs()
        leave(second, started)


def test_a_second_one_does_not_announce_it_twice_and_takes_over(second: Connected) -> None:
    with second.started(program=NIMBLE) as first:
        before = second.registration()
        with second.started(program=NIMBLE) as other:
            eventually(lambda: len(second.runs()) == 2)
            eventually(lambda: "Another opencode-connected announces it" in second.logs())
            assert "announced by another opencode-connected" in other.said
            assert second.registrations() == [before] or len(second.registrations()) == 1
            assert second("status").out.count("(process") == 1
            first.signal(signal.SIGTERM)
            first.code()
            after = eventually(second.registrations, show=second.logs)[0]
            assert (after["id"], after["name"]) == (before["id"], before["name"])
            assert other.process.poll() is None
            leave(second, other)
    assert second.files() == []


def test_when_the_first_is_killed_the_second_takes_over_and_nothing_is_left(second: Connected) -> None:
    with second.started(program=NIMBLE) as first:
        before = second.registration()
        with second.started(program=NIMBLE) as other:
            eventually(lambda: "Another opencode-connected announces it" in second.logs())
            first.signal(signal.SIGKILL)
            first.code()
            eventually(lambda: second("status").code == 0, show=second.logs)
            assert second.registration()["id"] == before["id"]
            leave(second, other)
    assert second.files() == []
    assert second("cleanup").out == ""


def test_after_a_kill_cleanup_removes_the_registration_and_leaves_the_service(second: Connected) -> None:
    with second.started() as started:
        second.registration()
        started.signal(signal.SIGKILL)
        started.code()
    pid = second.told()["pid"]
    eventually(lambda: list(second.processes()) == [pid], PROMPTLY)
    outcome = second("cleanup")
    assert (outcome.code, second.files()) == (0, []), outcome
    os.kill(pid, 0)


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--port", "4096"], {}, ["--port needs --headless", "--headless --port 4096"]),
        (["--", "--port", "1"], {}, ["--port cannot be passed on"]),
        ([], {"TRANSPORT": "mdns"}, ["mdns cannot announce", "opencode-connected --headless"]),
        ([], {"TRANSPORT": "local-relay,mdns"}, ["mdns cannot announce", "opencode-connected --headless"]),
    ],
    ids=str,
)
def test_what_the_service_cannot_do_is_refused_with_what_to_do(
    second: Connected, arguments: list[str], variables: dict[str, str], words: list[str]
) -> None:
    outcome = second(*arguments, environment=variables)
    last = outcome.err.splitlines()[-1]
    assert outcome.code == 2
    assert [word for word in words if word not in last] == []
    assert second.runs() == []
    assert not second.service.exists()


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("service=fails", "has failed (code 3): the database is locked."),
        ("service=hangs", "has failed: it has not ended within 0.5 s."),
        ("service=void", "The background service of OpenCode does not run."),
    ],
)
def test_a_service_that_cannot_be_started_is_told_and_opencode_runs_all_the_same(
    second: Connected, does: str, why: str
) -> None:
    impatient = [*NIMBLE[:2], NIMBLE[2].replace("main()", "service._START_SECONDS = 0.5; main()")]
    with second.started(program=impatient, LIGHT_DOES=f"version=2.1.2,{does}") as started:
        tui(second)
        assert "not there yet, announced once it is" in started.said
        assert why in second.logs()
        assert second.files() == []
        second.opencode("service", "start")  # as the TUI may do itself
        assert second.registration()["name"] == HOST
        leave(second, started)
    assert second.files() == []


def test_one_that_never_comes_is_told_when_the_terminal_is_free_again(second: Connected) -> None:
    program = patched("supervise._START_SECONDS = 0.3")
    with second.started(program=program, LIGHT_DOES="version=2.1.2,service=fails") as started:
        eventually(lambda: "It is asked further" in second.logs(), show=second.logs)
        leave(second, started, code=1)
        assert "Nothing is announced, since for 0.3 s" in started.said.splitlines()[-1]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.chmod(0o644), "Others may read or write it"),
        (lambda path: path.write_text("{"), "half written"),
        (lambda path: _change(path, pid=os.getpid()), "answers process"),
        (lambda path: _change(path, version="2.0.9"), "with OpenCode 2.0.9"),
        (lambda path: _change(path, password="wrong"), "wants another password than its file says"),
        (lambda path: _change(path, password=None), "no text"),
    ],
    ids=[
        "world-readable",
        "half-written",
        "another process",
        "another version",
        "wrong password",
        "no password",
    ],
)
def test_a_file_that_cannot_be_believed_announces_nothing_until_it_can(
    second: Connected, spoil: Any, why: str
) -> None:
    second.opencode("service", "start")
    good = second.service.read_text()
    spoil(second.service)
    program = patched("supervise._START_SECONDS = 0.3", "service._SETTLE_SECONDS = 0.3")
    with second.started(program=program, LIGHT_DOES="version=2.1.2,service=void") as started:
        eventually(lambda: why in second.logs(), show=second.logs)
        assert second.files() == []
        second.service.chmod(0o600)
        second.service.write_text(good)
        second.registration()
        leave(second, started)


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_password_goes_to_nobody_but_the_process_of_the_file(second: Connected) -> None:
    """A killed service's file stays: whoever has its port by then is not asked with its password twice."""
    second.opencode("service", "start")
    told = second.told()
    os.kill(told["pid"], signal.SIGKILL)
    eventually(lambda: not second.processes())
    listing = second.gateway("instances", XDG_STATE_HOME=str(second.state.parent))
    assert "opencode service start" in listing.out + listing.err, listing
    with second.started(program=NIMBLE) as started:
        assert second.registration()["name"] == HOST, "it was started again"
        assert second.told()["pid"] != told["pid"]
        leave(second, started)


def test_a_file_that_was_left_behind_is_no_service_though_its_process_number_is_in_use(
    second: Connected,
) -> None:
    """As after the computer, or a container, was started again."""
    second.opencode("service", "start")
    told = second.told()
    os.kill(told["pid"], signal.SIGKILL)
    eventually(lambda: not second.processes())
    _change(second.service, pid=os.getpid())
    os.utime(second.service, (1, 1))
    with second.started(program=NIMBLE) as started:
        assert second.registration()["name"] == HOST, "it was started again"
        assert second.told()["pid"] not in (told["pid"], os.getpid())
        assert "has ended well, but" not in second.logs()
        leave(second, started)


@pytest.mark.parametrize("localhost", [False, True])
def test_a_service_can_be_attached_to_without_knowing_its_password(
    second: Connected, localhost: bool
) -> None:
    second.opencode("service", "start")
    url = second.told()["url"]
    url = url.replace("127.0.0.1", "localhost") if localhost else url
    with second.started("--attach", url, environment={"TRANSPORT": "local-relay"}) as started:
        assert second.registration()["version"] == "2.1.2"
        assert second("status").code == 0
        started.signal(signal.SIGTERM)
        assert started.code() == 0
    assert second.files() == []


def test_the_exit_code_is_that_of_the_terminal_interface(second: Connected) -> None:
    with second.started(LIGHT_DOES="version=2.1.2,code=7") as started:
        second.registration()
        leave(second, started, code=7)


def test_leaving_takes_no_longer_than_without_a_service(second: Connected) -> None:
    with second.started() as started:
        second.registration()
        began = time.monotonic()
        started.signal(signal.SIGTERM)
        started.code()
        assert time.monotonic() - began < PROMPTLY
    assert second.files() == []
