"""Real OpenCodes on a LAN of their own, found, followed and lost by the real MCP server on another host."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from mdns.lan_parts import PATIENCE, RealServer, Row, connected, gateway, is_online, password_of
from support.lan import Lan, lan
from support.wire import Wire, sniffing

pytestmark = [pytest.mark.real, pytest.mark.slow]

TRUST = {"OPENCODE_SERVER_PASSWORD": "pw", "MDNS_CREDENTIALS_FOR": "10.77.0.0/24"}
LISTED = 2.0
"""Seconds from OpenCode's answering to its being listed; it advertises itself after 0.8."""


def signalled(server: RealServer, number: signal.Signals) -> None:
    os.killpg(server.process.pid, number)


def row_at(rows: list[Row], host: str) -> Row:
    """Return the row of a host; an empty one if there is none."""
    return next((row for row in rows if row["host"] == host), {"status": "", "identity": "", "detail": ""})


def test_it_is_listed_soon_at_its_own_address_with_its_project(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    with gateway(h3, tmp_path / "gateway") as looking:
        server = RealServer(h1, tmp_path / "web")
        [row] = looking.until(lambda rows: is_online(rows, h1.address))
        assert time.monotonic() - server.ready < LISTED
        assert row["directory"] == str(tmp_path / "web")
        assert row["version"] == "1.18.33"
        assert row["transport"] == "mdns"
        assert row["name"] == f"{h1.address}-web"


def test_two_on_one_host_and_a_third_elsewhere_are_told_apart(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    with gateway(h3, tmp_path / "gateway") as looking:
        RealServer(h1, tmp_path / "web", 4096)
        RealServer(h1, tmp_path / "api", 4097)
        RealServer(h2, tmp_path / "docs", 4098)
        rows = looking.until(lambda rows: is_online(rows, h1.address, h1.address, h2.address))
        assert {(row["host"], row["directory"]) for row in rows} == {
            (h1.address, str(tmp_path / "web")),
            (h1.address, str(tmp_path / "api")),
            (h2.address, str(tmp_path / "docs")),
        }


def test_a_second_one_on_the_default_port_does_not_drive_the_first_away(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    with sniffing(network.switch) as wire, gateway(h3, tmp_path / "gateway") as looking:
        RealServer(h1, tmp_path / "web")
        looking.until(lambda rows: is_online(rows, h1.address))
        since = time.monotonic()
        with looking.watched():
            RealServer(h2, tmp_path / "api")
            wire.wait_for(lambda wire: [one for one in wire.goodbyes() if "opencode-4096" in one.data])
        looking.during(2)
        gap = looking.longest_gap(lambda row: row["host"] == h1.address and row["status"] == "online", since)
        assert gap < 1


def test_with_opencode_connected_both_on_the_same_port_are_listed(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    with (
        gateway(
            h3, tmp_path / "gateway", MDNS_CREDENTIALS_FOR="10.77.0.0/24", OPENCODE_SERVER_PASSWORD="pw"
        ) as one,
        connected(h1, tmp_path / "one", "--port", "4096", OPENCODE_SERVER_PASSWORD="pw"),
        connected(h2, tmp_path / "two", "--port", "4096", OPENCODE_SERVER_PASSWORD="pw"),
    ):
        rows = one.until(lambda rows: is_online(rows, "h1", "h2"))
        assert {row["name"] for row in rows} == {"h1-project", "h2-project"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_one_that_ends_is_offline_at_once(number: signal.Signals, network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    with gateway(h3, tmp_path / "gateway") as looking:
        server = RealServer(h1, tmp_path / "web")
        looking.until(lambda rows: is_online(rows, h1.address))
        signalled(server, number)
        looking.until(lambda rows: [row["status"] for row in rows] == ["offline"], 5)


def test_a_host_that_falls_silent_goes_offline_and_comes_back(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    with gateway(h3, tmp_path / "gateway") as looking:
        RealServer(h1, tmp_path / "web")
        stopped = RealServer(h2, tmp_path / "api", 4097)
        looking.until(lambda rows: is_online(rows, h1.address, h2.address))
        h1.drop()
        dropped = time.monotonic()
        signalled(stopped, signal.SIGSTOP)
        looking.until(lambda rows: row_at(rows, h2.address)["status"] == "unreachable", 25)
        began = time.monotonic()
        looking.rows()
        assert time.monotonic() - began < 0.5
        looking.until(lambda rows: row_at(rows, h1.address)["status"] == "offline")
        assert time.monotonic() - dropped < 25
        h1.undrop()
        signalled(stopped, signal.SIGCONT)
        looking.until(lambda rows: is_online(rows, h1.address, h2.address), 35)


def test_a_gateway_that_started_without_a_network_finds_it_when_it_comes(tmp_path: Path):
    with lan(2, unplugged=[2]) as network, gateway(network.host(2), tmp_path / "gateway") as looking:
        h1, h2 = network.hosts
        RealServer(h1, tmp_path / "web")
        assert looking.rows() == []
        h2.plug()
        h2.set_address("10.77.0.2")
        looking.until(lambda rows: is_online(rows, h1.address), 10)


def test_a_gateway_whose_cable_is_put_in_late_finds_what_is_there(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    h3.pull()
    with gateway(h3, tmp_path / "gateway") as looking:
        RealServer(h1, tmp_path / "web")
        looking.during(6)
        h3.plug()
        looking.until(lambda rows: is_online(rows, h1.address), 10)


def test_an_announced_one_is_followed_to_another_address(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    with gateway(h3, tmp_path / "gateway", **TRUST) as looking, connected(h1, tmp_path / "one", **TRUST):
        before = looking.until(lambda rows: is_online(rows, "h1"))
        with sniffing(h3) as wire:
            h1.set_address("10.77.0.99")
            changed = time.monotonic()
            wire.wait_for(lambda wire: streamed_from(wire, "10.77.0.99"), 10)
            looking.until(lambda rows: is_online(rows, "h1"))
            assert time.monotonic() - changed < 10
            looking.during(25)  # so long it takes to notice that an old address is dead
            after = looking.rows()
            assert is_online(after, "h1")
            assert [row["name"] for row in after] == [row["name"] for row in before]


def streamed_from(wire: Wire, address: str) -> bool:
    """Whether an OpenCode at this address has been followed by its event stream, not just asked."""
    return any(b"GET /global/event" in one.data for one in wire.payloads() if one.target == address)


def test_it_is_followed_to_another_port_under_the_same_name(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    with gateway(h3, tmp_path / "gateway", **TRUST) as looking:
        with connected(h1, tmp_path / "one", "--port", "4100", **TRUST) as first:
            before = looking.until(lambda rows: is_online(rows, "h1"))
            first.kill()
            looking.until(lambda rows: [row["status"] for row in rows] == ["offline"], 10)
        with sniffing(h3) as wire, connected(h1, tmp_path / "one", "--port", "4200", **TRUST):
            wire.wait_for(lambda wire: [one for one in wire.records() if " 4200 " in one.data], PATIENCE)
            rows = looking.until(lambda rows: is_online(rows, "h1"), 5)
            assert [row["name"] for row in rows] == [row["name"] for row in before]


def test_all_gateways_of_one_machine_find_it_when_the_cable_is_put_in(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    h3.pull()
    with ExitStack() as stack:
        several = [stack.enter_context(gateway(h3, tmp_path / f"gateway{number}")) for number in range(3)]
        RealServer(h1, tmp_path / "web")
        several[0].during(3)
        h3.plug()
        plugged = time.monotonic()
        for looking in several:
            looking.until(lambda rows: is_online(rows, h1.address))
        assert time.monotonic() - plugged < 10


def test_two_of_the_same_name_are_both_listed(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    with (
        gateway(h3, tmp_path / "gateway", **TRUST) as looking,
        connected(h1, tmp_path / "one", INSTANCE_NAME="twin", **TRUST),
        connected(h2, tmp_path / "two", INSTANCE_NAME="twin", **TRUST),
    ):
        rows = looking.until(lambda rows: is_online(rows, "h1", "h2"))
        assert {row["name"] for row in rows} == {"twin", "twin-2"}


def test_the_password_goes_to_nobody_unasked_nor_unvouched(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    with (
        sniffing(network.switch) as wire,
        gateway(
            h3, tmp_path / "gateway", OPENCODE_SERVER_PASSWORD="pw", MDNS_CREDENTIALS_FOR=h2.address
        ) as looking,
    ):
        RealServer(h1, tmp_path / "web", 4096, password="pw")
        RealServer(h2, tmp_path / "api", 4097, password="pw")
        rows = looking.until(
            lambda rows: (
                row_at(rows, h1.address)["status"] == "needs credentials" and is_online_at(rows, h2.address)
            )
        )
        assert "MDNS_CREDENTIALS_FOR" in row_at(rows, h1.address)["detail"]
        told = wire.carried(b"authorization:")
        assert {one.target for one in told} == {h2.address}


def is_refused_at(rows: list[Row], host: str) -> bool:
    return row_at(rows, host)["status"] == "needs credentials"


def is_online_at(rows: list[Row], host: str) -> bool:
    return row_at(rows, host)["status"] == "online"


def test_one_that_proves_the_secret_gets_the_password_and_is_marked(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    secret = {"MDNS_SECRET": "correct horse battery"}
    with connected(h1, tmp_path / "one", **secret), connected(h2, tmp_path / "two"):
        password = password_of(tmp_path / "one")
        more = {"OPENCODE_SERVER_PASSWORD": password, **secret}
        with gateway(h3, tmp_path / "gateway", **more) as looking:
            rows = looking.until(lambda rows: is_online_at(rows, "h1") and is_refused_at(rows, "h2"))
            assert row_at(rows, "h1")["identity"] == "verified"
            assert row_at(rows, "h2")["identity"] == "not verified"
        with gateway(h3, tmp_path / "strict", MDNS_REQUIRE_SECRET="1", **more) as looking:
            looking.until(lambda rows: is_online(rows, "h1"))
            looking.during(1)
            assert is_online(looking.rows(), "h1")
            assert any("does not prove MDNS_SECRET" in note for note in looking.notes())


def test_leaving_says_goodbye_on_the_wire_and_takes_it_off_the_list(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    with gateway(h3, tmp_path / "gateway") as looking, sniffing(h3) as wire:
        with connected(h1, tmp_path / "one") as process:
            looking.until(lambda rows: [row["host"] for row in rows] == ["h1"])
            process.terminate()
            assert process.wait(PATIENCE) is not None
        wire.wait_for(
            lambda wire: [one for one in wire.goodbyes() if one.type == "PTR" and "h1-project" in one.data]
        )
        looking.until(lambda rows: not rows, 10)
