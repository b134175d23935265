"""Starts that fail: one clear message with a code that is not zero, and nothing announced or left running."""

import os
import signal
import socket
from pathlib import Path

import pytest

from support.command import Outcome
from support.connected import Connected, eventually, patched

pytestmark = pytest.mark.slow

IMPATIENT = patched("supervise._START_SECONDS = 0.5")


def failed(connected: Connected, outcome: Outcome, code: int, *words: str) -> str:
    """Check that it has failed as it should; return its last line."""
    last = outcome.err.splitlines()[-1]
    assert outcome.code == code, outcome.err
    assert last.startswith("opencode-connected: ")
    assert [word for word in words if word not in last] == []
    assert "Traceback" not in outcome.err + connected.logs()
    assert connected.files() == []
    assert connected.processes() == {}
    return last


def test_without_opencode_it_says_how_to_get_it(connected: Connected) -> None:
    (connected.programs / "opencode").unlink()
    outcome = connected(PATH=str(connected.programs))
    failed(connected, outcome, 127, "'opencode'", "PATH", "https://opencode.ai", "OPENCODE_MCP_COMMAND")
    assert len(outcome.err.splitlines()) == 1


def test_an_opencode_that_cannot_be_executed_is_named(connected: Connected) -> None:
    (connected.programs / "opencode").write_text("#!/nonexistent/interpreter\n")
    outcome = connected("--headless")
    failed(connected, outcome, 126, str(connected.programs / "opencode"), "cannot be started")


@pytest.mark.parametrize(("ends", "code"), [("exit=5", 5), ("exit=0", 1)])
def test_an_opencode_that_ends_at_once_is_told_with_the_log(
    connected: Connected, ends: str, code: int
) -> None:
    outcome = connected("--headless", LIGHT_DOES=ends)
    log = str(next(connected.state.glob("*.log")))
    failed(connected, outcome, code, "before its port answered", "nothing was announced", log)


@pytest.mark.parametrize(
    ("does", "why"), [("deaf", "does not answer"), ("slow=60", "refused"), ("stranger", "is not an OpenCode")]
)
def test_an_opencode_that_never_answers_as_one_is_ended(connected: Connected, does: str, why: str) -> None:
    outcome = connected("--headless", program=IMPATIENT, LIGHT_DOES=does)
    log = str(next(connected.state.glob("*.log")))
    assert outcome.code != 0
    failed(connected, outcome, outcome.code, "Nothing is announced", "0.5 s", why, log)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TRANSPORT": "carrier-pigeon"}, ["TRANSPORT", "'carrier-pigeon'", "local-relay"]),
        ({"TRANSPORT": " , "}, ["TRANSPORT", "transport"]),
        ({"INSTANCE_NAME": "a\nb"}, ["INSTANCE_NAME", "one line of 1 to 190"]),
        ({"INSTANCE_NAME": "\x1b[31m"}, ["INSTANCE_NAME", "one line of 1 to 190"]),
        ({"INSTANCE_NAME": "   "}, ["INSTANCE_NAME", "one line of 1 to 190"]),
        ({"INSTANCE_NAME": "x" * 191}, ["INSTANCE_NAME", "one line of 1 to 190"]),
        ({"OPENCODE_MCP_COMMAND": "'open"}, ["OPENCODE_MCP_COMMAND", "shell"]),
        ({"OPENCODE_MCP_LOG_LEVEL": "LOUD"}, ["OPENCODE_MCP_LOG_LEVEL", "DEBUG"]),
        ({"RELAY_PRUNE_AFTER_MS": "never"}, ["RELAY_PRUNE_AFTER_MS", "milliseconds"]),
        ({"HEALTH_CHECK_TIMEOUT_MS": "0"}, ["HEALTH_CHECK_TIMEOUT_MS", "milliseconds"]),
    ],
    ids=lambda value: "-".join(map(repr, value.items()))[:50] if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_used_is_told_before_anything_starts(
    connected: Connected, variables: dict[str, str], words: list[str]
) -> None:
    outcome = connected("--headless", environment=variables)
    failed(connected, outcome, 2, *words)
    assert len(outcome.err.splitlines()) == 1
    assert connected.runs() == []


