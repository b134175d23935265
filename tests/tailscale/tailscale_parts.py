"""What the tests of the gateway's side share: settings by hand, machines by hand, indexes, and a look-out."""

import contextlib
import ipaddress
import json
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from opencode_mcp import Endpoint, Route
from opencode_mcp_tailscale import Tailscale, TailscaleSettings
from opencode_mcp_tailscale.choosing import Candidate
from opencode_mcp_tailscale.index import PATH
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.status import Machine
from support.fake_tailscaled import FakeTailscaled, Peer, ServedWeb, Stream
from support.fake_tailscaled_wire import GoneError
from support.fleets import until

Row = dict[str, Any]

INDEX = 14_096
NOWHERE = 1
"""A port of this machine at which nobody listens."""
VARIABLES = [
    "TAILSCALE_SOCKET",
    "TS_SOCKET",
    "TAILSCALE_INDEX_PORT",
    "TAILSCALE_PORTS",
    "TAILSCALE_USERS",
    "TAILSCALE_TAGS",
    "TAILSCALE_PEERS",
    "TAILSCALE_ALLOW_SHARED",
    "TAILSCALE_ALLOW_USERS",
    "TAILSCALE_FORGET_AFTER_MS",
]


def bare(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    """Let nothing in from around the test: no settings, nothing announced on this machine."""
    for name in (*VARIABLES, *TailscaleSettings.model_fields):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(state))


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what the plugin waits between two looks, but not how long it waits for answers."""
    module = "opencode_mcp_tailscale"
    monkeypatch.setattr(f"{module}.lookout._DEBOUNCE_SECONDS", 0.02)
    monkeypatch.setattr(f"{module}.lookout._MOST_DEBOUNCE_SECONDS", 0.05)
    monkeypatch.setattr(f"{module}.lookout._RETRIES", (0.02, 0.05))
    monkeypatch.setattr(f"{module}.lookout._BREATH_SECONDS", 0.005)
    monkeypatch.setattr(f"{module}.rounds._INDEX_SECONDS", 0.05)
    monkeypatch.setattr(f"{module}.rounds._INDEXES_EACH_SECOND", 1000.0)
    monkeypatch.setattr(f"{module}.rounds._QUESTIONS_EACH_SECOND", 1000.0)
    monkeypatch.setattr(f"{module}.rounds._CONFIRM_SECONDS", 0.05)
    monkeypatch.setattr(f"{module}.rounds._LOST_SECONDS", (0.05,))
    monkeypatch.setattr(f"{module}.rounds._SILENT_SECONDS", 0.1)
    monkeypatch.setattr(f"{module}.rounds.GONE_SECONDS", 0.2)
    monkeypatch.setattr(f"{module}.rounds._RETURN_SECONDS", 0.2)
    monkeypatch.setattr(f"{module}.rounds.PATIENCE", (1.0, 1.0, 1.0))  # the machine may be busy


def settings(fake: FakeTailscaled | None = None, **given: Any) -> TailscaleSettings:
    """Settings by their fields' names; the ports of this machine are left alone."""
    path: Row = {"socket": str(fake.socket)} if fake is not None and fake.socket else {}
    every: Row = {"ports": (NOWHERE,), **path, **given}
    return TailscaleSettings(**every)


def machine(known: str = "nboxCNTRL", *addresses: str, **fields: Any) -> Machine:
    """A machine that is online."""
    given: Row = {
        "id": known,
        "name": "box.tail1a2b.ts.net",
        "user": "ann@example.com",
        "user_id": 11,
        "addresses": tuple(map(ipaddress.ip_address, addresses or ("100.64.0.7",))),
        "online": True,
        **fields,
    }
    return Machine(**given)


def candidate(*addresses: str, own: bool = False, **fields: Any) -> Candidate:
    return Candidate(machine=machine("nboxCNTRL", *addresses, **fields), own=own)


