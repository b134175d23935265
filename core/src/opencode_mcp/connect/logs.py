"""The log of an instance: a file for its user only, never the terminal that OpenCode draws on."""

import logging
import logging.handlers
import os
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

from opencode_mcp.logformat import SafeFormatter

_BYTES = 1024 * 1024
_KEPT = 3


class _Private(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        fd = os.open(
            self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        return os.fdopen(fd, "a", encoding="utf-8", errors="backslashreplace")


def start_logging(
    path: Path, *, level: Literal["DEBUG", "INFO", "WARNING", "ERROR"], on_stderr: bool
) -> None:
    """Log to `path`, INFO and above at least; and on stderr too, from `level` on, if nothing is drawn there.

    Raises:
        OSError: If the file cannot be written.
    """
    file = _Private(path, maxBytes=_BYTES, backupCount=_KEPT)
    file.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [file]
    if on_stderr:
        terminal = logging.StreamHandler()
        terminal.setLevel(level)
        terminal.setFormatter(SafeFormatter("opencode-connected: %(message)s"))
        handlers.append(terminal)
    logging.basicConfig(level="DEBUG" if level == "DEBUG" else "INFO", handlers=handlers, force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request, and transports make many
    logging.raiseExceptions = False  # a full disk must not print into what OpenCode draws
    logging.captureWarnings(capture=True)
