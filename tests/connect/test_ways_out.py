"""Whatever ends it, the announcement is withdrawn and no process is left, within three seconds."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from support.connected import PROMPTLY, Connected, eventually, patched

pytestmark = pytest.mark.slow

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
NOT_AT_ONCE = patched("leaving._AT_ONCE_SECONDS = 0")
"""Takes no end of its parent for one that was meant, however soon."""
AT_ONCE = patched("leaving._AT_ONCE_SECONDS = 60")
"""Takes any."""


def parent_of(program: Sequence[str], how: str = "os.spawnv(os.P_WAIT, words[0], words)") -> list[str]:
    """A process that runs `program` in `how` it says, in Python."""
    return [sys.executable, "-c", f"import os, signal; words = {[*program, '--headless']!r}; {how}"]


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_ends_it_and_opencode_and_says_so_in_the_exit_code(
    connected: Connected, number: signal.Signals
) -> None:
    with connected.announced() as started:
        started.signal(number)
        assert started.code() == -number
        connected.gone(seconds=0.5)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_opencode_that_ignores_a_signal_is_killed(connected: Connected, number: signal.Signals) -> None:
    with connected.announced(LIGHT_DOES="stubborn,child") as started:
        started.signal(number)
        assert started.code() != 0
        connected.gone(seconds=0.5)


def test_the_exit_code_of_opencode_after_a_signal_is_kept(connected: Connected) -> None:
    with connected.announced(LIGHT_DOES="polite=7") as started:
        started.signal(signal.SIGTERM)
        assert started.code() == 7
        connected.gone(seconds=0.5)


@pytest.mark.parametrize("code", [0, 3])
def test_it_ends_as_opencode_ends(connected: Connected, code: int) -> None:
    with connected.announced(LIGHT_DOES=f"code={code}") as started:
        os.kill(connected.run()["pid"], signal.SIGUSR1)
        assert started.code() == code
        connected.gone(seconds=0.5)


def test_other_signals_are_handed_on_to_opencode(connected: Connected) -> None:
    with connected.announced(LIGHT_DOES="code=5") as started:
        started.signal(signal.SIGUSR1)
        assert started.code() == 5


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGINT], ids=lambda number: number.name
)
def test_it_ends_by_the_signal_by_which_opencode_ended(connected: Connected, number: signal.Signals) -> None:
    with connected.announced() as started:
        os.kill(connected.run()["pid"], number)
        assert started.code() == -number
        connected.gone(seconds=0.5)


@pytest.mark.parametrize("child", ["child", "child=stubborn"])
def test_what_opencode_started_ends_with_it(connected: Connected, child: str) -> None:
    with connected.announced(LIGHT_DOES=child) as started:
        eventually(lambda: has_sleep(connected))
        started.signal(signal.SIGTERM)
        assert started.code() == -signal.SIGTERM
        connected.gone(seconds=0.5)


@pytest.mark.parametrize("child", ["child", "child=stubborn"])
def test_what_a_vanished_opencode_leaves_behind_is_ended_too(connected: Connected, child: str) -> None:
    with connected.announced(LIGHT_DOES=child) as started:
        eventually(lambda: has_sleep(connected))
        os.kill(connected.run()["pid"], signal.SIGKILL)
        assert started.code() == -signal.SIGKILL
        connected.gone(seconds=0.5)


def has_sleep(connected: Connected) -> bool:
    return any(command.startswith("sleep 300") for command in connected.processes().values())


def test_a_second_signal_changes_nothing(connected: Connected) -> None:
    with connected.announced(LIGHT_DOES="stubborn") as started:
        started.signal(signal.SIGTERM)
        eventually(lambda: "Leaving" in connected.logs())
        for number in ENDING:
            started.signal(number)
        assert started.code() == -signal.SIGKILL
        connected.gone(seconds=0.5)
    assert "Traceback" not in started.said + connected.logs()


def test_a_signal_during_the_start_is_not_lost(connected: Connected) -> None:
    with connected.started("--headless", LIGHT_DOES="slow=60") as started:
        eventually(connected.runs)
        started.signal(signal.SIGTERM)
        assert started.code() == -signal.SIGTERM
        connected.gone(seconds=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_opencode_does_not_outlive_it_even_when_it_is_killed(connected: Connected) -> None:
    with connected.announced() as started:
        started.signal(signal.SIGKILL)
        started.code()
        eventually(lambda: connected.processes() == {}, PROMPTLY)
    assert connected.gateway("instances", "--json").code == 0


def test_the_end_of_its_parent_ends_it(connected: Connected) -> None:
    with connected.started(program=parent_of(NOT_AT_ONCE)) as started:
        connected.registration()
        started.signal(signal.SIGKILL)
        started.code()
        connected.gone()
    assert "the process that started this has ended" in connected.logs()


def test_the_end_of_its_stdin_is_no_reason_to_end(connected: Connected) -> None:
    with connected.announced(stdin=subprocess.PIPE) as started:
        assert started.process.stdin is not None
        started.process.stdin.close()
        written_again(connected)
        assert started.process.poll() is None


@pytest.mark.parametrize(
    ("program", "how"),
    [
        (NOT_AT_ONCE, "signal.signal(signal.SIGHUP, signal.SIG_IGN); os.spawnv(os.P_WAIT, words[0], words)"),
        (NOT_AT_ONCE, "os.spawnvp(os.P_WAIT, 'setsid', ['setsid', '-w', *words])"),
        (AT_ONCE, "os.spawnv(os.P_WAIT, words[0], words)"),
        (AT_ONCE, "os.spawnv(os.P_NOWAIT, words[0], words)"),
    ],
    ids=["nohup", "a session of its own", "a parent that ends soon", "a parent that ends at once"],
)
def test_it_survives_its_parent_if_that_was_meant(
    connected: Connected, program: Sequence[str], how: str
) -> None:
    with connected.started(program=parent_of(program, how)) as started:
        connected.registration()
        started.signal(signal.SIGKILL)
        started.code()
        written_again(connected)
        [pid] = connected.pids()
        os.kill(pid, signal.SIGTERM)
        connected.gone()


def written_again(connected: Connected) -> None:
    """Remove the registration, and wait for it to be back: who looks after it is well."""
    [path] = connected.files()
    path.unlink()
    eventually(path.exists)
