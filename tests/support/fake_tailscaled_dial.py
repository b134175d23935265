"""The `dial` of a fake tailscaled: where an address leads, and how many are dialled at once."""

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable

import anyio

from support.fake_tailscaled_tailnet import Tailnet
from support.fake_tailscaled_web import Place
from support.fake_tailscaled_wire import (
    Answer,
    GoneError,
    Request,
    Stream,
    StreamServer,
    connect,
    first_of,
    pump,
    text,
)

_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: ts-dial\r\nConnection: upgrade\r\n\r\n"


class Dialler:
    """Dials into the tailnet.

    Attributes:
        reach: Where a dial leads: (address or name, port) -> (host, port) here, a server in this process,
            `"refuse"`, or `"hang"`. Peers that are not here refuse, or hang if they are offline.
        machines: Where a dial leads by the address or name alone: tells the place of a port.
        dial_seconds: How long a dial takes.
        dials: Every (host, port) that was dialled, in order.
        dialling: How many dials have no answer yet.
        most_dialling: The most there were of these.
        tunnels: How many dialled connections are open.
        most_tunnels: The most there were of these.
    """

    def __init__(self, tailnet: Tailnet) -> None:
        self.reach: dict[tuple[str, int], Place] = {}
        self.machines: dict[str, Callable[[int], Place]] = {}
        self.dial_seconds = 0.0
        self.dials: list[tuple[str, int]] = []
        self.dialling = self.most_dialling = 0
        self.tunnels = self.most_tunnels = 0
        self._known = tailnet

    async def _answer_dial(self, stream: Stream, request: Request) -> Answer | bool:
        headers = request.headers
        if request.method != "POST":
            return text(405, "POST required")
        if "upgrade" not in headers.get("connection", "") or headers.get("upgrade") != "ts-dial":
            return text(400, "bad ts-dial upgrade")
        host, port = headers.get("dial-host", ""), headers.get("dial-port", "")
        if not host or not port:
            return text(400, "missing Dial-Host or Dial-Port header")
        if not port.isdecimal():
            return text(502, f"resolve failure: invalid port {port}")
        self.dials.append((host, int(port)))
        self.dialling += 1
        self.most_dialling = max(self.most_dialling, self.dialling)
        try:
            place = await self._dial(stream, host, int(port))
        finally:
            self.dialling -= 1
        if not isinstance(place, Stream) and not callable(place):
            return place
        self.tunnels += 1
        self.most_tunnels = max(self.most_tunnels, self.tunnels)
        try:
            await stream.send(_UPGRADED)
            await (pump(stream, place) if isinstance(place, Stream) else place(stream))
        finally:
            self.tunnels -= 1
            if isinstance(place, Stream):
                with anyio.CancelScope(shield=True):
                    await place.close()
        return False

    async def _dial(self, stream: Stream, host: str, port: int) -> Answer | Stream | StreamServer:
        """Connect; an answer says why not."""
        if self.dial_seconds:
            await first_of(asyncio.sleep(self.dial_seconds), stream.gone())
        place = self._place(host, port)
        if place == "hang":
            await stream.gone()
        if stream.over:
            raise GoneError
        if isinstance(place, Answer) or callable(place):
            return place
        if isinstance(place, tuple):
            with contextlib.suppress(OSError):
                return await connect(*place)
        return text(502, f"dial failure: dial tcp {_joined(host, port)}: connect: connection refused")

    def _place(self, host: str, port: int) -> Place | Answer:
        """Find out where a dial leads; an answer says that it is not into the tailnet."""
        peer = self._known.find(host)
        names = (host, *peer.aliases) if peer else (host,)
        for name in names:
            if (place := self.reach.get((name, port))) is not None:
                return place
        for name in names:
            if (machine := self.machines.get(name)) is not None:
                return machine(port)
        if peer is not None:
            return "refuse" if peer.online else "hang"
        if address(host) is None:
            return text(502, f"resolve failure: lookup {host}: no such host")
        return Answer(200, headers={"Dial-Self": "true", "Dial-Addr": _joined(host, port)})


def address(host: str) -> str | None:
    """Return the address of an address with or without a port."""
    for name in (host, host.rpartition(":")[0].strip("[]")):
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(name))
    return None


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
