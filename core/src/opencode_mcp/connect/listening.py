"""Whose a listening port is: between choosing one and OpenCode's taking it, somebody else may."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"  # TCP_LISTEN, include/net/tcp_states.h


def listening_user(url: str) -> int | None:
    """Return the user id of who listens where `url` says; None if nobody does, or it is not told.

    Where several do, one that is not ours comes first. Linux only.

    Args:
        url: `http://address:port`, an address of this machine.
    """
    parts = urlsplit(url)
    users = sorted(_users(parts.hostname or "", parts.port or 80), key=lambda uid: uid == os.geteuid())
    return users[0] if users else None


def _users(address: str, port: int) -> Iterator[int]:
    addresses = set(_as_told(address))
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            where, _, at = fields[1].rpartition(":")
            if fields[3] == _LISTENING and int(at, 16) == port and where in addresses:
                yield int(fields[7])


def _as_told(address: str) -> Iterator[str]:
    """The forms of an address in these tables, those of every address included."""
    forms = ["0.0.0.0", "::", address]  # noqa: S104 - looked for, not bound
    if ":" not in address:
        forms.append(f"::ffff:{address}")
    for form in forms:
        try:
            packed = socket.inet_pton(socket.AF_INET6 if ":" in form else socket.AF_INET, form)
        except OSError:  # a name
            continue
        words = (packed[start : start + 4] for start in range(0, len(packed), 4))
        yield "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