@pytest.mark.parametrize("state", ["a file", "below a file"])
def test_a_state_directory_that_cannot_be_used_is_named(connected: Connected, state: str) -> None:
    path = connected.home / "no"
    path.touch()
    if state == "a file":
        path.unlink()
        path.mkdir()
        (path / "opencode-mcp").touch()
    failed(connected, connected("--headless", XDG_STATE_HOME=str(path)), 1, f"{path}/opencode-mcp", "cannot")
    assert connected.runs() == []


def test_a_state_directory_that_others_can_write_is_refused(connected: Connected) -> None:
    connected.state.mkdir(parents=True)
    connected.state.chmod(0o770)
    failed(connected, connected("--headless"), 1, str(connected.state), "not yours alone to write")


def test_a_log_that_cannot_be_written_is_named(connected: Connected) -> None:
    connected.state.mkdir(parents=True)
    (connected.state / "shop.log").mkdir()
    failed(connected, connected("--headless", INSTANCE_NAME="shop"), 1, f"{connected.state}/shop.log")
    assert connected.runs() == []


def test_a_registry_that_cannot_be_used_stops_nothing_and_is_tried_again(connected: Connected) -> None:
    connected.registry.touch()
    with connected.started("--headless") as started:
        eventually(lambda: "Next attempt in" in connected.logs())
        assert str(connected.registry) in connected.logs()
        connected.registry.unlink()
        assert connected.registration()["version"] == "1.18.33"
        assert started.process.poll() is None


def test_who_used_the_terminal_is_told_afterwards_that_nothing_was_announced(connected: Connected) -> None:
    connected.registry.touch()  # a file, where a directory should be
    with connected.started() as started:
        eventually(lambda: "Next attempt in" in connected.logs())
        assert "transport local-relay" not in started.said
        os.kill(connected.run()["pid"], signal.SIGUSR1)
        assert started.code() == 0
    [line] = [line for line in started.said.splitlines() if "transport local-relay: " in line]
    assert str(connected.registry) in line
    assert f"The log is {connected.state}" in line


def test_who_used_the_terminal_is_told_of_an_opencode_that_did_not_start(connected: Connected) -> None:
    outcome = connected(LIGHT_DOES="exit=3")
    assert outcome.code == 3
    assert "OpenCode ended (code 3) before its port answered: nothing was announced." in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "--port", "1"], ["--port cannot be passed on"]),
        (["--", "x", "--hostname=0.0.0.0"], ["--hostname=0.0.0.0 cannot be passed on"]),
        (["--port", "0"], ["1 to 65535"]),
        (["--port", "65536"], ["1 to 65535"]),
        (["--port", "٣"], ["1 to 65535"]),
        (["--attach", "http://127.0.0.1:1", "--headless"], ["not allowed with"]),
        (["--attach", "http://127.0.0.1:1", "--port", "5"], ["--attach starts nothing"]),
        (["--attach", "http://127.0.0.1:1", "--", "x"], ["--attach starts nothing"]),
        (["--attach", "ftp://127.0.0.1:1"], ["--attach 'ftp://127.0.0.1:1' cannot be used"]),
        (["--attach", "127.0.0.1:4096"], ["--attach '127.0.0.1:4096' cannot be used"]),
        (["--attach", "http://me:s3cret@127.0.0.1:1"], ["cannot be used"]),
        (["--attach", "https://127.0.0.1:1"], ["http://host:port"]),
        (["--attach", "http://127.0.0.1:1/base"], ["http://host:port"]),
        (["--attach", "http://192.0.2.2:4096"], ["local-relay announces servers of this machine"]),
        (["--attach", ""], ["--attach '' cannot be used"]),
        (["list"], ["list", "status"]),
        (["--head"], ["--head"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be_meant_are_refused(
    connected: Connected, arguments: list[str], words: list[str]
) -> None:
    failed(connected, connected(*arguments), 2, *words)
    assert connected.runs() == []


def test_a_port_that_is_taken_is_refused(connected: Connected) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        failed(connected, connected("--headless", "--port", port), 1, f"Port {port}", "in use", "--port")
    assert connected.runs() == []


def test_a_folder_that_is_gone_is_told(connected: Connected) -> None:
    gone = connected.home / "gone"
    gone.mkdir()
    program = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *patched("supervise._START_SECONDS = 0.5")]
    failed(connected, connected("--headless", cwd=gone, program=program), 1, "working directory")
    assert not Path(gone).exists()


def test_version_and_help_go_to_stdout(connected: Connected) -> None:
    assert connected("--version").out.startswith("opencode-connected ")
    outcome = connected("--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "--headless" in outcome.out
