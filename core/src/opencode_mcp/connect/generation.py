"""Which OpenCode a command starts: 1.x and 2.x are started in different ways.

To ask it takes a second, so the answer is remembered for as long as the program is the same file.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

_SECONDS = 10.0
_INDIRECT_SECONDS = 20.0
"""What may have to fetch OpenCode first, as npx, takes its time."""
_SCRIPT_SECONDS = 24 * 3600
"""For how long a script is believed: what it starts may be another one without the script being changed."""
_MOST_BYTES = 64 * 1024
_MOST_PROGRAMS = 32
_VERSION = re.compile(r"(?:opencode\s+)?v?(\d{1,4}\.\d{1,6}[\w.+-]{0,40})", re.IGNORECASE)
_PINNED = re.compile(r"opencode-ai@v?(\d{1,4}(?:\.[\w.+-]{1,40})?)")


def generation_of(version: str) -> int:
    """Return 1 or 2: that of an OpenCode which says this version; 1 if it says none."""
    return 2 if version and int(version.partition(".")[0]) > 1 else 1


class Versions:
    """What programs have said of their version, kept in the state directory.

    Args:
        state: That directory.
        program: The command that starts OpenCode, its program as a path.
    """

    def __init__(self, state: Path, program: Sequence[str]) -> None:
        self._file = state / "versions"
        self._program = program
        self._path = os.path.realpath(program[0])

    def find(self, environment: Mapping[str, str]) -> str:
        """Return the version of the program, asked for if need be; empty if it cannot be told. It blocks."""
        for word in self._program[1:]:
            if pinned := _PINNED.fullmatch(word):
                return pinned[1]
        stamp = self._stamp()
        if stamp is None:
            return self._ask(environment, _INDIRECT_SECONDS)
        known = self._read().get(self._path)
        if known is not None and known[0] == stamp:
            script, asked = _is_script(self._path), known[2]
            if not script or 0 <= time.time() - asked < _SCRIPT_SECONDS:
                return known[1]
        version = self._ask(environment, _SECONDS)
        if version:
            self._keep([stamp, version, time.time()])
        return version

    def forget(self) -> None:
        """Ask again next time: something else was started than was thought."""
        self._keep(None)

    def _stamp(self) -> str | None:
        """What makes out the program's file; None if another file than that one decides what is started.

        That is so of a command of several words, of `npx` for example; and of the links and scripts of
        version managers, which all lead to the manager itself or stand in a directory `shims`.
        """
        path = Path(self._path)
        if len(self._program) > 1 or not path.name.startswith("opencode"):
            return None
        if "shims" in (*Path(self._program[0]).parts, *path.parts):
            return None
        try:
            status = path.stat()
        except OSError:
            return None
        # npm gives every file the same time of change, in 1985: so that of the inode counts too.
        return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"

    def _ask(self, environment: Mapping[str, str], seconds: float) -> str:
        from opencode_mcp.connect.running import run_briefly  # seldom needed

        ran = run_briefly([*self._program, "--version"], environment, seconds=seconds)
        if ran.code != 0:
            return ""
        found = (_VERSION.fullmatch(line.strip()) for line in ran.out.splitlines()[:20])
        return next((match[1] for match in found if match), "")

    def _read(self) -> dict[str, tuple[str, str, float]]:
        try:
            with self._file.open(encoding="utf-8") as file:
                found: Any = json.loads(file.read(_MOST_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        entries = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        return {path: (one[0], one[1], one[2]) for path, one in entries.items() if _is_entry(one)}

    def _keep(self, entry: Sequence[Any] | None) -> None:
        known: dict[str, Sequence[Any]] = {**self._read()}
        if known.pop(self._path, None) is None and entry is None:
            return
        if entry is not None:
            known[self._path] = entry
        latest = dict(list(known.items())[-_MOST_PROGRAMS:])
        beside = self._file.with_name(f".{secrets.token_hex(8)}.new")
        with suppress(OSError):  # then it is asked again next time
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(latest, file)
            beside.replace(self._file)


def _is_entry(value: Any) -> bool:
    match value:
        case [str(), str() as version, int() | float()]:
            return _VERSION.fullmatch(version) is not None
        case _:
            return False


def _is_script(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a str
            return file.read(2) == b"#!"
    except OSError:
        return True