def index(*entries: Mapping[str, object], version: object = 1) -> bytes:
    return json.dumps({"v": version, "instances": entries}).encode()


def entry(known: str = "k3", **fields: object) -> Row:
    return {"id": known, "path": f"/i/{known}/", **fields}


def served(
    name: str, urls: Mapping[str, str], told: Sequence[Mapping[str, object]] | None = None, port: int = INDEX
) -> Row:
    """The serve config of a machine that announces instances; `urls` has where each id is."""
    entries = [entry(known, name=f"the {known}") for known in urls] if told is None else told
    handlers: Row = {f"/i/{known}/": {"Proxy": url} for known, url in urls.items()}
    handlers[PATH] = {"Text": index(*entries).decode()}
    return {"TCP": {str(port): {"HTTP": True}}, "Web": {f"{name}:{port}": {"Handlers": handlers}}}


def announce(fake: FakeTailscaled, peer: Peer, urls: Mapping[str, str], **more: Any) -> ServedWeb:
    """Let a peer announce instances; it can be announced anew."""
    web = ServedWeb(served(peer.name, urls, **more))
    for ip in peer.ips:
        fake.reach[ip, INDEX] = web.at(INDEX)
    return web


def answers(*answer: bytes, hold: bool = False) -> Callable[[Stream], Any]:
    """A server that has one answer to everything, whatever it is."""

    async def serve(stream: Stream) -> None:
        with contextlib.suppress(GoneError):
            await stream.until(b"\r\n\r\n")
            for part in answer:
                await stream.send(part)
            if hold:
                await stream.gone()

    return serve


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Some\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


class Watched:
    """A look-out, and what it has published.

    Attributes:
        transport: The transport.
        published: Each set that it published.
    """

    def __init__(self, transport: Tailscale) -> None:
        self.transport = transport
        self.published: list[Sequence[Endpoint]] = []

    @property
    def now(self) -> dict[str, Endpoint]:
        """What is published now, by id."""
        return {one.id: one for one in self.published[-1]} if self.published else {}

    @property
    def reasons(self) -> str:
        """What is said of what is left out."""
        return "\n".join(f"{one.source}: {one.reason}" for one in self.transport.rejected())

    async def lists(self, *ids: str, seconds: float = 5.0) -> dict[str, Endpoint]:
        """Wait until just these are published."""

        def listed() -> bool:
            return bool(self.published) and sorted(self.now) == sorted(ids)

        await until(listed, seconds, lambda: f"{sorted(self.now)}\n{self.reasons}")
        return self.now

    async def says(self, words: str) -> None:
        """Wait until something is said of what is left out."""
        await until(lambda: words in self.reasons, show=lambda: self.reasons)


@contextlib.asynccontextmanager
async def watching(fake: FakeTailscaled, *, rescan: float = 0.05, **given: Any) -> AsyncGenerator[Watched]:
    """Run a look-out until the block ends."""
    chosen = settings(fake, **given)
    async with LocalApi(chosen) as api:
        watched = Watched(Tailscale(chosen, api))
        watched.transport.rescan_seconds = rescan
        async with anyio.create_task_group() as group:
            group.start_soon(watched.transport.watch, watched.published.append)
            yield watched
            group.cancel_scope.cancel()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.asynccontextmanager
async def no_sockets_left() -> AsyncGenerator[None]:
    """Fail if there are more open sockets in this process afterwards than before; servers take a moment."""
    before = _sockets()
    yield
    await until(lambda: _sockets() <= before, 2, lambda: f"{_sockets() - before} sockets are left")


def _sockets() -> int:
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(one.readlink()).startswith("socket:")
    return found


def client(route: Route) -> httpx2.AsyncClient:
    """A client as core has it."""
    return httpx2.AsyncClient(
        base_url=route.base_url,
        headers=route.headers,
        transport=route.transport,
        trust_env=False,
        timeout=5,
    )
