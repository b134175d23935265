"""Where `opencode-connected` keeps its state: `$XDG_STATE_HOME/opencode-mcp`, for this user only."""

import hashlib
import os
import re
import stat
from pathlib import Path

from opencode_mcp.errors import StartError
from opencode_mcp.text import clean_line

_STEM_LIMIT = 80


def state_directory() -> Path:
    """Return the directory, made if need be, with mode 0700.

    Raises:
        StartError: If it cannot be made or written.
    """
    named = _named()
    try:
        directory = named.expanduser()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(directory):
            raise PermissionError(13, "it is not yours alone to write")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        shown = clean_line(str(named), 1000)
        raise StartError(
            f"The state directory {shown} cannot be used: {why}. Set XDG_STATE_HOME to a directory of yours."
        ) from None
    return directory


def existing_state_directory() -> Path | None:
    """Return the directory, or None if there is none that is this user's alone to write; make nothing."""
    try:
        directory = _named().expanduser()
        return directory if _is_ours(directory) else None
    except (OSError, RuntimeError):  # as above
        return None


def file_stem(name: str) -> str:
    """Return a file name, without its ending, for an instance; different for different names."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_STEM_LIMIT].strip("-.") or "instance"
    return plain if plain == name else f"{plain}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _named() -> Path:
    base = os.environ.get("XDG_STATE_HOME", "")
    # A relative path is to be ignored (XDG Base Directory Specification 0.8).
    root = Path(base) if Path(base).is_absolute() else Path("~/.local/state")
    return root / "opencode-mcp"


def _is_ours(directory: Path) -> bool:
    status = directory.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
