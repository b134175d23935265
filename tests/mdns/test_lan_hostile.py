"""A hostile neighbour on the LAN: whatever it sends, it drives nobody away and learns no password."""

import dataclasses
import re
import sys
import time
from pathlib import Path

import pytest

from mdns.lan_parts import Gateway, Row, connected, fake_opencode, gateway, is_online
from support.lan import Host, Lan, wait_for
from support.mdns_sender import Advert, send, sending
from support.wire import Wire, sniffing

pytestmark = pytest.mark.slow

HOSTILE = "\x1b[31mevil\x07\r\nnote: all is well\u202e\x00"
ANOTHER_ID = "0" * 32


def advert(who: str, address: str, port: int, **more: object) -> Advert:
    """Return an honest-looking advert of ours."""
    fields = {
        "instance": f"{who}-000000",
        "target": f"opencode-{who}.local.",
        "addresses": [address],
        "port": port,
        "txt": {"txtvers": "1", "id": f"{who}-id", "name": who, "host": who, "path": "/", "auth": "none"},
        "respond": True,
        **more,
    }
    return Advert(**fields)  # pyright: ignore[reportArgumentType]


def honest(host: Host, port: int = 4096) -> Advert:
    """Run an OpenCode on a host; return what advertises it."""
    fake_opencode(host, port)
    return advert("honest", host.address, port)


def asked(wire: Wire, target: str) -> list[int]:
    """The ports of a host that somebody tried to connect to."""
    return sorted({one.port for one in wire.connections() if one.target == target})


def names(rows: list[Row]) -> set[str]:
    return {row["name"] for row in rows}


def settled(one: Gateway, wire: Wire, host: Host) -> None:
    """Wait until everything sent so far has been dealt with: an advert that came later is listed."""
    fake_opencode(host, 5999)
    with sending(host, advert("last", host.address, 5999)):
        one.until(lambda rows: "last" in names(rows))


FORBIDDEN = [
    "127.0.0.1",
    "0.0.0.0",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    "10.77.0.255",
    "10.77.0.0",
    "8.8.8.8",
    "10.78.0.1",
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:10.77.0.1",
    "64:ff9b::7f00:1",
    "ff02::1",
    "2001:db8::1",
]


