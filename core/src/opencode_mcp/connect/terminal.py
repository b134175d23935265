"""Hands the terminal to OpenCode and takes it back, as a shell does for its jobs.

OpenCode runs in a process group of its own. So what it starts can be ended with it, and the terminal's
signals (Ctrl-C, Ctrl-Z, a new size) reach it alone.
"""

import os
import signal
import termios
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

# What a full-screen program that was killed may leave behind: mouse reports, bracketed paste, the
# keyboard protocol of kitty, the alternate screen, a hidden cursor (ctlseqs of xterm).
_BACK_TO_NORMAL = b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[<u\x1b[?1049l\x1b[?25h\x1b[0m"


class Terminal:
    """The terminal that controls this session, wherever stdin comes from."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            OSError: There is none.
        """
        self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            self._modes = termios.tcgetattr(self._fd)
        except termios.error as error:
            os.close(self._fd)
            raise OSError(*error.args) from None

    @classmethod
    def if_any(cls) -> "Terminal | None":
        """Return the terminal of this session, if it has one."""
        try:
            return cls()
        except OSError:
            return None

    def is_ours(self) -> bool:
        """Whether our process group is in the foreground."""
        with suppress(OSError):
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        return False

    def give(self, group: int) -> None:
        """Put `group` into the foreground, if that is ours to do."""
        if self.is_ours():
            self._put(group)

    def take_back(self, group: int, *, killed: bool = False) -> None:
        """Take the terminal back from `group`, if that has it, with the modes it had at first.

        Args:
            group: Who has it.
            killed: Whether it had no time to clean up.
        """
        with suppress(OSError, termios.error):
            if os.tcgetpgrp(self._fd) != group:
                return
            self._put(os.getpgrp())
            with _background_output():
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._modes)
            if killed:
                os.write(self._fd, _BACK_TO_NORMAL)

    def reclaim(self) -> None:
        """Take the terminal back from a process that was to have it, and never ran."""
        self._put(os.getpgrp())

    def give_to_new_process(self) -> None:
        """Put the calling process into the foreground, one that was just forked and leads a group."""
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with suppress(OSError):
            os.tcsetpgrp(self._fd, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)

    def _put(self, group: int) -> None:
        with _background_output(), suppress(OSError):  # the group may be gone already, or the terminal
            os.tcsetpgrp(self._fd, group)


@contextmanager
def _background_output() -> Generator[None]:
    """Let us use the terminal although we are in the background."""
    if threading.current_thread() is not threading.main_thread():
        yield  # by then the signal is ignored for good, and nobody else may change that
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)
