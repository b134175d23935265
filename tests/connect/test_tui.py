"""The real TUI in a real terminal: as if OpenCode had been started directly, and announced besides."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from support.connected import PROGRAM, PROMPTLY, Connected, eventually
from support.tmux import Tmux, terminal

pytestmark = [pytest.mark.slow, pytest.mark.real]

ASKS = "Ask anything"
"""What OpenCode's screen says."""
PATIENCE = 60.0
"""Seconds for what takes a real OpenCode moments, on a busy machine."""


@pytest.fixture
def tmux(really_connected: Connected) -> Iterator[Tmux]:
    with terminal(really_connected.project, really_connected.environment()) as one:
        yield one


def start(connected: Connected, tmux: Tmux) -> dict[str, Any]:
    """Start the TUI and wait for its screen and the announcement; return that."""
    tmux.line(f'{shlex.quote(PROGRAM[0])}; echo "code $?"')
    eventually(
        lambda: ASKS in tmux.screen or "\ncode " in tmux.screen,
        PATIENCE,
        show=lambda: tmux.screen + connected.logs(),
    )
    assert ASKS in tmux.screen, tmux.history + connected.logs()
    return connected.registration()


@pytest.fixture
def drawn(really_connected: Connected, tmux: Tmux) -> dict[str, int]:
    """Start the TUI and wait for its screen and the announcement; return the processes."""
    start(really_connected, tmux)
    [ours] = really_connected.pids()
    [opencode] = [pid for pid, words in really_connected.processes().items() if "--hostname" in words]
    return {"ours": ours, "opencode": opencode}


def is_sane(tmux: Tmux, before: str) -> None:
    assert tmux.says("stty -a") == before
    assert tmux.says("echo $((6 * 7))") == "42"


def gone(connected: Connected, tmux: Tmux) -> None:
    """Wait until there is nothing but the terminal and its shell."""
    shell = tmux.shell

    def left() -> list[str]:
        running = connected.processes()
        return [words for pid, words in running.items() if pid != shell and "tmux" not in words]

    eventually(lambda: not (left() or connected.files()), PROMPTLY, show=left)


def test_it_looks_and_feels_as_if_opencode_had_been_started(really_connected: Connected, tmux: Tmux) -> None:
    before = tmux.says("stty -a")
    registration = start(really_connected, tmux)
    assert registration["cwd"] == str(really_connected.project)
    tmux.type("hello keys")
    screen = tmux.shows("hello keys")
    assert "opencode-connected" not in screen
    assert registration["name"] not in screen
    tmux.keys("C-c")  # clears what was typed
    tmux.shows(ASKS)
    tmux.keys("C-c")
    tmux.shows("code 0")
    assert tmux.history.count("\n  opencode-connected\n") == 1, "the banner, once"
    is_sane(tmux, before)
    gone(really_connected, tmux)


def test_nothing_is_drawn_over_while_it_goes_on(
    really_connected: Connected, tmux: Tmux, drawn: dict[str, int]
) -> None:
    [path] = really_connected.files()
    path.unlink()
    really_connected.registry.chmod(0o777)  # which is refused, and said in the log
    eventually(lambda: "not announced at present" in really_connected.logs())
    assert "opencode-connected" not in tmux.screen
    assert "not announced" not in tmux.screen
    really_connected.registry.chmod(0o700)
    really_connected.registration()
    os.kill(drawn["ours"], signal.SIGTERM)
    tmux.shows("\ncode ")


def test_ctrl_z_stops_the_job_and_fg_brings_the_screen_back(
    really_connected: Connected, tmux: Tmux, drawn: dict[str, int]
) -> None:
    tmux.type("typed before")
    tmux.shows("typed before")
    tmux.keys("C-z")
    tmux.shows("Stopped")
    assert tmux.says("echo $((6 * 7))") == "42"
    assert "Stopped" in tmux.says("jobs")
    tmux.line("fg")
    tmux.shows("typed before")
    tmux.type(" and after")
    tmux.shows("typed before and after")
    tmux.keys("C-c")
    tmux.shows(ASKS)
    tmux.keys("C-c")
    gone(really_connected, tmux)


def test_a_new_size_reaches_opencode(really_connected: Connected, tmux: Tmux, drawn: dict[str, int]) -> None:
    def middle() -> int:
        return re.sub(f"(?s){ASKS}.*", "", tmux.screen).count("\n")

    before = middle()
    tmux.resize(80, 50)
    eventually(lambda: before < middle() < 50 and max(map(len, tmux.screen.splitlines())) <= 80)
    tmux.type("still here")
    tmux.shows("still here")
    os.kill(drawn["ours"], signal.SIGTERM)
    tmux.shows("\ncode ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_both_and_gives_the_terminal_back(
    really_connected: Connected, tmux: Tmux, number: signal.Signals
) -> None:
    before = tmux.says("stty -a")
    start(really_connected, tmux)
    [ours] = really_connected.pids()
    os.kill(ours, number)
    tmux.shows("\ncode ", PROMPTLY + 1)
    gone(really_connected, tmux)
    is_sane(tmux, before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_when_it_is_killed_opencode_ends_and_the_shell_stays_usable(
    really_connected: Connected, tmux: Tmux, drawn: dict[str, int]
) -> None:
    os.kill(drawn["ours"], signal.SIGKILL)
    tmux.shows("code 137")
    assert tmux.says("echo $((6 * 7))") == "42"
    eventually(lambda: drawn["opencode"] not in really_connected.processes(), PROMPTLY)


@pytest.mark.parametrize("how", ["kill-pane", "kill-session", "kill the shell"])
def test_a_terminal_that_is_closed_ends_everything(
    really_connected: Connected, tmux: Tmux, drawn: dict[str, int], how: str
) -> None:
    if how.startswith("kill-"):
        tmux(how)
    else:
        os.kill(tmux.shell, signal.SIGKILL)
    really_connected.gone()
