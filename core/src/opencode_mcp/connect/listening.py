"""Whose a listening port is: between choosing one and OpenCode's taking it, somebody else may."""

import os
from collections.abc import Iterator
from pathlib import Path

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"  # TCP_LISTEN, include/net/tcp_states.h


def listening_user(port: int) -> int | None:
    """Return the user id of who listens on `port` of this machine; None if nobody does, or it is not told.

    Where several do, on different addresses, one that is not the user's own comes first. Linux only.
    """
    users = sorted(_users(port), key=lambda uid: uid == os.geteuid())
    return users[0] if users else None


def _users(port: int) -> Iterator[int]:
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield int(fields[7])
