"""Names that this machine's instances hold, each by a lock, with a record of who holds it.

The kernel releases the lock however the process ends. The lock's own file stays: it remembers the instance's
id, which a later start under the same name takes up again.
"""

import dataclasses
import fcntl
import json
import os
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from opencode_mcp.connect.naming import numbered
from opencode_mcp.errors import StartError
from opencode_mcp.state.places import file_stem
from opencode_mcp.state.records import Record, read, records

_ID_LENGTH = 32
_LOCK_SECONDS = 5.0
_LOCK_STEP_SECONDS = 0.01
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Slot:
    """A name that this process holds, until it is released or the process ends.

    Attributes:
        name: The name.
        id: The id that goes with it, ever since it was used first.
        left: The record of a process that was killed while it held the name, or None.
        keep: What the record says once the name is released; None if there is to be none.
        written: What it says now, or None.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Take the name.

        Raises:
            BlockingIOError: Another process holds it.
        """
        self.name = name
        stem = file_stem(name)
        self._path = directory / f"{stem}.json"
        self.log = directory / f"{stem}.log"
        self._lock = os.open(directory / f"{stem}.lock", _OPEN, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.id = self._remembered_id()
        except BaseException:
            os.close(self._lock)
            raise
        self.left = self.keep = self.written = read(self._path)

    def _remembered_id(self) -> str:
        known = os.pread(self._lock, 2 * _ID_LENGTH, 0).decode("ascii", "replace")
        if len(known) == _ID_LENGTH and known.isalnum():
            return known
        fresh = secrets.token_hex(_ID_LENGTH // 2)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, fresh.encode(), 0)
        return fresh

    def write(self, record: Record) -> None:
        """Write the record anew, in one step.

        Raises:
            OSError: If that is not possible.
        """
        beside = self._path.with_suffix(".new")
        content = json.dumps(dataclasses.asdict(record), indent=2)
        fd = os.open(beside, _OPEN | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(content)
        beside.replace(self._path)
        self.written = record

    def release(self) -> None:
        """Give the name back."""
        with suppress(OSError):
            if self.keep is None:
                self._path.unlink(missing_ok=True)
            elif self.keep != self.written:
                self.write(self.keep)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(directory: Path, name: str) -> Slot:
    """Take `name`, or if a process holds it already, the first of `name-2`, `name-3` and so on that is free.

    Raises:
        StartError: If the state directory cannot be written.
    """
    for one in numbered(name):
        try:
            return Slot(directory, one)
        except BlockingIOError:
            continue
        except OSError as error:
            raise StartError(
                f"The state directory {directory} cannot be written: {error.strerror}. "
                "Set XDG_STATE_HOME to a directory of yours."
            ) from None
    raise AssertionError("numbers never end")


@contextmanager
def one_at_a_time(directory: Path) -> Generator[None]:
    """Keep others from choosing a port meanwhile."""
    fd = os.open(directory / ".ports", _OPEN, 0o600)
    try:
        _lock_soon(fd)
        yield
    finally:
        os.close(fd)


def _lock_soon(fd: int) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StartError(
                    "Another opencode-connected has been starting for some time. See what it waits for."
                ) from None
            time.sleep(_LOCK_STEP_SECONDS)


def left_behind(directory: Path) -> Iterator[tuple[Slot, Record]]:
    """Yield the records of processes that were killed, each held while it is looked at."""
    for record in records(directory):
        with suppress(BlockingIOError), Slot(directory, record.name) as slot:
            if slot.left is not None:
                yield slot, slot.left
