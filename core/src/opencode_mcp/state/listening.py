"""Whose a port of this machine is, and the other end of a connection: ports go to whoever takes them."""

import errno
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_ARRIVAL_SECONDS = 1.0
_LOOKS = 3
"""A table that changes while it is read may lack a line."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def listening_user(url: str) -> int | None:
    """Return the user id of who would get a connection to `url`, an address of this machine.

    Works for every address that this machine has, not only loopback. As in the kernel, who listens at just
    that address comes before who listens at every address of its family; for an IPv4 address, who listens
    at `::` counts only if nobody listens at IPv4, since its socket may serve both. IPv4 addresses written
    as IPv6 (`::ffff:…`) are taken for what they are. Of a link-local address the zone (`%eth0`) is left
    out, since the kernel does not tell it.

    If several share the place (`SO_REUSEPORT`, or one link-local address on two links), it is one that is
    *not* this process's user, if there is any: whoever gets its own user id may rely on it.

    Linux only (`/proc/net/tcp` and `tcp6`). It blocks, since it reads files: call it from a thread.

    Args:
        url: `http://address:port`, the address a number; without a port, that of the scheme.

    Returns:
        The user id; None if nobody listens there, or it cannot be told: the host is a name, this is not
        Linux, or the address is of another machine or network namespace.
    """
    try:
        parts = urlsplit(url)
        address = ipaddress.ip_address(parts.hostname or "")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    try:
        return _listener(list(_rows(port)), address, port) if _is_here(address) else None
    except OSError:
        return None


def peer_user(connection: socket.socket) -> int | None:
    """Return the user id of who holds the other end of a TCP connection, if that is on this machine.

    Unlike `listening_user` it is about one connection: whoever holds its end cannot hide it, or hand it over.
    If nobody has accepted it yet, it is who listens there.

    The kernel may call a connection established while the other end is not there yet (SYN cookies), and then
    none is to be seen. So if there is none at an address of this machine, an empty line is sent, which HTTP
    servers skip (RFC 9112, section 2.2), and once that has arrived somewhere it is looked at again.

    Linux only, as above. It blocks, since it reads files: call it from a thread.

    Args:
        connection: A connection over which nothing was sent yet; also one of asyncio.

    Returns:
        The user id; None if the other end is not a socket of this network namespace, or it cannot be told.

    Raises:
        OSError: The connection broke, its end is closed, or the tables cannot be read now.
    """
    user = _end_user(connection)
    if user is None and _is_here(_place(connection.getpeername())[0]):
        with connection.dup() as own:
            own.setblocking(False)
            own.send(b"\r\n")
            _until_arrived(own)
        user = _end_user(connection)
    return user


def _end_user(connection: socket.socket) -> int | None:
    ours, theirs = (_place(name) for name in (connection.getsockname(), connection.getpeername()))
    address, port = theirs
    local, remote = _ends(*theirs), _ends(*ours)
    for _ in range(_LOOKS):
        rows = list(_rows(port))
        for row in rows:
            if row.local in local and row.remote in remote:
                user = row.uid if row.inode != "0" else _listener(rows, address, port)
                if user is None:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                return user
    return None


def _until_arrived(connection: socket.socket) -> None:
    """Wait until the other end has what was sent."""
    import fcntl  # not on Windows
    import termios

    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while any(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        time.sleep(0.001)


def _place(name: tuple[str, int, *tuple[int, ...]]) -> tuple[IPAddress, int]:
    return ipaddress.ip_address(name[0].partition("%")[0]), name[1]


def _ends(address: IPAddress, port: int) -> Collection[str]:
    return {f"{form}:{port:04X}" for form in _by_precedence(address)[0]}


def _is_here(address: IPAddress) -> bool:
    """Whether this machine has an address; a link-local one is taken to be here, for lack of its zone.

    Raises:
        OSError: It cannot be told, for lack of descriptors for example.
    """
    if address.is_link_local:
        return True
    with socket.socket(
        socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM
    ) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


class _Row(NamedTuple):
    """A line of the tables: both addresses with their ports, as they are written there, and whose it is."""

    local: str
    remote: str
    state: str
    uid: int
    inode: str


def _rows(port: int) -> Iterator[_Row]:
    """The sockets at a port of this machine, those that listen before the others."""
    wanted = f":{port:04X} "
    for line in _reading.since(time.monotonic()):
        if wanted in line:
            fields = line.split()
            if fields[1].endswith(wanted[:-1]):
                yield _Row(fields[1], fields[2], fields[3], int(fields[7]), fields[9])


class _Reading:
    """Reads the tables, once for all who ask meanwhile: hundreds of connections may be opened at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = float("-inf")
        self._lines: Sequence[str] = ()

    def since(self, moment: float) -> Sequence[str]:
        """Return their lines, as they were after `moment` of the monotonic clock."""
        with self._lock:
            if self._began <= moment:
                began = time.monotonic()
                self._lines = [line for table in _TABLES for line in _lines(table)]
                self._began = began
            return self._lines


_reading = _Reading()


def _lines(table: str) -> Sequence[str]:
    try:
        return Path(table).read_text("ascii").splitlines()[1:]
    except (FileNotFoundError, PermissionError):  # no IPv6; a system that shows them to nobody
        return ()


def _listener(rows: Collection[_Row], address: IPAddress, port: int) -> int | None:
    listening = [row for row in rows if row.state == _LISTENING]
    for forms in _by_precedence(address):
        users = [row.uid for row in listening if row.local in {f"{form}:{port:04X}" for form in forms}]
        if users:
            return next((uid for uid in users if uid != os.geteuid()), users[0])
    return None


def _by_precedence(address: IPAddress) -> Sequence[Collection[str]]:
    """The forms of who gets a connection to `address` (`compute_score` in net/ipv4/inet_hashtables.c)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return [{_form(address.packed)}, {_form(bytes(16))}]
        address = address.ipv4_mapped
    mapped = bytes(10) + b"\xff\xff"
    exact, every = address.packed, bytes(4)
    return [
        {_form(exact), _form(mapped + exact)},
        {_form(every), _form(mapped + every)},
        {_form(bytes(16))},
    ]


def _form(packed: bytes) -> str:
    """An address as the tables write it: in words of the machine's byte order."""
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
