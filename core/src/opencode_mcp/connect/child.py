"""The OpenCode that was started here: a process group of its own that does not outlive us."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import anyio

from opencode_mcp.connect.terminal import Terminal
from opencode_mcp.errors import StartError

_PR_SET_PDEATHSIG = 1
_PATIENCE_SECONDS = 1.5
_STEP_SECONDS = 0.05
_STOPPED_SECONDS = 0.2
_REAP_SECONDS = 0.15


class Child:
    """A running OpenCode.

    Attributes:
        pid: Its process, which leads its group.
        output: Its stdout, if it talks to us.
        leaving: Whether it is being ended, so that nothing stops us any more.
        code: How it ended, as `subprocess.Popen.returncode` says it; None while it runs.
        ended: Set once it has ended.
        over: Set once `end` has ended it and all it started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        headless: bool,
        talks: bool = False,
        terminal: Terminal | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: Its command line.
            environment: Its environment.
            headless: Whether it asks nobody anything: then its stdin is empty.
            talks: Whether it says something on its stdout that is for us, and ends when its stdin does,
                which is open for as long as we are there.
            terminal: The terminal it gets, if there is one.

        Raises:
            StartError: It cannot be started.
        """
        self._terminal = terminal
        self._draws = not headless
        self.leaving = False
        ours = terminal is not None and terminal.is_ours()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own command
                arguments,
                env=environment,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL if headless else None,
                stdout=subprocess.PIPE if talks else None,
                process_group=0,
                preexec_fn=_preparation(terminal),
            )
        except (OSError, subprocess.SubprocessError) as error:
            if terminal and ours:
                terminal.reclaim()
            why = getattr(error, "strerror", None) or str(error)
            raise StartError(f"{arguments[0]} cannot be started: {why}.", 126) from None
        self.pid, self.output = self._process.pid, self._process.stdout
        self.code: int | None = None
        self.ended, self.over = anyio.Event(), anyio.Event()
        self._resumed = anyio.Event()
        if terminal:
            terminal.give(self.pid)
            # From now on it is the child's; what we write to it, or take back, does not stop us.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def signal(self, number: int) -> None:
        """Send a signal to it and to all it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def look(self) -> bool:
        """Find out what a SIGCHLD was about; return whether it has been stopped just now."""
        if self.code is not None:
            return False
        stopped = False
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
                if pid == 0:
                    return stopped
                stopped = os.WIFSTOPPED(status)
                if not stopped:
                    self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
                    break
        if self.code is None:
            self.code = self._process.returncode = 1  # reaped by somebody else, who knows how it ended
        if self._terminal:
            self._terminal.take_back(self.pid, killed=self._draws and self.code < 0)
        self.ended.set()
        return False

    async def stop_with_it(self) -> None:
        """Stop, now that it is stopped, and go on with it when the shell says so."""
        if self._terminal is None or self.code is not None or self.leaving:
            return
        self._terminal.take_back(self.pid)
        self._resumed = anyio.Event()
        os.kill(0, signal.SIGTSTP)
        # Without a shell that could continue us, the kernel does not stop us.
        with anyio.move_on_after(_STOPPED_SECONDS):
            await self._resumed.wait()
        self.resume()

    def resume(self) -> None:
        """Go on: the shell has put us into the foreground, or lets us run in the background."""
        self._resumed.set()
        if self._terminal and self.code is None:
            self._terminal.give(self.pid)
            self.signal(signal.SIGCONT)

    async def end(self, number: int) -> None:
        """End it and all it started with a signal; by force what takes too long."""
        self.signal(number)
        self.signal(signal.SIGCONT)
        with anyio.move_on_after(_PATIENCE_SECONDS):
            await self.ended.wait()
            while self._has_members():  # noqa: ASYNC110 - the kernel tells nobody
                await anyio.sleep(_STEP_SECONDS)
        self.kill()
        await self.ended.wait()
        self.over.set()

    def _has_members(self) -> bool:
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses if only zombies are left
            os.killpg(self.pid, 0)
            return True
        return False

    def kill(self) -> None:
        """End by force whatever is left of it."""
        self.signal(signal.SIGKILL)

    def kill_now(self) -> int:
        """End it by force, wait a little for that, and return how it ended; for any thread."""
        self.kill()
        deadline = time.monotonic() + _REAP_SECONDS
        while self.code is None and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
            time.sleep(_STEP_SECONDS)
        if self._terminal:
            self._terminal.take_back(self.pid, killed=self._draws)
        return 1 if self.code is None else self.code


def _preparation(terminal: Terminal | None) -> Callable[[], None]:
    """Make what runs in the new process before OpenCode does. No thread runs yet that could hang it."""
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec is no time for it
    parent = os.getpid()
    foreground = terminal is not None and terminal.is_ours()

    def prepare() -> None:
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
        if terminal is not None and foreground:
            terminal.give_to_new_process()  # as the parent does: so it has it, whoever runs first

    return prepare
