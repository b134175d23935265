"""Avahi as the other side: what it publishes is found, and what we announce it can read."""

import sys
from pathlib import Path

import pytest

from mdns.lan_parts import connected, fake_opencode, gateway, is_online
from support.avahi import Service, running_avahi
from support.lan import Host, Lan, end, wait_for
from support.wire import sniffing

pytestmark = pytest.mark.slow

FAKE = f"{sys.executable} -m support.fake_cli"
TRUST = {"OPENCODE_SERVER_PASSWORD": "pw", "MDNS_CREDENTIALS_FOR": "10.77.0.0/24"}


def test_what_avahi_publishes_by_hand_is_found_and_goes_with_it(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    fake_opencode(h1, 4200)
    with running_avahi(h1) as avahi, gateway(h3, tmp_path / "gateway") as one:
        published = avahi.publish("Büro am Fenster", "_opencode._tcp", 4200)
        [row] = one.until(lambda rows: is_online(rows, h1.address))
        assert row["name"] == "Büro am Fenster"
        end(published)  # which says goodbye; but the OpenCode still answers
        one.during(5)
        assert is_online(one.rows(), h1.address)


def test_avahi_reads_what_we_announce_and_sees_it_go(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    environment = {"OPENCODE_MCP_COMMAND": FAKE, "INSTANCE_NAME": "web.shop", **TRUST}
    with running_avahi(h2) as avahi, sniffing(h3) as wire:
        with connected(h1, tmp_path / "one", "--port", "4300", **environment) as process:
            found = wait_for(lambda: mine(avahi.browse("_opencode._tcp")), 30, "avahi has found it")
            assert {each.port for each in found} == {4300}
            assert {each.address for each in found} == {h1.address}
            [service] = {each.name for each in found}
            assert service.startswith("web-shop-")
            assert len(service) == len("web-shop-123456")
            assert {each.host for each in found} != {"opencode.local"}
            txt = dict(one.split("=", 1) for one in found[0].txt)
            told = {"txtvers": "1", "name": "web.shop", "host": "h1", "path": "/", "auth": "basic"}
            assert txt.items() >= {**told, "cwd": "project"}.items()
            assert txt["id"].startswith(service[-6:])
            assert str(tmp_path) not in repr(found)
            process.terminate()
            process.wait(20)
        wire.wait_for(lambda wire: [one for one in wire.goodbyes() if service in one.data])
        wait_for(lambda: not mine(avahi.browse("_opencode._tcp")), 10, "avahi has dropped it")


def test_it_shares_its_port_with_avahi_on_the_same_machine(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    environment = {"OPENCODE_MCP_COMMAND": FAKE, **TRUST}
    with (
        running_avahi(h1),
        running_avahi(h3),
        gateway(h3, tmp_path / "gateway", **TRUST) as one,
        connected(h1, tmp_path / "one", **environment),
    ):
        one.until(lambda rows: is_online(rows, "h1"))


def test_what_we_announce_here_is_found_by_a_gateway_on_the_same_machine(network: Lan, tmp_path: Path):
    h1 = network.host(1)
    home = tmp_path / "one"
    environment = {"OPENCODE_MCP_COMMAND": FAKE, **TRUST}
    with connected(h1, home, **environment), gateway(h1, home, **TRUST) as one:
        one.until(lambda rows: is_online(rows, "h1"))
    with connected(h1, home, **environment), gateway(h1, tmp_path / "somebody else's", **TRUST) as one:
        one.until(lambda _: any("nothing of yours is announced" in note for note in one.notes()))
        assert one.rows() == []


@pytest.mark.parametrize("listening", ["0.0.0.0", "10.77.0.1", "127.0.0.1"])
def test_a_server_that_runs_already_is_announced_where_it_listens(
    listening: str, network: Lan, tmp_path: Path
):
    h1, _, h3 = network.hosts
    fake_opencode(h1, 4400, listen=listening, password="pw")
    url = f"http://{'10.77.0.1' if listening == '10.77.0.1' else '127.0.0.1'}:4400"
    with (
        gateway(h3, tmp_path / "gateway", **TRUST) as one,
        attached(h1, tmp_path / "one", url) as process,
    ):
        if listening != "127.0.0.1":
            one.until(lambda rows: is_online(rows, "h1"))
            return
        log = tmp_path / "one" / "connected.log"
        wait_for(lambda: "does not listen there" in log.read_text(), 20, "it says that nobody can reach it")
        assert process.poll() is None
        assert one.rows() == []


def test_a_server_without_a_password_is_not_announced(network: Lan, tmp_path: Path):
    h1, _, h3 = network.hosts
    fake_opencode(h1, 4400)
    log = tmp_path / "one" / "connected.log"
    with sniffing(h3) as wire, attached(h1, tmp_path / "one", "http://127.0.0.1:4400", password=""):
        wait_for(lambda: "asks for no password" in log.read_text(), 20, "it says why not")
        assert not [one for one in wire.records() if "opencode" in one.name]


def attached(host: Host, home: Path, url: str, password: str = "pw"):
    """Run `opencode-connected --attach`."""
    given = {"OPENCODE_SERVER_PASSWORD": password} if password else {}
    return connected(host, home, "--attach", url, **given)


def mine(found: list[Service]) -> list[Service]:
    """Without what was found but not resolved."""
    return [one for one in found if one.address]
