"""Send mDNS responses of any content, true or hostile, from a host of a test LAN.

Imported, it builds and sends adverts; run as a script on a host, it does the sending. The packets are made by
hand, since a library that checks what it sends could not send most of what is wanted here.
"""

import dataclasses
import ipaddress
import json
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.lan import Node

GROUP = "224.0.0.251"
GROUP_IPV6 = "ff02::fb"
PORT = 5353
LARGEST_PACKET = 8900
"""In bytes; python-zeroconf drops packets above 9000. A single record that is larger is sent all the same."""

A, PTR, TXT, AAAA, SRV, ANY = 1, 12, 16, 28, 33, 255
_IN = 1
_FLUSH = 0x8000
_RESPONSE = 0x8400  # authoritative
_READY = "sent"
_READY_SECONDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advert:
    r"""One service as it is to be announced; nothing of it needs to be true, or sensible.

    In all texts a lone surrogate stands for a byte that is no UTF-8, as in `os.fsdecode`: `\\udcff` for 0xff.

    Attributes:
        service_type: Such as `_opencode._tcp.local.`; owner of the PTR record.
        instance: The first label of the instance's name, dots and all; or several labels.
        name: The whole name of the instance, for one under another type; split at dots.
        target: The host in the SRV record, and owner of the addresses.
        port: The port in the SRV record.
        addresses: IPv4 and IPv6 addresses of the target.
        txt: The TXT record: values by key, None for a key without `=`.
        txt_hex: The TXT record's data as they are on the wire, instead of `txt`.
        ttl: Time to live of all records, in seconds; 0 for a goodbye.
        flush: Whether the cache-flush bit is set, on all records but the PTR.
        only: Which of `PTR`, `SRV`, `TXT` and `A` (addresses of both families) to send.
        packet_hex: A whole packet as it is on the wire, instead of all of the above.
        repeat: How often to send it; 0 for until the sender is ended.
        every: Seconds between.
        respond: Whether to answer queries for its names, until the sender is ended; with that, `repeat` times
            unasked, which may be 0 here.
        ipv6: Whether to send by IPv6 multicast as well.
        source_port: The UDP port to send from; RFC 6762, section 6, wants 5353.
        to: An IPv4 address to send to, instead of the multicast group.
    """

    service_type: str = "_opencode._tcp.local."
    instance: str | Sequence[str] = "hostile"
    name: str | None = None
    target: str = "hostile.local."
    port: int = 4096
    addresses: Sequence[str] = ()
    txt: Mapping[str, str | None] = dataclasses.field(default_factory=dict[str, str | None])
    txt_hex: str | None = None
    ttl: int = 120
    flush: bool = False
    only: Sequence[str] = ("PTR", "SRV", "TXT", "A")
    packet_hex: str | None = None
    repeat: int = 1
    every: float = 1
    respond: bool = False
    ipv6: bool = False
    source_port: int = PORT
    to: str | None = None


@contextmanager
def sending(host: "Node", *adverts: Advert) -> "Generator[subprocess.Popen[str]]":
    """Send adverts from a host until the block ends; on entry each has been sent once.

    Ending it says nothing on the wire: for a goodbye, `send` an advert with a TTL of 0.
    """
    from support.lan import end

    process: subprocess.Popen[str] = host.popen(
        *(sys.executable, "-I", "-S", __file__, host.interface),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([dataclasses.asdict(advert) for advert in adverts]))
        process.stdin.close()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            said = process.stdout.readline() if selector.select(_READY_SECONDS) else "nothing"
        if said.strip() != _READY:
            end(process) if said == "nothing" else process.wait(_READY_SECONDS)
            raise RuntimeError(f"The sender on {host.name} did not start; it said: {said}{_rest(process)}")
        yield process
    finally:
        end(process)


def send(host: "Node", *adverts: Advert) -> None:
    """Send adverts from a host, each once."""
    once = [dataclasses.replace(advert, repeat=1, respond=False) for advert in adverts]
    with sending(host, *once) as process:
        process.wait(_READY_SECONDS)


def packets(advert: Advert) -> list[bytes]:
    """Build the packets of an advert: one, or more if its records do not fit into one."""
    if advert.packet_hex is not None:
        return [bytes.fromhex(advert.packet_hex)]
    built: list[list[bytes]] = [[]]
    for each in records(advert):
        if built[-1] and sum(map(len, built[-1])) + len(each) > LARGEST_PACKET - 12:
            built.append([])
        built[-1].append(each)
    return [struct.pack("!6H", 0, _RESPONSE, 0, len(group), 0, 0) + b"".join(group) for group in built]


def records(advert: Advert) -> list[bytes]:
    """Build the records of an advert, as they are on the wire."""
    owner, target = instance_name(advert), name(advert.target)
    built: list[bytes] = []
    if "PTR" in advert.only:
        built.append(record(name(advert.service_type), PTR, owner, advert.ttl))
    if "SRV" in advert.only:
        location = struct.pack("!3H", 0, 0, advert.port) + target
        built.append(record(owner, SRV, location, advert.ttl, flush=advert.flush))
    if "TXT" in advert.only:
        built.append(record(owner, TXT, text(advert), advert.ttl, flush=advert.flush))
    if "A" in advert.only:
        for address in map(ipaddress.ip_address, advert.addresses):
            kind = A if address.version == 4 else AAAA
            built.append(record(target, kind, address.packed, advert.ttl, flush=advert.flush))
    return built


def record(owner: bytes, kind: int, content: bytes, ttl: int, *, flush: bool = False) -> bytes:
    """Build one record, as it is on the wire."""
    return owner + struct.pack("!HHIH", kind, _IN | (_FLUSH if flush else 0), ttl, len(content)) + content


