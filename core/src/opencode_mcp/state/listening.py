"""Whose a listening port of this machine is: between choosing one and taking it, somebody else may."""

import ipaddress
import os
import socket
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"  # TCP_LISTEN, include/net/tcp_states.h


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
    if not _is_here(address):
        return None
    listening = list(_listening(port))
    for forms in _by_precedence(address):
        users = [uid for where, uid in listening if where in forms]
        if users:
            return next((uid for uid in users if uid != os.geteuid()), users[0])
    return None


def _is_here(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether this machine has an address; a link-local one is taken to be here, for lack of its zone."""
    if address.is_link_local:
        return True
    kind = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _listening(port: int) -> Iterator[tuple[str, int]]:
    """Who listens at the port: each with the address, as the tables write it, and the user id."""
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            where, _, at = fields[1].rpartition(":")
            if fields[3] == _LISTENING and int(at, 16) == port:
                yield where, int(fields[7])


def _by_precedence(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Sequence[Collection[str]]:
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
