"""Look at what is really on the wire of a test LAN: connections, what they carry, and mDNS.

The recording is done by this file run as a script in the host's namespace; it passes on whole frames, which
are read here.
"""

import contextlib
import dataclasses
import ipaddress
import os
import select
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from support.lan import Node

_READY = "recording"
_MARK = "mark"
_SECONDS = 10
_MDNS_PORT = 5353
_BUFFER_BYTES = 64 << 20

_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP, _FRAGMENT = 6, 17, 44
_IPV6_OPTIONS = (0, 43, 60)
_FIN, _SYN, _ACK = 0x01, 0x02, 0x10

_TYPES = {1: "A", 12: "PTR", 16: "TXT", 28: "AAAA", 33: "SRV", 47: "NSEC", 255: "ANY"}
_T = TypeVar("_T")


class Connection(NamedTuple):
    """An attempt to connect by TCP."""

    source: str
    source_port: int
    target: str
    port: int


class Payload(NamedTuple):
    """What went one way over a TCP connection, put together in its order."""

    source: str
    source_port: int
    target: str
    port: int
    data: bytes


class Question(NamedTuple):
    """A question of an mDNS packet; `unicast` if it wants the answer for itself alone."""

    name: str
    type: str
    unicast: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A record of an mDNS packet.

    Attributes:
        name: Its owner, with a dot at the end. In names, a byte that is no UTF-8 is shown as `\\xff`.
        type: Such as `PTR`, or `TYPE99` if it is none of the usual.
        ttl: Seconds.
        flush: Whether it has the cache-flush bit.
        data: For reading: a name (PTR), `priority weight port target` (SRV), an address (A, AAAA), the
            strings (TXT), else hexadecimal digits.
        raw: The data as they were.
    """

    name: str
    type: str
    ttl: int
    flush: bool
    data: str
    raw: bytes

    @property
    def strings(self) -> list[bytes]:
        """The strings of a TXT record."""
        return _strings(self.raw)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packet:
    """An mDNS packet.

    Attributes:
        source: The sender's address.
        source_port: The sender's port.
        target: The multicast group, or the address it was sent to.
        response: Whether it is a response, not a query.
        questions: What it asks.
        answers: The records of its answer section.
        others: The records of the other sections: what a probe proposes, and the additional ones.
        malformed: Whether it could not be read to its end.
    """

    source: str
    source_port: int
    target: str
    response: bool
    questions: Sequence[Question]
    answers: Sequence[Record]
    others: Sequence[Record]
    malformed: bool


class Wire:
    """What has been recorded; all that was on the wire before a question counts for its answer."""

    def __init__(self, commands: IO[str]) -> None:
        self._commands = commands
        self._news = threading.Condition()
        self._marks = 0
        self._marked = 0
        self._lost = 0
        self._ended = False
        self._closed = False
        self._fragments: dict[tuple[str, str, int, int], dict[int, tuple[bytes, bool]]] = {}
        self._connections: dict[tuple[Connection, int], None] = {}
        self._flows: dict[Connection, _Flow] = {}
        self._packets: list[Packet] = []

    def connections(self) -> list[Connection]:
        """Return the attempts to connect, one for each however often its SYN was repeated."""
        with self._up_to_date():
            return [connection for connection, _ in self._connections]

    def payloads(self) -> list[Payload]:
        """Return what went over TCP, one for each direction of each connection that carried anything."""
        with self._up_to_date():
            return [Payload(*key, data) for key, flow in self._flows.items() if (data := flow.joined())]

    def carried(self, words: bytes) -> list[Payload]:
        """Return the payloads that hold `words`, in capitals or not."""
        return [payload for payload in self.payloads() if words.lower() in payload.data.lower()]

    def packets(self) -> list[Packet]:
        """Return the mDNS packets."""
        with self._up_to_date():
            return list(self._packets)

    def questions(self) -> list[Question]:
        """Return what was asked by mDNS."""
        return [each for packet in self.packets() if not packet.response for each in packet.questions]

    def records(self) -> list[Record]:
        """Return the records of all mDNS responses."""
        found = [packet for packet in self.packets() if packet.response]
        return [record for packet in found for record in (*packet.answers, *packet.others)]

    def goodbyes(self) -> list[Record]:
        """Return the records that were said to exist no longer: with a TTL of 0."""
        return [record for record in self.records() if record.ttl == 0]

    def wait_for(self, predicate: "Callable[[Wire], _T]", seconds: float = _SECONDS) -> _T:
        """Wait until a question to this wire has a true answer, and return the answer.

        Raises:
            TimeoutError: It has none after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not (answer := predicate(self)):
            if time.monotonic() > deadline:
                seen = f"{len(self._packets)} mDNS packets, {len(self._connections)} connections"
                raise TimeoutError(f"Not seen on the wire within {seconds} s; seen were {seen}")
            with self._news:
                self._news.wait(0.02)
        return answer

    @contextlib.contextmanager
    def _up_to_date(self) -> Generator[None]:
        """Have all that was on the wire until now, and nothing new."""
        with self._news:
            if self._ended and not self._closed:
                raise RuntimeError("The recording has ended before its time")
            if not self._closed:
                self._marks += 1
                mark = self._marks
                self._commands.write("\n")
                self._commands.flush()
                if not self._news.wait_for(lambda: self._marked >= mark or self._ended, _SECONDS):
                    raise RuntimeError("The recording hangs")
            if self._lost:
                raise RuntimeError(f"The recording has lost {self._lost} frames, so it proves nothing")
            yield

    def _close(self) -> None:
        """Let the script pass on what it has, and end."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._commands.close()

    def _read(self, lines: IO[str]) -> None:
        """Take in what the script writes, until it ends."""
        for line in lines:
            with self._news:
                if line.startswith(_MARK):
                    _, marks, lost = line.split()
                    self._marked += int(marks)
                    self._lost += int(lost)
                else:
                    with contextlib.suppress(struct.error, IndexError, ValueError):  # nothing that we know
                        self._take_frame(bytes.fromhex(line))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _take_frame(self, frame: bytes) -> None:
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == _IPV4:
            self._take_ipv4(frame[14:])
        elif kind == _IPV6:
            self._take_ipv6(frame[14:])

    def _take_ipv4(self, packet: bytes) -> None:
        length, number, fragment = struct.unpack_from("!3H", packet, 2)
        source, target = (str(ipaddress.IPv4Address(packet[at : at + 4])) for at in (12, 16))
        content = packet[(packet[0] & 15) * 4 : length]
        if fragment & 0x3FFF:
            key = (source, target, packet[9], number)
            whole = self._defragment(key, (fragment & 0x1FFF) * 8, content, more=bool(fragment & 0x2000))
            if whole is None:
                return
            content = whole
        self._take_content(packet[9], source, target, content)

    def _take_ipv6(self, packet: bytes) -> None:
        (length,) = struct.unpack_from("!H", packet, 4)
        source, target = (str(ipaddress.IPv6Address(packet[at : at + 16])) for at in (8, 24))
        kind, content = packet[6], packet[40 : 40 + length]
        while kind in _IPV6_OPTIONS:
            kind, content = content[0], content[(content[1] + 1) * 8 :]
        if kind == _FRAGMENT:
            offset, number = struct.unpack_from("!HI", content, 2)
            kind = content[0]
            key = (source, target, kind, number)
            whole = self._defragment(key, offset & 0xFFF8, content[8:], more=bool(offset & 1))
            if whole is None:
                return
            content = whole
        self._take_content(kind, source, target, content)

    def _defragment(
        self, key: tuple[str, str, int, int], offset: int, content: bytes, *, more: bool
    ) -> bytes | None:
        """Return the whole packet if with this fragment none is missing."""
        parts = self._fragments.setdefault(key, {})
        parts[offset] = (content, more)
        whole = b""
        for at in sorted(parts):
            if at != len(whole):
                return None
            whole += parts[at][0]
        if parts[max(parts)][1]:
            return None
        del self._fragments[key]
        return whole

    def _take_content(self, kind: int, source: str, target: str, content: bytes) -> None:
        source_port, port = struct.unpack_from("!2H", content)
        if kind == _UDP and _MDNS_PORT in (source_port, port):
            self._packets.append(_packet(source, source_port, target, content[8:]))
        elif kind == _TCP:
            key = Connection(source, source_port, target, port)
            (sequence,) = struct.unpack_from("!I", content, 4)
            flags = content[13]
            if flags & _SYN:
                if not flags & _ACK:
                    self._connections[key, sequence] = None
                self._flows.setdefault(key, _Flow(sequence + 1)).restart(sequence + 1)
            elif data := content[(content[12] >> 4) * 4 :]:
                self._flows.setdefault(key, _Flow(sequence)).add(sequence, data)


class _Flow:
    """One direction of a TCP connection."""

    def __init__(self, first: int) -> None:
        self._first = first & 0xFFFFFFFF
        self._earlier = b""  # of connections before this one with the same ports
        self._parts: dict[int, bytes] = {}

    def restart(self, first: int) -> None:
        if (first & 0xFFFFFFFF) != self._first:
            self._earlier, self._parts, self._first = self.joined(), {}, first & 0xFFFFFFFF

    def add(self, sequence: int, data: bytes) -> None:
        at = (sequence - self._first) & 0xFFFFFFFF
        if len(data) > len(self._parts.get(at, b"")):
            self._parts[at] = data

    def joined(self) -> bytes:
        """Return what was sent; where a piece was never seen, the rest is joined as if there was no gap."""
        whole, end = bytearray(self._earlier), 0
        for at in sorted(self._parts):
            data = self._parts[at]
            whole += data[max(0, end - at) :]
            end = max(end, at + len(data))
        return bytes(whole)


@contextlib.contextmanager
def sniffing(node: "Node") -> Generator[Wire]:
    """Record what goes through a host's interface, or through the LAN's switch, until the block ends.

    It has begun on entry, and what was recorded may be asked for after the end too.
    """
    from support.lan import end  # not at the top: the script runs this file alone

    script: subprocess.Popen[str] = node.popen(
        *(sys.executable, "-I", "-S", __file__, node.interface),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert script.stdin is not None
    assert script.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(script.stdout, selectors.EVENT_READ)
            said = script.stdout.readline() if selector.select(_SECONDS) else "nothing"
        if said.strip() != _READY:
            raise RuntimeError(f"The recording on {node.name} did not start; it said: {said}")
        wire = Wire(script.stdin)
        reader = threading.Thread(target=wire._read, args=(script.stdout,), daemon=True)
        reader.start()
        try:
            yield wire
        finally:
            wire._close()
            reader.join(_SECONDS)
    finally:
        end(script)


def _packet(source: str, source_port: int, target: str, content: bytes) -> Packet:
    """Read an mDNS packet, as far as it can be read."""
    questions: list[Question] = []
    sections: list[list[Record]] = [[], [], []]
    malformed = False
    flags = 0
    try:
        _, flags, asked, *counts = struct.unpack_from("!6H", content)
        at = 12
        for _ in range(asked):
            name, at = _name(content, at)
            kind, group = struct.unpack_from("!2H", content, at)
            questions.append(Question(name, _type(kind), bool(group & 0x8000)))
            at += 4
        for section, count in zip(sections, counts, strict=True):
            for _ in range(count):
                record, at = _record(content, at)
                section.append(record)
    except (struct.error, IndexError, ValueError):
        malformed = True
    return Packet(
        source=source,
        source_port=source_port,
        target=target,
        response=bool(flags & 0x8000),
        questions=questions,
        answers=sections[0],
        others=[*sections[1], *sections[2]],
        malformed=malformed,
    )


def _record(content: bytes, at: int) -> tuple[Record, int]:
    """Return the record at a place, and the place after it."""
    name, at = _name(content, at)
    kind, group, ttl, length = struct.unpack_from("!2HIH", content, at)
    at += 10
    raw = content[at : at + length]
    if len(raw) < length:
        raise ValueError("The record is cut off")
    try:
        shown = _shown(_type(kind), raw, content, at)
    except (struct.error, IndexError, ValueError):
        shown = raw.hex()
    flush = bool(group & 0x8000)
    return Record(name=name, type=_type(kind), ttl=ttl, flush=flush, data=shown, raw=raw), at + length


def _shown(kind: str, raw: bytes, content: bytes, at: int) -> str:
    if kind == "PTR":
        return _name(content, at)[0]
    if kind == "SRV":
        return " ".join([*map(str, struct.unpack_from("!3H", raw)), _name(content, at + 6)[0]])
    if kind in ("A", "AAAA"):
        return str(ipaddress.ip_address(raw))
    if kind == "TXT":
        return " ".join(_readable(each) for each in _strings(raw))
    return raw.hex()


def _name(content: bytes, at: int) -> tuple[str, int]:
    """Return the name at a place, and the place after it."""
    words: list[str] = []
    after = 0
    for _ in range(128):
        length = content[at]
        if length & 0xC0 == 0xC0:
            after = after or at + 2
            at = struct.unpack_from("!H", content, at)[0] & 0x3FFF
        elif length == 0:
            return "".join(f"{word}." for word in words) or ".", after or at + 1
        else:
            words.append(_readable(content[at + 1 : at + 1 + length]))
            at += 1 + length
    raise ValueError("The name has no end")


def _strings(raw: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        found.append(raw[at + 1 : at + 1 + raw[at]])
        at += 1 + raw[at]
    return found


def _readable(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _type(kind: int) -> str:
    return _TYPES.get(kind, f"TYPE{kind}")


# ----------------------------------------------------------------------
# The script. It runs alone, on the standard library.

_ALL_KINDS = 0x0003
_SOL_PACKET, _ADD_MEMBERSHIP, _STATISTICS, _PROMISCUOUS = 263, 1, 6, 1
_RECEIVE_BUFFER_FORCE = 33


def _record_frames(interface: str) -> None:
    """Write all frames of an interface, and after each line of the input a mark; until the input ends."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER_BYTES)
        member = struct.pack("@iHH8s", socket.if_nametoindex(interface), _PROMISCUOUS, 0, b"")
        sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)  # a switch gets to see nothing otherwise
        sock.bind((interface, _ALL_KINDS))
        sock.setblocking(False)
        print(_READY, flush=True)
        going_on = True
        while going_on:
            ready, _, _ = select.select([sock, sys.stdin], [], [])
            asked = os.read(sys.stdin.fileno(), 4096) if sys.stdin in ready else None
            going_on = asked != b""
            for frame in _waiting(sock):
                sys.stdout.write(f"{frame.hex()}\n")
            if asked is not None:
                _, lost = struct.unpack("@2I", sock.getsockopt(_SOL_PACKET, _STATISTICS, 8))
                sys.stdout.write(f"{_MARK} {len(asked)} {lost}\n")
            sys.stdout.flush()


def _waiting(sock: socket.socket) -> Iterator[bytes]:
    """Yield the frames that wait to be read."""
    while True:
        try:
            yield sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:  # the interface went down; it may come back
            continue


if __name__ == "__main__":
    _record_frames(sys.argv[1])
