"""Handing a terminal over and taking it back, on a pseudo-terminal of the test's own."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OWNER = """
import os, signal, subprocess, sys, termios
from opencode_mcp.connect.terminal import Terminal

terminal = Terminal.if_any()
assert terminal is not None and terminal.is_ours()
fd = os.open("/dev/tty", os.O_RDWR)
before = termios.tcgetattr(fd)
child = subprocess.Popen(["sleep", "300"], process_group=0)
terminal.give(child.pid)
print("given", os.tcgetpgrp(fd) == child.pid, terminal.is_ours(), flush=True)
terminal.take_back(12345678)
print("kept", os.tcgetpgrp(fd) == child.pid, flush=True)
raw = termios.tcgetattr(fd)
raw[3] &= ~(termios.ECHO | termios.ICANON)
handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
termios.tcsetattr(fd, termios.TCSANOW, raw)
signal.signal(signal.SIGTTOU, handler)
terminal.take_back(child.pid, killed="killed" in sys.argv)
print("back", terminal.is_ours(), termios.tcgetattr(fd) == before, flush=True)
print("handler", signal.getsignal(signal.SIGTTOU) is signal.SIG_DFL, flush=True)
child.kill()
child.wait()
terminal.give(child.pid)
print("gone", terminal.is_ours(), flush=True)
"""


@contextmanager
def in_a_terminal(code: str, *arguments: str) -> Generator[tuple[int, int]]:
    """Run Python as the leader of a session with a terminal; yield its process and our end of that."""
    ours, theirs = pty.openpty()
    run = f"import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); exec({code!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", run, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield process.pid, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_all(fd: int) -> str:
    """Read until nobody has the other end any more."""
    said = b""
    while select.select([fd], [], [], 20)[0]:
        try:
            more = os.read(fd, 4096)
        except OSError:
            break
        if not more:
            break
        said += more
    return said.decode()


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_it_is_given_taken_back_with_its_modes_and_cleared_after_a_killed_program(how: str) -> None:
    with in_a_terminal(OWNER, how) as (_, fd):
        said = read_all(fd)
    lines = [line.rpartition("\x1b[0m")[2] for line in said.splitlines()]
    assert lines == ["given True False", "kept True", "back True True", "handler True", "gone True"]
    assert ("\x1b[?1049l" in said, "\x1b[?25h" in said) == ((how == "killed"),) * 2


def test_the_bound_on_the_end_holds_in_its_own_thread_while_opencode_has_the_terminal() -> None:
    code = """
import os, sys, threading
from opencode_mcp.connect import leaving
from opencode_mcp.connect.child import Child
from opencode_mcp.connect.terminal import Terminal
terminal = Terminal.if_any()
child = Child(["/bin/sleep", "300"], os.environ, headless=False, terminal=terminal)
assert not terminal.is_ours()
leaving._BOUND_SECONDS = 0.1
def last():
    code = child.kill_now()
    print("ended", code, terminal.is_ours(), flush=True)
    return code
leaving.bound_the_end(last)
threading.Event().wait()
"""
    with in_a_terminal(code) as (_, fd):
        said = read_all(fd)
    assert said.rpartition("\x1b[0m")[2].split() == ["ended", "-9", "True"]


def test_the_terminal_stays_ours_if_the_program_does_not_run(tmp_path: Path) -> None:
    broken = tmp_path / "opencode"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    code = f"""
import os
from opencode_mcp.connect.child import Child
from opencode_mcp.connect.terminal import Terminal
from opencode_mcp.errors import StartError
terminal = Terminal.if_any()
try:
    Child([{str(broken)!r}], os.environ, headless=False, terminal=terminal)
except StartError:
    print(terminal.is_ours(), flush=True)
"""
    with in_a_terminal(code) as (_, fd):
        assert read_all(fd).split() == ["True"]


def test_who_is_in_the_background_takes_nothing() -> None:
    code = """
import os, subprocess, sys
front = subprocess.Popen(["sleep", "300"], process_group=0)
from opencode_mcp.connect.terminal import Terminal
terminal = Terminal.if_any()
terminal.give(front.pid)
script = '''
import os
from opencode_mcp.connect.terminal import Terminal
terminal = Terminal.if_any()
terminal.give(os.getpgrp())
terminal.take_back(os.getpgrp())
fd = os.open("/dev/tty", os.O_RDWR)
print(terminal.is_ours(), os.tcgetpgrp(fd) == FRONT, flush=True)
'''.replace("FRONT", str(front.pid))
subprocess.run([sys.executable, "-c", script], process_group=0)
front.kill()
front.wait()
"""
    with in_a_terminal(code) as (_, fd):
        assert read_all(fd).split() == ["False", "True"]


def test_without_a_terminal_there_is_none() -> None:
    code = "from opencode_mcp.connect.terminal import Terminal; print(Terminal.if_any())"
    done = subprocess.run(
        [sys.executable, "-c", code], start_new_session=True, capture_output=True, text=True, check=False
    )
    assert done.stdout == "None\n"
