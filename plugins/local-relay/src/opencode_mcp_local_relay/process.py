"""Processes of ours: started, and ended for certain, whatever becomes of us."""

import os
import signal
import sys
from collections.abc import Sequence
from subprocess import PIPE
from typing import TypeVar

import anyio
from anyio.abc import Process

_TERM_SECONDS = 0.4

# The kernel ends ssh with us, even if we are killed. By an interpreter in between, since a `preexec_fn` may
# hang in a process that has threads. `execvp` leaves nothing of it behind.
_DIE_WITH_PARENT = """
import os, signal, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
except Exception:
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""

T = TypeVar("T")


async def start(words: Sequence[str], *, stderr: int = PIPE, die_with_us: bool = False) -> Process:
    """Start a process in a session of its own, without our terminal.

    Args:
        words: The command.
        stderr: As for `subprocess`.
        die_with_us: Whether the kernel shall end it when we are killed; Linux only.
    """
    if die_with_us and sys.platform == "linux" and sys.executable:
        words = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *words]
    with anyio.CancelScope(shield=True):  # nobody would know of a process whose start was cancelled halfway
        return await anyio.open_process(words, stderr=stderr, start_new_session=True)
    raise AssertionError("a scope that nobody cancels swallows nothing")


def piped(stream: T | None) -> T:
    """A stream of a process that was started with pipes."""
    if stream is None:
        raise AssertionError("it was started without")
    return stream


async def end(process: Process) -> None:
    """End a process and its group within a second: nicely, and then not."""
    with anyio.CancelScope(shield=True):
        _signal(process, signal.SIGTERM)
        with anyio.move_on_after(_TERM_SECONDS):
            await process.wait()
            while _signal(process, 0):  # noqa: ASYNC110 - nobody tells of the end of what a wrapper started
                await anyio.sleep(0.01)
        if hasattr(signal, "SIGKILL"):
            _signal(process, signal.SIGKILL)
        with anyio.move_on_after(_TERM_SECONDS):
            await process.aclose()


def _signal(process: Process, number: int) -> bool:
    """Send a signal to the process and its group; whether anybody was there to get it."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.returncode is None and number:
            process.terminate()
        else:
            return False
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a zombie
        return False
    return True
