"""The password goes to no port that another user has taken, whatever is still registered there."""

import os
import pwd
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
from opencode_mcp import Endpoint, SettingsError, opencode_auth
from opencode_mcp.errors import CredentialsError, OpenCodeMCPError, StrangerError
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http, warm_up
from opencode_mcp.settings import read_settings
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_local_relay import LocalRelay, LocalRelaySettings
from support.services import register_fake

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a port is"),
]

PASSWORD = "s3cret"
PEER_USER = "opencode_mcp.opencode.strangers.peer_user"
ASKS_FOR_IT = """
import os, socket, sys, time
os.setuid(int(sys.argv[1]))
closed_seconds = float(sys.argv[2])
port = 0
def listening():
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen()
    return server
server = listening()
port = server.getsockname()[1]
print(port, flush=True)
while True:
    connection, _ = server.accept()
    if closed_seconds:
        server.close()
    request = b""
    while not request.endswith(b"\\r\\n\\r\\n"):
        more = connection.recv(4096)
        if not more:
            break
        request += more
    for line in request.decode().splitlines():
        if line.lower().startswith("authorization"):
            print(line, flush=True)
    try:
        connection.sendall(b"HTTP/1.1 401 No\\r\\nwww-authenticate: Basic realm=\\"Secure Area\\"\\r\\n"
                           b"connection: close\\r\\ncontent-length: 0\\r\\n\\r\\n")
    except OSError:
        pass
    connection.close()
    if closed_seconds:
        time.sleep(closed_seconds)
        server = listening()
"""
"""What somebody would run who has taken a port. It may stop listening for a moment, so as not to be seen."""


IS_NOT_THERE_YET = """
import ctypes, os, socket, struct, sys, time
os.setuid(int(sys.argv[1]))
SO_REUSEPORT, SO_ATTACH_REUSEPORT_CBPF, TCP_DEFER_ACCEPT = 15, 51, 9
def listening(port, backlog, defers):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)
    server.bind(("127.0.0.1", port))
    if defers:
        server.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 60)
    server.listen(backlog)
    return server
def fill(number):
    found = [socket.socket() for _ in range(number)]
    for one in found:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
    time.sleep(0.2)
    return found
full = listening(0, 0, False)
port = full.getsockname()[1]
filling = fill(2)
server = listening(port, 1, True)
# Its SYNs and data to `server`, whose queue is full, so that cookies are sent; the rest is dropped at `full`.
steps = [(0x30, 0, 0, 0xfff00021), (0x45, 2, 0, 2), (0x80, 0, 0, 0), (0x15, 1, 0, 0), (6, 0, 0, 1),
         (6, 0, 0, 0)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
full.setsockopt(
    socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("H6xQ", len(steps), ctypes.addressof(code))
)
filling += fill(3)
print(port, flush=True)
while True:
    connection, _ = server.accept()
    for line in connection.recv(65536).decode().splitlines():
        if line.lower().startswith("authorization"):
            print(line, flush=True)
    connection.sendall(b"HTTP/1.1 401 No\\r\\nwww-authenticate: Basic realm=\\"Secure Area\\"\\r\\n"
                       b"connection: close\\r\\ncontent-length: 0\\r\\n\\r\\n")
    connection.close()
"""
"""What somebody would run whose end of a connection the kernel makes only when something arrives there."""