def test_nobody_is_led_to_a_forbidden_address_or_port(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    led = [
        advert(f"led{number}", address, 4096 + number, repeat=2, every=0.3)
        for number, address in enumerate(FORBIDDEN)
    ]
    ports = [advert(f"port{port}", h2.address, port) for port in (0, 22, 80, 443, 1023)]
    own = [advert("own", h3.address, 4096), advert("own-too", h3.link_local, 4096)]
    foreign = [
        advert("printer", h2.address, 6310, service_type="_http._tcp.local.", instance="Printer"),
        advert("other", h2.address, 6311, service_type="_http._tcp.local.", instance="opencode-4096"),
        advert("login", h2.address, 6312, service_type="_ssh._tcp.local."),
        advert("elsewhere", h2.address, 6313, name="login-000000._ssh._tcp.local."),
    ]
    with sniffing(network.switch) as wire, sniffing(h3) as at_home, gateway(h3, tmp_path / "gateway") as one:
        with sending(h2, *led, *ports, *own, *foreign, honest(h1)):
            one.until(lambda rows: names(rows) == {"honest"})
            settled(one, wire, h1)
            notes = one.notes()
        assert asked(wire, h2.address) == []
        targets = {seen.target for looked in (wire, at_home) for seen in looked.connections()}
        assert targets <= {h1.address}
        assert any("169.254.169.254 is link-local" in note for note in notes)


def test_loopback_is_not_connected_to_either(network: Lan, tmp_path: Path):
    _, h2, h3 = network.hosts
    fake_opencode(h3, 4096)  # a service of the gateway's own machine, which nobody has announced
    with gateway(h3, tmp_path / "gateway") as one:
        lies = [advert(f"lie{number}", each, 4096) for number, each in enumerate(("127.0.0.1", h3.address))]
        with sending(h2, *lies, honest(h2, 4097)):
            one.until(lambda rows: "honest" in names(rows))
            one.during(1)
            assert names(one.rows()) == {"honest"}
            assert any("nothing of yours is announced" in note for note in one.notes())


def test_hostile_names_and_records_are_harmless(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    fake_opencode(h2, 4100)
    strange = [
        advert("esc", h2.address, 4100, txt={"id": "esc", "name": HOSTILE, "host": HOSTILE, "cwd": HOSTILE}),
        advert("label", h2.address, 4101, instance=HOSTILE),
        advert(
            "bytes", h2.address, 4102, instance="\udcff\udcfe", txt={"\udcff": "\udcff", "": "x", "id": None}
        ),
        advert("dots", h2.address, 4103, instance="a.b..c"),
        advert("labels", h2.address, 4104, instance=["deep", "deeper"]),
        advert(
            "path", h2.address, 4105, instance="../../etc/passwd", txt={"id": "../../x", "path": "//evil/"}
        ),
        advert("blank", h2.address, 4106, instance=" ", txt={"id": "blank", "name": " \u200b "}),
        advert("long", h2.address, 4107, txt={"id": "long", **{f"k{n}": "x" * 200 for n in range(40)}}),
        advert("cut", h2.address, 4108, txt_hex="ff6964"),
        advert("many", h2.address, 4109, addresses=[f"10.77.0.{n}" for n in range(10, 210)]),
        advert("target", h2.address, 4110, target="internal.example.com."),
        advert("self", h2.address, 4111, target="localhost."),
    ]
    garbage = [
        Advert(packet_hex=one) for one in ("", "00", "ff" * 60, "000084000000ffff00000000" + "c00c" * 20)
    ]
    with sniffing(h3) as wire, gateway(h3, tmp_path / "gateway", OPENCODE_MCP_LOG_LEVEL="DEBUG") as one:
        with sending(h2, *garbage, *strange, honest(h1)):
            one.until(lambda rows: {"honest"} < names(rows))
            settled(one, wire, h1)
            answer = one.call("instances")
        shown = repr(answer) + one.errors.read_text()
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u200b\u202e]", one.errors.read_text())
        assert not re.search(r"\\x1b|\\x07|\\u202e|\\x00|\\r", repr(answer))
        assert "Traceback" not in shown
        assert len({seen.target for seen in wire.connections() if seen.port == 4109}) <= 4


def test_who_answers_stays_whatever_is_said_of_it(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    trust = {"OPENCODE_SERVER_PASSWORD": "pw", "MDNS_CREDENTIALS_FOR": h1.address}
    fake_opencode(h2, 4096, password="pw")
    fake_opencode(h1, 4096, password="pw")
    real = advert("web", h1.address, 4096)
    again = {"repeat": 0, "every": 0.2}
    text = {"id": "web-id", "name": "web"}
    lies = [
        advert("web", h2.address, 4096, target="evil.local.", flush=True, only=("SRV", "TXT", "A"), **again),
        advert("web", h2.address, 4096, flush=True, only=("A",), **again),
        advert("web", h2.address, 4096, txt={**text, "name": "evil"}, flush=True, only=("TXT",), **again),
        advert("web", h1.address, 4096, ttl=0, **again),
        advert("copy", h2.address, 4096, instance="copy", txt=text, **again),
    ]
    with (
        sniffing(network.switch) as wire,
        sending(h1, real),
        gateway(h3, tmp_path / "gateway", **trust) as one,
    ):
        one.until(lambda rows: is_online(rows, "web"))
        since = time.monotonic()
        with sending(h2, *lies):
            one.during(8)
        rows = one.rows()
        gap = one.longest_gap(lambda row: row["name"] == "web" and row["status"] == "online", since)
        assert gap < 0.5
        assert next(row for row in rows if row["name"] == "web")["status"] == "online"
        assert {told.target for told in wire.carried(b"authorization:")} == {h1.address}


def test_what_was_proven_is_not_believed_without_proof_or_elsewhere(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    both = {"MDNS_SECRET": "correct horse battery", "OPENCODE_SERVER_PASSWORD": "pw"}
    fake_opencode(h2, 4096, password="pw")
    fake = f"{sys.executable} -m support.fake_cli"
    with (
        sniffing(network.switch) as wire,
        gateway(h3, tmp_path / "gateway", MDNS_REQUIRE_SECRET="1", **both) as one,
        connected(h1, tmp_path / "one", "--port", "4096", OPENCODE_MCP_COMMAND=fake, **both) as process,
    ):
        one.until(lambda rows: is_online(rows, "h1"))
        seen = {(each.name, each.type): each for each in wire.records() if each.ttl}
        [(name, text)] = [(each.name, each) for each in seen.values() if each.type == "TXT"]
        [server] = [each for each in seen.values() if each.type == "SRV"]
        target = server.data.split()[-1]
        replay = {"name": name, "txt_hex": text.raw.hex(), "flush": True, "repeat": 0, "every": 0.2}
        bare = {"txtvers": "1", "id": "x", "name": "h1"}
        lies = [
            advert("h1", h2.address, 4096, target=target, **replay),
            advert("h1", h2.address, 4096, target="evil.local.", **replay),
            advert("h1", h1.address, 4097, target=target, **replay),
            advert("more", h2.address, 4096, txt=bare, repeat=0, every=0.2),
        ]
        with sending(h2, *lies):
            one.during(4)
            assert is_online(one.rows(), "h1")
            process.kill()  # now that nobody contradicts
            one.until(lambda rows: [row["status"] for row in rows] == ["offline"], 10)
            one.during(6)
            assert [row["status"] for row in one.rows()] == ["offline"]
        assert {told.target for told in wire.carried(b"authorization:")} == {h1.address}
        assert any(
            "its proof of MDNS_SECRET does not fit" in note.lower() or "MDNS_SECRET" in note
            for note in one.notes()
        )


def test_a_thousand_adverts_leave_room_for_the_honest_one(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    flood = [
        advert(f"flood{number}", f"10.77.0.{10 + number % 200}", 2000 + number, respond=False, repeat=3)
        for number in range(1000)
    ]
    with gateway(h3, tmp_path / "gateway") as one:
        with sending(h1, honest(h1)):
            one.until(lambda rows: "honest" in names(rows))
            since = time.monotonic()
            with sending(h2, *flood), one.watched():
                fake_opencode(h1, 5000)
                with sending(h1, advert("late", h1.address, 5000)):
                    one.until(lambda rows: {"honest", "late"} <= names(rows), 90)
                wait_for(lambda: "MDNS_MAX_SERVICES" in one.errors.read_text(), 90, "the flood is told of")
            gap = one.longest_gap(lambda row: row["name"] == "honest" and row["status"] == "online", since)
            assert gap < 1
        assert one.memory() < 100_000_000
        assert one.errors.read_text().count("MDNS_MAX_SERVICES") == 1


def test_a_name_that_cannot_be_sent_again_stops_nobody_from_asking(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    poison = advert("poison", h2.address, 4096, instance="\udcff" * 40, only=("PTR",), ttl=4500)
    with sniffing(h3) as wire, gateway(h3, tmp_path / "gateway", DISCOVERY_INTERVAL_MS="1000") as one:
        one.rows()
        wire.wait_for(lambda wire: asks(wire, h3))
        send(h2, poison)
        with sending(h1, dataclasses.replace(honest(h1), repeat=0)):  # which only answers
            one.until(lambda rows: names(rows) == {"honest"}, 20)
        assert "Traceback" not in one.errors.read_text()


def asks(wire: Wire, host: Host) -> bool:
    return any(packet.source == host.address and packet.questions for packet in wire.packets())


def test_only_the_link_is_listened_to(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    h2.add_address("10.99.0.2")
    fake_opencode(h1, 4096)
    lie = advert("lie", h1.address, 4096, source_port=40_000, repeat=3, every=0.2, respond=False)
    with gateway(h3, tmp_path / "gateway") as one:
        one.rows()
        with sending(h2, lie), sending(h1, advert("honest", h1.address, 4096)):
            one.until(lambda rows: names(rows) == {"honest"})
            one.during(2)
            assert names(one.rows()) == {"honest"}


def test_a_neighbour_that_claims_every_name_keeps_nobody_from_announcing(network: Lan, tmp_path: Path):
    h1, h2, h3 = network.hosts
    answers = [
        advert(
            "h1", h2.address, 4096, name=f"{one}._opencode._tcp.local.", repeat=0, every=0.1, only=("PTR",)
        )
        for one in claimed_names("h1-project", "0" * 32)
    ]
    home = tmp_path / "one"
    fake = {"OPENCODE_MCP_COMMAND": f"{sys.executable} -m support.fake_cli", "OPENCODE_SERVER_PASSWORD": "pw"}
    remember_id(home, "h1-project", "0" * 32)
    with sending(h2, *answers), connected(h1, home, **fake), gateway(h3, tmp_path / "gateway") as one:
        one.until(lambda rows: {row["host"] for row in rows} == {"h1"}, 30)


def claimed_names(name: str, instance_id: str) -> list[str]:
    first = f"{name}-{instance_id[:6]}"
    return [first, *(f"{first}-{number}" for number in range(2, 10))]


def remember_id(home: Path, name: str, instance_id: str) -> None:
    """Let opencode-connected use this id for a name, as if it had done so before."""
    state = home / "state" / "opencode-mcp"
    state.mkdir(parents=True, mode=0o700)
    (state / f"{name}.lock").write_text(instance_id)
