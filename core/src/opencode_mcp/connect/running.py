"""Runs a command that is soon over, beside no terminal and bounded in time."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

_MOST_BYTES = 16 * 1024


class Ran(NamedTuple):
    """How a command ended.

    `code` is None if it took too long, or could not be started; `out` and `err` are the beginning of what it
    wrote.
    """

    code: int | None
    out: str
    err: str


def run_briefly(command: Sequence[str], environment: Mapping[str, str], *, seconds: float) -> Ran:
    """Run a command; what takes too long is killed, with all that it started in its session. It blocks."""
    # Into files: what it leaves running in the background would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return Ran(None, "", getattr(error, "strerror", None) or str(error))
        try:
            code = process.wait(seconds)
        except BaseException as error:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Ran(None, "", f"it has not ended within {seconds:g} s")
        texts: list[str] = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(_MOST_BYTES).decode(errors="replace"))
        return Ran(code, texts[0], texts[1])
