"""Whose a listening port is, as the kernel tells."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import ifaddr
import pytest

from opencode_mcp import listening_user
from opencode_mcp.connect.presence import Presence
from opencode_mcp.state import listening
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


def own_addresses() -> Iterator[str]:
    """The addresses of this machine, those of a link with its zone."""
    for address in (address for adapter in ifaddr.get_adapters() for address in adapter.ips):
        host, _, zone = (address.ip, 0, 0) if isinstance(address.ip, str) else address.ip
        yield f"{host}%{zone}" if zone else host


OWN = list(own_addresses())


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


@pytest.mark.parametrize("other", ["192.0.2.66", "2001:db8::66"])
def test_a_port_of_another_machine_is_nobodys_though_we_listen_everywhere(other: str) -> None:
    everywhere = "::" if ":" in other else "0.0.0.0"
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    with socket.create_server((everywhere, 0), family=family) as server:
        port = server.getsockname()[1]
        assert listening_user(url_of(everywhere, port)) == os.geteuid()
        assert listening_user(url_of(other, port)) is None


def test_a_port_that_nobody_listens_on_is_nobodys() -> None:
    assert listening_user(url_of("127.0.0.1", free_port())) is None


@pytest.mark.parametrize("host", OWN)
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_port_of_ours_is_ours_at_every_address_of_this_machine(host: str, everywhere: bool) -> None:
    family, every = (socket.AF_INET6, "::") if ":" in host else (socket.AF_INET, "0.0.0.0")
    place = socket.getaddrinfo(every if everywhere else host, 0, family, socket.SOCK_STREAM)[0][4]
    with socket.create_server(place, family=family) as server:
        assert listening_user(url_of(host, server.getsockname()[1])) == os.geteuid()


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("where", ["::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"])
def test_a_dual_stack_socket_of_ours_is_ours_at_ipv4_addresses(host: str, where: str) -> None:
    with socket.socket(socket.AF_INET6) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((where, 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert listening_user(url_of(host, port)) == os.geteuid()


LOOPBACK, EVERY = "0100007F", "00000000"
LOOPBACK6, EVERY6 = "0" * 24 + "01000000", "0" * 32
MAPPED, EVERY_MAPPED = f"{'0' * 16}FFFF0000{LOOPBACK}", f"{'0' * 16}FFFF0000{EVERY}"


@pytest.mark.parametrize(
    ("host", "first", "second"),
    [
        ("127.0.0.1", LOOPBACK, EVERY),
        ("127.0.0.1", LOOPBACK, EVERY6),
        ("127.0.0.1", MAPPED, EVERY),
        ("127.0.0.1", MAPPED, EVERY6),
        ("127.0.0.1", EVERY, EVERY6),
        ("127.0.0.1", EVERY_MAPPED, EVERY6),
        ("::1", LOOPBACK6, EVERY6),
        ("::ffff:127.0.0.1", LOOPBACK, EVERY6),
    ],
)
@pytest.mark.parametrize("ours_first", [False, True])
def test_the_closer_address_gets_the_connection_whosever_it_is(
    table: Path, host: str, first: str, second: str, ours_first: bool
) -> None:
    ours, other = os.geteuid(), os.geteuid() + 1
    uids = (ours, other) if ours_first else (other, ours)
    lines = [line(f"{where}:1000", "0A", uid) for where, uid in zip((first, second), uids, strict=True)]
    for order in (lines, lines[::-1]):
        table.write_text(HEAD + "".join(order))
        assert listening_user(url_of(host, 0x1000)) == uids[0]


@pytest.mark.parametrize("where", [LOOPBACK, EVERY])
@pytest.mark.parametrize("ours", [0, 1, 2])
def test_of_several_at_one_place_it_is_the_stranger(table: Path, where: str, ours: int) -> None:
    uids = [os.geteuid() + 1] * 3
    uids[ours] = os.geteuid()
    table.write_text(HEAD + "".join(line(f"{where}:1000", "0A", uid) for uid in uids))
    assert listening_user(f"http://127.0.0.1:{0x1000}") == os.geteuid() + 1


@pytest.mark.parametrize("zone", ["", "%eth0", "%25eth0"])
def test_the_zone_of_a_link_local_address_does_not_matter(table: Path, zone: str) -> None:
    table.write_text(HEAD + line("000080FE000000000000000001000000:1000", "0A", 7))
    assert listening_user(f"http://[fe80::1{zone}]:{0x1000}") == 7


def test_ipv4_sockets_do_not_get_connections_to_ipv6_addresses(table: Path) -> None:
    table.write_text(HEAD + line(f"{EVERY}:1000", "0A", 7) + line(f"{MAPPED}:1000", "0A", 7))
    assert listening_user(f"http://[::1]:{0x1000}") is None


@pytest.mark.parametrize(("scheme", "port"), [("http", "0050"), ("https", "01BB")])
def test_without_a_port_it_is_that_of_the_scheme(table: Path, scheme: str, port: str) -> None:
    table.write_text(HEAD + line(f"{LOOPBACK}:{port}", "0A", 7))
    assert listening_user(f"{scheme}://127.0.0.1") == 7


@pytest.mark.parametrize("url", ["", "http://somewhere.local:4096", "http://[::1", "http://127.0.0.1:99999"])
def test_of_a_name_or_nonsense_it_cannot_be_told(table: Path, url: str) -> None:
    table.write_text(HEAD + line(f"{EVERY}:1000", "0A", 7))
    assert listening_user(url) is None


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