@contextmanager
def asking(
    user: int, closed_seconds: float = 0, program: str = ASKS_FOR_IT
) -> Generator[tuple[int, list[str]]]:
    """Run a server of a user that asks for the password as OpenCode does: its port, what it got at last."""
    answers: list[str] = []
    command = [sys.executable, "-I", "-c", program, str(user), str(closed_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), answers
        finally:
            process.kill()
            answers += process.stdout


async def talked(transport: LocalRelay, endpoint: Endpoint, password: str = PASSWORD) -> None:
    """Reach an endpoint as core does."""
    await anyio.to_thread.run_sync(warm_up)
    async with transport.connect(endpoint) as route:
        auth = route.auth or opencode_auth(password)
        async with Http(route, seconds=5, vouched=True, auth=auth) as http:
            await detect(http, pid=route.pid, version=route.version)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
async def test_who_has_taken_the_port_gets_no_password(registry: Path) -> None:
    with asking(STRANGER) as (port, answers):
        register(registry, "a", port=port)
        transport = relay(registry)
        [endpoint] = await transport.discover()
        assert endpoint.vouched
        with pytest.raises(StrangerError, match=f"uid {STRANGER}.*RELAY_TRUST_USERS"):
            await talked(transport, endpoint)
    assert answers == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
@pytest.mark.parametrize("closed_seconds", [0.001, 0.004, 0.015])
async def test_nor_does_who_stops_listening_while_it_is_looked(registry: Path, closed_seconds: float) -> None:
    with asking(STRANGER, closed_seconds) as (port, answers):
        register(registry, "a", port=port)
        transport = relay(registry)
        [endpoint] = await transport.discover()
        for _ in range(10):
            with pytest.raises(OpenCodeMCPError):
                await talked(transport, endpoint)
    assert answers == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
async def test_nor_does_whose_end_is_not_there_until_something_is_sent(registry: Path) -> None:
    with asking(STRANGER, program=IS_NOT_THERE_YET) as (port, answers):
        register(registry, "a", port=port)
        transport = relay(registry)
        [endpoint] = await transport.discover()
        for _ in range(3):
            with pytest.raises(OpenCodeMCPError):
                await talked(transport, endpoint)
    assert answers == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
async def test_who_is_named_does(registry: Path) -> None:
    with asking(STRANGER) as (port, answers):
        register(registry, "a", port=port)
        transport = relay(registry, trust_users=(STRANGER,))
        [endpoint] = await transport.discover()
        with pytest.raises(CredentialsError, match="refuses"):
            await talked(transport, endpoint)
    assert answers
    assert all(line.lower().startswith("authorization: basic ") for line in answers)


@pytest.mark.parametrize("user", [None, os.geteuid(), 0])
async def test_this_user_and_root_do_and_who_cannot_be_told(
    registry: Path, monkeypatch: pytest.MonkeyPatch, user: int | None
) -> None:
    monkeypatch.setattr(PEER_USER, lambda connection: user)
    async with FakeOpenCode(password=PASSWORD).serve() as fake:
        register(registry, "a", port=int(fake.url.rpartition(":")[2]))
        transport = relay(registry)
        [endpoint] = await transport.discover()
        await talked(transport, endpoint)
        monkeypatch.setattr(PEER_USER, lambda connection: STRANGER)
        with pytest.raises(StrangerError):
            await talked(transport, endpoint)


async def test_an_instance_without_a_password_is_reached_whosever_it_is(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PEER_USER, lambda connection: STRANGER)
    async with FakeOpenCode().serve() as fake:
        register(registry, "a", port=int(fake.url.rpartition(":")[2]))
        transport = relay(registry)
        [endpoint] = await transport.discover()
        await talked(transport, endpoint)


@pytest.mark.parametrize("user", [os.geteuid(), os.geteuid() + 1])
async def test_the_password_of_the_service_is_for_this_user_alone(
    state: Path, registry: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    async with FakeOpenCode(generation=2).serve() as fake:
        register_fake(state, fake)
        transport = relay(registry, trust_users=(os.geteuid() + 1,))
        [endpoint] = await transport.discover()
        monkeypatch.setattr(PEER_USER, lambda connection: user)
        if user == os.geteuid():
            await talked(transport, endpoint)
        else:
            with pytest.raises(StrangerError):
                await talked(transport, endpoint)


def test_users_are_named_by_name_or_id(monkeypatch: pytest.MonkeyPatch) -> None:
    us = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setenv("RELAY_TRUST_USERS", f" {us}, 4711,{us}")
    assert read_settings(LocalRelaySettings).trust_users == (os.geteuid(), 4711)


@pytest.mark.parametrize(
    "wrong", ["nobody-of-that-name", ",", "-1", "99999999999", "4711;", "\N{SUPERSCRIPT TWO}"]
)
def test_a_user_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("RELAY_TRUST_USERS", wrong)
    with pytest.raises(SettingsError, match="RELAY_TRUST_USERS"):
        read_settings(LocalRelaySettings)
