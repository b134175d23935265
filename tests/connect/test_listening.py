"""Whose a listening port is, as the kernel tells."""

import os
import socket
import sys
from pathlib import Path

import anyio
import pytest

from opencode_mcp.connect import listening
from opencode_mcp.connect.listening import listening_user
from opencode_mcp.connect.presence import Presence
from opencode_mcp.testing import FakeOpenCode
from support.real_opencode import free_port

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a port is"),
]

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def line(address: str, state: str, uid: int) -> str:
    return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 20 1\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tcp"
    monkeypatch.setattr(listening, "_TABLES", (str(path), str(tmp_path / "none")))
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_of_ours_is_ours(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        assert listening_user(url_of(host, server.getsockname()[1])) == os.geteuid()


def test_a_port_that_nobody_listens_on_is_nobodys() -> None:
    assert listening_user(url_of("127.0.0.1", free_port())) is None


def test_of_several_the_stranger_comes_first(table: Path) -> None:
    ours, other = os.geteuid(), os.geteuid() + 1
    table.write_text(HEAD + line("0100007F:1000", "0A", ours) + line("00000000:1000", "0A", other))
    assert listening_user(f"http://127.0.0.1:{0x1000}") == other


def test_connections_other_ports_and_other_addresses_do_not_count(table: Path) -> None:
    lines = [("0100007F:1000", "01"), ("0100007F:1001", "0A"), ("0500000A:1000", "0A")]  # the last: 10.0.0.5
    table.write_text(HEAD + "".join(line(address, state, 7) for address, state in lines))
    assert listening_user(f"http://127.0.0.1:{0x1000}") is None


async def test_a_stranger_on_the_port_is_not_taken_for_the_opencode_that_was_started(table: Path) -> None:
    fake = FakeOpenCode()
    async with fake.serve() as running:
        port = int(running.url.rpartition(":")[2])
        table.write_text(HEAD + line(f"0100007F:{port:04X}", "0A", os.geteuid() + 1))
        ours = Presence(running.url, username="", password=None, started_here=True)
        with anyio.move_on_after(0.3):
            await ours.appears()
        assert f"Port {port} was taken by another user" in ours.problem
        table.write_text(HEAD)
        with anyio.fail_after(5):
            await ours.appears()
