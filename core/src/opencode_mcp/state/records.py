"""Who is running: one record for each instance of this user on this machine, held by a lock.

The kernel releases the lock however the process ends, so a record whose lock is free was left behind. Here
they are read; `connect` writes them, and holds the locks.
"""

import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from opencode_mcp.model import Endpoint
from opencode_mcp.state.places import file_stem

_SIZE_LIMIT = 64 * 1024
_TYPES = {"pid": (int,), "places": (dict,), "transports": (dict,), "owner": (int, type(None))}
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
        owner: The id of the user whose program it is, if that may be another one; or None.
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
    owner: int | None = None

    @classmethod
    def of(
        cls,
        endpoint: Endpoint,
        *,
        url: str,
        log: Path,
        places: Mapping[str, str],
        transports: Mapping[str, str] | None = None,
        owner: int | None = None,
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
            owner=owner,
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
            wanted = _TYPES.get(name, (str,))
            if type(value) not in wanted:
                raise ValueError(f"{name} is not as it should be")
        return cls(**values)


def running(directory: Path) -> list[Record]:
    """Return the records whose processes are there, by name."""
    return [record for record in records(directory) if _is_held(directory, record)]


def records(directory: Path) -> list[Record]:
    """Return the records of this machine, by name, whether or not their processes are there."""
    found = (read(path) for path in sorted(directory.glob("*.json")))
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


def read(path: Path) -> Record | None:
    """Return the record in a file; None if there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            return Record.parse(file.read(_SIZE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
