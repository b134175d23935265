"""That the test LAN and what watches it can be trusted; what they are for is tested elsewhere."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.avahi import running_avahi
from support.lan import Host, Lan, end, lan, wait_for
from support.mdns_sender import Advert, packets, send, sending
from support.wire import sniffing

pytestmark = pytest.mark.slow

SERVER = """
import socket, sys
with socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        connection.recv(4096)
        connection.sendall(socket.gethostname().encode())
        connection.close()
"""
CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 7000), float(sys.argv[2])) as connection:
        connection.sendall(sys.argv[3].encode())
        print(connection.recv(4096).decode())
except OSError:
    pass
"""
LAN_TO_BE_KILLED = """
import json, os, time
from support.lan import lan
with lan(1) as network:
    host = network.host(1)
    stayer = host.popen("sleep", "600")
    # it has left its group and its parent, and does not listen
    stubborn = host.run("sh", "-c", "trap '' TERM; setsid sleep 600 >&- 2>&- & echo $!").stdout
    keeper = int(network.hosts[0].namespace.split("/")[2])
    print(json.dumps([stayer.pid, int(stubborn), keeper]), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def network() -> Iterator[Lan]:
    with lan(3) as opened:
        yield opened


def serve(host: Host) -> None:
    """Start a server that says its host's name, and wait until it listens."""
    server = host.popen(sys.executable, "-c", SERVER, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"listening\n"


def reached(host: Host, address: str, *, seconds: float = 0.3, words: str = "hello") -> str:
    """Return who answers at an address; nothing if nobody does."""
    return host.run(sys.executable, "-c", CLIENT, address, str(seconds), words).stdout.strip()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def keeper(network: Lan) -> int:
    return int(network.hosts[0].namespace.split("/")[2])


def test_hosts_reach_each_other_and_nobody_else(network: Lan):
    h1, h2, h3 = network.hosts
    serve(h2)

    assert reached(h1, h2.address) == "h2"
    assert reached(h3, f"{h2.link_local}%{h3.interface}") == "h2"
    assert [host.run("uname", "-n").stdout.strip() for host in network.hosts] == ["h1", "h2", "h3"]
    assert "default" not in h1.run("ip", "route").stdout


def test_the_machine_gets_no_interface():
    before = socket.if_nameindex()
    with lan(2):
        assert socket.if_nameindex() == before


def test_a_process_on_a_host_has_the_number_we_know(network: Lan):
    process = network.host(1).popen("sleep", "600")

    assert wait_for(
        lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", 5, "nsenter has become sleep"
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == -signal.SIGINT


def test_a_dropped_host_is_silent_until_it_comes_back(network: Lan):
    h1, h2, _ = network.hosts
    serve(h2)

    h2.drop()
    assert not reached(h1, h2.address)
    assert "NO-CARRIER" not in h2.run("ip", "link", "show", "eth0").stdout

    h2.undrop()
    assert reached(h1, h2.address, seconds=5) == "h2"


def test_a_pulled_cable_takes_the_carrier_away(network: Lan):
    h1, h2, _ = network.hosts
    serve(h2)

    h2.pull()
    assert not reached(h1, h2.address)
    assert "NO-CARRIER" in h2.run("ip", "link", "show", "eth0").stdout

    h2.plug()
    assert reached(h1, h2.address, seconds=5) == "h2"
    assert reached(h1, f"{h2.link_local}%{h1.interface}", seconds=5) == "h2"


@pytest.mark.parametrize("new", ["10.77.0.99", "10.78.0.2"])
def test_an_address_is_replaced(network: Lan, new: str):
    h1, h2, _ = network.hosts
    serve(h2)
    old = h2.address

    h2.set_address(new)

    assert h2.addresses == [new]
    assert "224.0.0.0/4" in h2.run("ip", "route").stdout
    h1.add_address("10.78.0.1")
    assert reached(h1, new, seconds=5) == "h2"
    assert not reached(h1, old)


def test_a_host_can_begin_without_a_network():
    with lan(2, unplugged=[2]) as network:
        h1, h2 = network.hosts
        serve(h2)
        with pytest.raises(LookupError, match="h2 has no IPv4 address"):
            _ = h2.address
        with pytest.raises(LookupError, match="h2 has no link-local address"):
            _ = h2.link_local
        assert reached(h2, "127.0.0.1") == "h2"

        with sniffing(h2) as wire:
            h2.set_address("10.77.0.2")
            h2.plug()

            assert reached(h1, "10.77.0.2", seconds=5) == "h2"
            assert "224.0.0.0/4" in h2.run("ip", "route").stdout
            assert wire.connections()


def test_two_networks_do_not_meet(network: Lan):
    serve(network.host(2))
    with lan(2) as other:
        assert other.host(2).address == network.host(2).address
        assert reached(network.host(1), network.host(2).address) == "h2"
        assert not reached(other.host(1), network.host(2).address)


def test_nothing_is_left_when_a_test_fails():
    pids: list[int] = []

    def fail() -> None:
        with lan(2) as network:
            h1 = network.host(1)
            pids.extend([keeper(network), h1.popen("sleep", "600").pid, h1.popen("sleep", "600").pid])
            pids.append(int(h1.run("sh", "-c", "setsid sleep 600 >&- 2>&- & echo $!").stdout))
            os.kill(pids[1], signal.SIGSTOP)
            assert all(map(alive, pids))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert not any(map(alive, pids))
    assert "nsfs net:" not in Path("/proc/self/mountinfo").read_text()


def test_nothing_is_left_when_the_run_is_killed():
    with lan(1):
        pass  # skips where there can be none
    run = subprocess.Popen(
        [sys.executable, "-c", LAN_TO_BE_KILLED],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert run.stdout is not None
    pids: list[int] = json.loads(run.stdout.readline())
    assert all(map(alive, pids))

    run.kill()
    run.wait()
    run.stdout.close()

    wait_for(lambda: not any(map(alive, pids)), 10, "all have gone")


def test_avahi_finds_what_avahi_publishes_and_the_wire_shows_its_end(network: Lan):
    h1, h2, _ = network.hosts
    with sniffing(h2) as wire, running_avahi(h1) as publisher, running_avahi(h2) as browser:
        process = publisher.publish("Büro; 1.Stock", "_http._tcp", 4096, "path=/", 'said="a;b"')

        found = browser.browse("_http._tcp")

        assert {service.protocol: service.address for service in found} == {
            "IPv4": h1.address,
            "IPv6": h1.link_local,
        }
        assert {service.name for service in found} == {"Büro; 1.Stock"}
        assert {(service.host, service.port) for service in found} == {("h1.local", 4096)}
        assert set(found[0].txt) == {"path=/", 'said="a;b"'}
        assert not wire.goodbyes()

        end(process)
        assert wire.wait_for(
            lambda wire: [each for each in wire.goodbyes() if each.data == "Büro; 1.Stock._http._tcp.local."]
        )


def test_avahi_finds_what_the_sender_answers(network: Lan):
    _, h2, h3 = network.hosts
    quiet = Advert(addresses=[h3.address], txt={"v": "1", "flag": None}, respond=True, repeat=0)
    with running_avahi(h2) as browser, sending(h3, quiet):
        (service, *_) = browser.browse("_opencode._tcp")

    assert (service.name, service.host, service.port) == ("hostile", "hostile.local", 4096)
    assert service.address == h3.address
    assert set(service.txt) == {"v=1", "flag"}


def test_hostile_adverts_reach_the_wire_as_they_are(network: Lan):
    _, h2, h3 = network.hosts
    many = [f"10.66.{i // 256}.{i % 256}" for i in range(1000)]
    large = "ff" + "41" * 255
    adverts = [
        Advert(instance="a.b\n\x1b[31m\udcff", addresses=many, txt_hex=large * 32, flush=True),
        Advert(name="other._ssh._tcp.local.", only=["PTR"], ttl=4500),
        Advert(instance=["sub", "deep"], only=["SRV"], target="internal.example.com.", port=0),
        Advert(packet_hex="000084000000000100000000c00c"),
    ]
    assert len(packets(adverts[0])) > 1
    with sniffing(h2) as wire:
        with sending(h3, *adverts):
            pass
        seen = wire.packets()

    records = wire.records()
    assert [record.data for record in records if record.type == "A"] == many
    assert next(record for record in records if record.type == "TXT").strings == [b"A" * 255] * 32
    names = [record.data for record in records if record.type == "PTR"]
    assert names == ["a.b\n\x1b[31m\\xff._opencode._tcp.local.", "other._ssh._tcp.local."]
    places = [(record.name, record.data, record.flush) for record in records if record.type == "SRV"]
    assert places[1] == ("sub.deep._opencode._tcp.local.", "0 0 0 internal.example.com.", False)
    assert all(record.flush for record in records if record.type == "A")
    assert [packet.malformed for packet in seen] == [False] * (len(seen) - 1) + [True]
    assert {(packet.source, packet.source_port) for packet in seen} == {(h3.address, 5353)}


def test_adverts_are_repeated_and_said_goodbye_to(network: Lan):
    _, h2, h3 = network.hosts
    with sniffing(h2) as wire:
        with sending(h3, Advert(repeat=0, every=0.05, ipv6=True)):
            wire.wait_for(lambda wire: len(wire.packets()) > 6)
        assert {packet.source for packet in wire.packets()} == {h3.address, h3.link_local}
        assert not wire.goodbyes()

        send(h3, Advert(ttl=0, only=["PTR"]))

        (goodbye,) = wire.goodbyes()
        assert (goodbye.name, goodbye.type) == ("_opencode._tcp.local.", "PTR")
        assert goodbye.data == "hostile._opencode._tcp.local."


@pytest.mark.parametrize("at_the_switch", [False, True])
def test_connections_and_what_they_carry_are_seen(network: Lan, at_the_switch: bool):
    h1, h2, _ = network.hosts
    serve(h2)
    with sniffing(network.switch if at_the_switch else h2) as wire:
        reached(h1, h2.address, words="Authorization: Basic")
        reached(h1, f"{h2.link_local}%{h1.interface}", words="nothing")
        reached(h1, "127.0.0.1", words="not on the wire")
        h2.drop()
        assert not reached(h1, h2.address, seconds=0.1)

        assert [(each.source, each.target, each.port) for each in wire.connections()][:2] == [
            (h1.address, h2.address, 7000),
            (h1.link_local, h2.link_local, 7000),
        ]
        (told,) = wire.carried(b"authorization:")
        assert (told.source, told.target, told.port) == (h1.address, h2.address, 7000)
        assert told.data == b"Authorization: Basic"
        assert {payload.data for payload in wire.payloads()} == {told.data, b"h2", b"nothing"}

    assert len(wire.payloads()) == 4


def test_the_wire_tells_what_it_did_not_see(network: Lan):
    started = time.monotonic()
    with sniffing(network.host(1)) as wire, pytest.raises(TimeoutError, match="seen were 0 mDNS packets"):
        wire.wait_for(lambda wire: wire.packets(), 0.1)
    assert time.monotonic() - started < 5
