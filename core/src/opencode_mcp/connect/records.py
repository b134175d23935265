"""Who is running: one record for each instance of this user on this machine, held by a lock.

The kernel releases the lock however the process ends, so a record whose lock is free was left behind. The
lock's own file stays: it remembers the instance's id, which a later start under the same name takes up again.
"""

import dataclasses
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

from opencode_mcp.connect.naming import numbered
from opencode_mcp.connect.places import file_stem
from opencode_mcp.errors import StartError
from opencode_mcp.model import Endpoint

_SIZE_LIMIT = 64 * 1024
_ID_LENGTH = 32
_LOCK_SECONDS = 5.0
_LOCK_STEP_SECONDS = 0.01
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_STARTED = datetime.now(UTC).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of an instance.

    Attributes:
        id: Its id on every transport.
        name: Its name.
        pid: The process that announces it.
        url: Where it listens.
        directory: Its project; empty if that is no printable path.
        started: When, ISO 8601.
        log: The path of its log.
        machine: The host that it runs on; several may share the state directory.
        places: By transport, where it announces, as `Announcing.place` says it.
        transports: By transport, how announcing it stands, in words.
    """

    id: str
    name: str
    pid: int
    url: str
    directory: str
    started: str
    log: str
    machine: str
    places: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    transports: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])

    @classmethod
    def of(
        cls,
        endpoint: Endpoint,
        *,
        url: str,
        log: Path,
        places: Mapping[str, str],
        transports: Mapping[str, str] | None = None,
    ) -> "Record":
        """Make the record of an instance that this process announces."""
        return cls(
            id=endpoint.id,
            name=endpoint.name,
            pid=os.getpid(),
            url=url,
            directory=endpoint.directory,
            started=_STARTED,
            log=str(log),
            machine=socket.gethostname(),
            places=places,
            transports=transports or {},
        )

    @classmethod
    def parse(cls, content: str) -> "Record":
        """Read what `Slot.write` wrote.

        Raises:
            ValueError: If it is something else.
        """
        found: Any = json.loads(content)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or set(cast("dict[str, Any]", found)) != set(fields):
            raise ValueError("not a record")
        values = cast("dict[str, Any]", found)
        for name, value in values.items():
            wanted = {"pid": int, "places": dict, "transports": dict}.get(name, str)
            if type(value) is not wanted:
                raise ValueError(f"{name} is not as it should be")
        return cls(**values)


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
        self.left = self.keep = self.written = _read(self._path)

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


def running(directory: Path) -> list[Record]:
    """Return the records whose processes are there, by name."""
    return [record for record in _records(directory) if _is_held(directory, record)]


def left_behind(directory: Path) -> Iterator[tuple[Slot, Record]]:
    """Yield the records of processes that were killed, each held while it is looked at."""
    for record in _records(directory):
        with suppress(BlockingIOError), Slot(directory, record.name) as slot:
            if slot.left is not None:
                yield slot, slot.left


def _records(directory: Path) -> list[Record]:
    found = (_read(path) for path in sorted(directory.glob("*.json")))
    return [record for record in found if record is not None and record.machine == socket.gethostname()]


def _is_held(directory: Path, record: Record) -> bool:
    # The lock of a dead process is not tried: for that moment it would be held, by us.
    try:
        os.kill(record.pid, 0)
        fd = os.open(directory / f"{file_stem(record.name)}.lock", os.O_RDWR | os.O_CLOEXEC)
    except (OSError, OverflowError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _read(path: Path) -> Record | None:
    try:
        with path.open(encoding="utf-8") as file:
            return Record.parse(file.read(_SIZE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