def instance_name(advert: Advert) -> bytes:
    """Build the whole name of the instance, as it is on the wire."""
    if advert.name is not None:
        return name(advert.name)
    first = [advert.instance] if isinstance(advert.instance, str) else advert.instance
    return labels(*first)[:-1] + name(advert.service_type)


def name(dotted: str) -> bytes:
    """Build a name from its text, split at the dots; `.` is the root."""
    words = dotted.removesuffix(".")
    return labels(*words.split(".")) if words else b"\0"


def labels(*words: str) -> bytes:
    """Build a name from its labels, which may hold anything, but up to 63 bytes of it."""
    encoded = [_bytes(word) for word in words]
    if any(len(label) > 63 for label in encoded):
        raise ValueError(f"A label has up to 63 bytes, else it means another thing on the wire: {words}")
    return b"".join(bytes([len(label)]) + label for label in encoded) + b"\0"


def text(advert: Advert) -> bytes:
    """Build the content of the TXT record."""
    if advert.txt_hex is not None:
        return bytes.fromhex(advert.txt_hex)
    entries = [_bytes(key if value is None else f"{key}={value}") for key, value in advert.txt.items()]
    return b"".join(bytes([len(entry)]) + entry for entry in entries) or b"\0"


def _bytes(words: str) -> bytes:
    return words.encode("utf-8", "surrogateescape")


def _rest(process: subprocess.Popen[str]) -> str:
    return process.stdout.read() if process.stdout is not None and not process.stdout.closed else ""


# ----------------------------------------------------------------------
# The script. It runs alone, on the standard library.


class _Sender:
    """Sends the packets of adverts from one interface."""

    def __init__(self, interface: str) -> None:
        self._index = socket.if_nametoindex(interface)
        self._sockets: dict[tuple[int, socket.AddressFamily], socket.socket] = {}

    def send(self, advert: Advert) -> None:
        by_ipv4 = self.socket(advert.source_port, socket.AF_INET)
        for packet in packets(advert):
            by_ipv4.sendto(packet, (advert.to or GROUP, PORT))
            if advert.ipv6:
                by_ipv6 = self.socket(advert.source_port, socket.AF_INET6)
                by_ipv6.sendto(packet, (GROUP_IPV6, PORT, 0, self._index))

    def socket(self, port: int, family: socket.AddressFamily) -> socket.socket:
        """Return a socket on a port that may be shared, with multicast by the interface."""
        if (port, family) in self._sockets:
            return self._sockets[port, family]
        made = self._sockets[port, family] = socket.socket(family, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family is socket.AF_INET:
            member = socket.inet_aton(GROUP) + struct.pack("@4si", bytes(4), self._index)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, member)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self._index)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            member = socket.inet_pton(family, GROUP_IPV6) + struct.pack("@I", self._index)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        made.bind(("", port))
        return made


def _asked(packet: bytes) -> set[bytes]:
    """Return the names a query asks for, in small letters; nothing for another packet."""
    names: set[bytes] = set()
    if len(packet) < 12 or packet[2] & 0x80:
        return names
    at = 12
    for _ in range(struct.unpack_from("!H", packet, 4)[0]):
        found, at = _name_at(packet, at)
        names.add(found.lower())
        at += 4
    return names


def _name_at(packet: bytes, at: int) -> tuple[bytes, int]:
    """Return the name at a place with its pointers followed, and the place after it."""
    found, after = b"", 0
    for _ in range(128):
        length = packet[at]
        if length & 0xC0:
            after = after or at + 2
            at = struct.unpack_from("!H", packet, at)[0] & 0x3FFF
            continue
        found += packet[at : at + 1 + length]
        at += 1 + length
        if length == 0:
            return found, after or at
    raise ValueError("The name has no end")


def _own_names(advert: Advert) -> set[bytes]:
    return {each.lower() for each in (name(advert.service_type), instance_name(advert), name(advert.target))}


def _send_all(adverts: Sequence[Advert], interface: str) -> None:
    """Send every advert once, say so, and then as often as each wants."""
    sender = _Sender(interface)
    due: list[tuple[float, int, Advert]] = []
    answering = [(_own_names(advert), advert) for advert in adverts if advert.respond]
    listening: list[socket.socket] = []
    if answering:
        listening = [sender.socket(PORT, socket.AF_INET)]
        if any(advert.ipv6 for _, advert in answering):
            listening.append(sender.socket(PORT, socket.AF_INET6))
    for advert in adverts:
        if advert.repeat or not advert.respond:
            sender.send(advert)
        if advert.repeat != 1 and (advert.repeat or not advert.respond):
            due.append((time.monotonic() + advert.every, advert.repeat - 1, advert))
    print(_READY, flush=True)
    with selectors.DefaultSelector() as selector:
        for each in listening:
            selector.register(each, selectors.EVENT_READ)
        while due or listening:
            due.sort(key=lambda entry: entry[0])
            wait = max(0, due[0][0] - time.monotonic()) if due else None
            for key, _ in selector.select(wait):
                _answer(sender, answering, key.fileobj)
            while due and due[0][0] <= time.monotonic():
                at, left, advert = due.pop(0)
                sender.send(advert)
                if left != 1:
                    due.append((at + advert.every, left - 1, advert))


def _answer(sender: _Sender, answering: Sequence[tuple[set[bytes], Advert]], listening: Any) -> None:
    packet, _ = listening.recvfrom(65536)
    try:
        asked = _asked(packet)
    except (ValueError, IndexError, struct.error):
        return
    for names, advert in answering:
        if names & asked:
            sender.send(advert)


if __name__ == "__main__":
    _send_all([Advert(**each) for each in json.load(sys.stdin)], interface=sys.argv[1])
