"""A real terminal: a tmux server of the test's own, into which it types and whose screen it reads."""

import contextlib
import dataclasses
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from support.connected import eventually
from support.require import skip_or_fail

_PROMPT = "READY$ "
_COLUMNS, _ROWS = 120, 36


@dataclasses.dataclass(frozen=True)
class Tmux:
    """A terminal with a shell in it.

    Attributes:
        words: The tmux command line that reaches it.
        environment: What tmux itself runs with.
    """

    words: list[str]
    environment: Mapping[str, str]

    def __call__(self, *arguments: str) -> str:
        """Run a tmux command."""
        done = subprocess.run(
            [*self.words, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return done.stdout

    @property
    def screen(self) -> str:
        """What is to be seen."""
        return self("capture-pane", "-p")

    @property
    def history(self) -> str:
        """What is to be seen, and what has been scrolled away; lines are not broken."""
        return self("capture-pane", "-p", "-J", "-S", "-")

    @property
    def shell(self) -> int:
        """The process of the shell."""
        return int(self("display-message", "-p", "#{pane_pid}"))

    def keys(self, *names: str) -> None:
        """Press keys, as tmux calls them."""
        self("send-keys", *names)

    def type(self, text: str) -> None:
        """Type a text as it is."""
        self("send-keys", "-l", text)

    def line(self, text: str) -> None:
        """Type a line and press Enter."""
        self.type(text)
        self.keys("Enter")

    def shows(self, text: str, seconds: float = 20) -> str:
        """Wait until the screen shows a text; return the screen."""
        return eventually(
            lambda: screen if text in (screen := self.screen) else "",
            seconds,
            show=lambda: f"{text!r} is not to be seen in:\n{self.screen}",
        )

    def says(self, command: str, seconds: float = 20) -> str:
        """Run a command in the shell; return what it prints."""
        # The marks are written otherwise than they print, so what is typed is not taken for them.
        number = secrets.token_hex(4)
        self.line(f"clear; printf '<%s\\n' {number}; {command}; printf '>%s\\n' {number}")
        screen = self.shows(f">{number}", seconds)
        return screen.rpartition(f"<{number}\n")[2].partition(f">{number}")[0].strip("\n")

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        self("resize-window", "-x", str(columns), "-y", str(rows))


@contextlib.contextmanager
def terminal(directory: Path, environment: Mapping[str, str]) -> Generator[Tmux]:
    """Open a terminal with a shell in `directory`; it is closed at the end of the block."""
    tmux, shell = shutil.which("tmux"), shutil.which("bash")
    if tmux is None or shell is None:
        skip_or_fail("tmux or bash is missing: install both, for tests of the TUI in a real terminal")
    with tempfile.TemporaryDirectory(prefix="tmux-") as sockets:  # a short path, as sockets need
        own = {
            **environment,
            "TMUX_TMPDIR": sockets,
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PS1": _PROMPT,
            "HISTFILE": os.devnull,
        }
        one = Tmux([tmux, "-L", f"test-{secrets.token_hex(4)}", "-f", os.devnull], own)
        size = ("-x", str(_COLUMNS), "-y", str(_ROWS))
        one("new-session", "-d", *size, "-c", str(directory), shell, "--norc", "--noprofile", "-i")
        try:
            one.shows(_PROMPT.strip())
            yield one
        finally:
            one("kill-server")
