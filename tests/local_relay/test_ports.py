"""The password goes to no port that another user has taken, whatever is still registered there."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from local_relay.conftest import STRANGER
from local_relay.relay_parts import register, relay
from opencode_mcp import Endpoint, TransportError, opencode_auth
from opencode_mcp.errors import CredentialsError
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http, warm_up
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_local_relay import LocalRelay, ports

pytestmark = pytest.mark.anyio

PASSWORD = "s3cret"
ASKS_FOR_IT = """
import os, socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.headers.get("authorization"), file=sys.stderr, flush=True)
        self.send_response(401)
        self.send_header("www-authenticate", 'Basic realm="Secure Area"')
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *words): pass
socket.getfqdn("127.0.0.1")  # imports what that user may not be able to read
os.setuid(int(sys.argv[1]))
server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""What somebody would run who has taken the port of an OpenCode."""


@contextmanager
def asking(user: int) -> Generator[tuple[int, list[str | None]]]:
    """Run a server of a user that asks for the password as OpenCode does: its port, what it was sent."""
    heard: list[str | None] = []
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", ASKS_FOR_IT, str(user)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), heard
        finally:
            process.kill()
            assert process.stderr is not None
            heard += [None if line == "None\n" else line.strip() for line in process.stderr]


async def talked(transport: LocalRelay, endpoint: Endpoint) -> None:
    await anyio.to_thread.run_sync(warm_up)
    async with (
        transport.connect(endpoint) as route,
        Http(route, seconds=5, vouched=True, auth=opencode_auth(PASSWORD)) as http,
    ):
        await detect(http, pid=route.pid, version=route.version)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
async def test_who_has_taken_the_port_gets_no_password(registry: Path) -> None:
    with asking(STRANGER) as (port, heard):
        register(registry, "a", port=port)
        transport = relay(registry)
        [endpoint] = await transport.discover()
        assert endpoint.vouched
        with pytest.raises(TransportError, match=f"uid {STRANGER}.*RELAY_TRUST_ANY_OWNER"):
            await talked(transport, endpoint)
    assert heard == [None]
    with asking(STRANGER) as (port, heard):
        register(registry, "a", port=port)
        trusting = relay(registry, trust_any_owner=True)
        [endpoint] = await trusting.discover()
        with pytest.raises(CredentialsError):
            await talked(trusting, endpoint)
    assert heard[0] is None
    assert str(heard[1]).startswith("Basic ")


@pytest.mark.parametrize("user", [None, os.geteuid(), 0])
async def test_this_user_and_root_do(
    registry: Path, monkeypatch: pytest.MonkeyPatch, user: int | None
) -> None:
    monkeypatch.setattr(ports, "listening_user", lambda url: user)
    async with FakeOpenCode(password=PASSWORD).serve() as fake:
        register(registry, "a", port=int(fake.url.rpartition(":")[2]))
        transport = relay(registry)
        [endpoint] = await transport.discover()
        await talked(transport, endpoint)
        monkeypatch.setattr(ports, "listening_user", lambda url: STRANGER)
        with pytest.raises(TransportError, match="listens at"):
            await talked(transport, endpoint)


async def test_where_nobody_tells_whose_a_port_is_everybody_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "listening_user", lambda url: STRANGER)
    monkeypatch.setattr(sys, "platform", "darwin")
    await ports.nobody_elses("http://127.0.0.1:1")
    await ports.ours("http://127.0.0.1:1")


async def test_the_service_is_this_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in (None, os.geteuid() + 1):
        monkeypatch.setattr(ports, "listening_user", lambda url, user=user: user)
        with pytest.raises(TransportError, match="no more"):
            await ports.ours("http://127.0.0.1:1")


async def test_a_route_without_a_password_is_not_looked_at(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "listening_user", lambda url: STRANGER)
    async with FakeOpenCode().serve() as fake:
        register(registry, "a", port=int(fake.url.rpartition(":")[2]))
        transport = relay(registry)
        [endpoint] = await transport.discover()
        await talked(transport, endpoint)
