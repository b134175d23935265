"""What an advertisement says: our own is small and tells little, and anybody's is read without harm."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from zeroconf import NonUniqueNameException
from zeroconf.asyncio import AsyncServiceInfo

from mdns.unit_parts import ESCAPES, SECRET, address, attached, lan, place, settings
from opencode_mcp import Endpoint, TransportError, clean_line
from opencode_mcp_mdns import MDnsSettings, proof
from opencode_mcp_mdns.advert import (
    Advert,
    Place,
    UnusableError,
    is_candidate,
    is_sendable,
    label,
    read,
    service_types,
)
from opencode_mcp_mdns.announcement import Announcement
from opencode_mcp_mdns.composing import compose, folder_of, other_name, public_id
from opencode_mcp_mdns.network import Network

OURS = "_opencode._tcp.local."
HTTP = "_http._tcp.local."
ID = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
TARGET = "desk.local."
V6 = [f"2001:db8:1:0:1111:2222:3333:{one}" for one in ("aaaa", "bbbb", "cccc", "dddd")]

Txt = Mapping[str, str | bytes | None] | Mapping[bytes, bytes | None] | Sequence[bytes]


def entries(txt: Txt) -> bytes:
    """A TXT record, duplicate keys and nonsense included."""
    if isinstance(txt, Mapping):
        items: list[bytes] = []
        for key, value in txt.items():
            name = key.encode() if isinstance(key, str) else key
            text = value.encode() if isinstance(value, str) else value
            items.append(name if text is None else name + b"=" + text)
        return entries(items)
    return b"".join(bytes([len(one)]) + one for one in txt)


def service(
    txt: Txt | bytes = (),
    *,
    name: str = "desk-0a1b2c",
    type_: str = OURS,
    port: int | None = 4096,
    addresses: Sequence[str] = ("192.168.1.20",),
    server: str = TARGET,
) -> AsyncServiceInfo:
    """What zeroconf makes of the records of a service."""
    text = txt if isinstance(txt, bytes) else entries(txt)
    raw: Any = text
    return AsyncServiceInfo(
        type_,
        f"{name}.{type_}",
        port=port,
        properties=raw,
        server=server,
        parsed_addresses=list(addresses),
    )


def of(info: AsyncServiceInfo, network: Network | None = None, **given: Any) -> Advert:
    return read(info, network or lan(), settings(**given))


def unusable(info: AsyncServiceInfo, **given: Any) -> str:
    with pytest.raises(UnusableError) as caught:
        of(info, **given)
    return str(caught.value)


def endpoint(**changes: Any) -> Endpoint:
    told: dict[str, Any] = {
        "id": ID,
        "name": "desk-project",
        "url": "http://0.0.0.0:4096",
        "hostname": "desk",
        "directory": "/home/me/secret/project",
        "labels": {"version": "1.18.33", "auth": "basic"},
    }
    return Endpoint(**{**told, **changes})


def arrived(info: AsyncServiceInfo) -> AsyncServiceInfo:
    """The same as it comes out of another machine's zeroconf."""
    return AsyncServiceInfo(
        info.type,
        info.name,
        port=info.port,
        properties=info.text,  # pyright: ignore[reportArgumentType] - bytes are taken, too
        server=(info.server or "").upper(),
        parsed_addresses=info.parsed_addresses(),
    )


def composed(
    one: Endpoint | None = None, addresses: Sequence[str] = ("192.168.1.20",), **given: Any
) -> AsyncServiceInfo:
    return arrived(compose(one or endpoint(), list(map(address, addresses)), settings(**given)))


def label_of(info: AsyncServiceInfo) -> str:
    return info.name.removesuffix(f".{info.type}")


def texts(found: Advert) -> list[str]:
    return [found.id, found.name, found.host, found.version, found.directory, found.left_out]


def assert_safe(*texts: str) -> None:
    for text in texts:
        assert clean_line(text, 10_000) == text
        assert len(text) <= 400


# Our own


@pytest.mark.parametrize("secret", [None, SECRET])
def test_what_is_advertised_is_read_the_same(secret: str | None) -> None:
    found = of(composed(secret=secret), secret=secret)
    assert found.proven == (secret is not None)
    assert not found.expired
    assert dataclasses.replace(found, proven_until=None) == Advert(
        id=ID,
        name="desk-project",
        host="desk",
        version="1.18.33",
        directory="project",
        places=[place("192.168.1.20")],
    )


def test_an_advertisement_is_a_service_of_our_type_with_a_host_of_its_own() -> None:
    info = composed()
    assert info.type == OURS
    assert info.name == f"desk-project-0a1b2c.{OURS}"
    assert info.port == 4096
    assert (info.server or "").lower().startswith("opencode-")
    assert (info.server or "").lower() != "opencode.local."
    assert info.server != composed(endpoint(id="another")).server
    assert {key.decode() for key in info.properties} == {
        *("txtvers", "id", "name", "host", "version", "path", "auth", "cwd")
    }
    assert info.properties[b"txtvers"] == b"1"
    assert info.properties[b"path"] == b"/"


def test_the_host_tells_nothing_of_the_machine() -> None:
    assert "desk" not in (composed().server or "").lower()


@pytest.mark.parametrize(
    ("auth", "told"), [("basic", b"basic"), ("none", b"none"), ("odd", b"none"), ("", b"none")]
)
def test_whether_a_password_is_wanted_is_told(auth: str, told: bytes) -> None:
    assert composed(endpoint(labels={"auth": auth})).properties[b"auth"] == told


def test_what_is_not_known_is_left_out() -> None:
    info = composed(endpoint(hostname="", directory="", labels={}))
    assert {b"host", b"cwd", b"version"}.isdisjoint(info.properties)


@pytest.mark.parametrize(
    ("directory", "told"),
    [
        *[
            ("/home/me/project", "project"),
            ("/home/me/project/", "project"),
            ("/", ""),
            ("project", "project"),
        ],
        *[(r"C:\Users\me\project", "project"), ("C:\\Users\\me\\project\\", "project"), ("C:\\", "")],
        *[("C:/Users/me/project", "project"), (r"\\nas\me\work\project", "project"), ("", "")],
    ],
)
def test_only_the_last_folder_is_advertised(directory: str, told: str) -> None:
    info = composed(endpoint(directory=directory))
    assert of(info).directory == told == folder_of(directory)
    assert b"me" not in info.text.replace(b"name=", b"")


def test_the_whole_path_is_advertised_when_that_is_wanted() -> None:
    assert of(composed(publish_cwd=True)).directory == "/home/me/secret/project"


LONG = [
    endpoint(
        id="i" * 64,
        name=(letter * 190)[:190],
        hostname=(letter * 200)[:200],
        directory="/" + (letter * 4000)[:4000],
        labels={"version": (letter * 1000)[:1000], "auth": "basic"},
    )
    for letter in ("x", "é", "日", "😀", "a.")
]


@pytest.mark.parametrize("publish_cwd", [False, True])
@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("one", LONG, ids=lambda one: one.name[:2])
def test_it_has_at_most_400_bytes_and_says_what_is_indispensable(
    one: Endpoint, secret: str | None, publish_cwd: bool
) -> None:
    info = composed(one, V6, secret=secret, publish_cwd=publish_cwd)
    assert len(info.text) <= 400
    found = of(info, secret=secret)
    assert found.id == "i" * 64
    assert info.properties[b"auth"] == b"basic"
    assert found.name
    assert found.proven == (secret is not None)
    assert found.places == [place(one) for one in V6]
    assert_safe(*texts(found))


def test_the_path_is_shortened_first_and_the_name_last() -> None:
    one = endpoint(
        hostname="h" * 100, directory="/" + "d" * 150, labels={"version": "1.18.33", "auth": "none"}
    )
    found = of(composed(one, publish_cwd=True, secret=SECRET), secret=SECRET)
    assert len(found.directory) < 151
    assert (found.name, found.version) == ("desk-project", "1.18.33")
    assert len(composed(one, publish_cwd=True, secret=SECRET).text) > 390


@pytest.mark.parametrize("one", [*LONG, endpoint(name="x" * 53), endpoint(name="x" * 52)])
def test_a_label_has_room_for_a_number_behind_it(one: Endpoint) -> None:
    known = label_of(composed(one))
    assert len(f"{known}-2".encode()) <= 63
    assert AsyncServiceInfo(OURS, f"{known}-2.{OURS}").name
    assert known[-7] == "-"
    assert set(known[-6:]) <= set("0123456789abcdef")


def test_a_label_is_the_name_and_six_hex_of_the_id() -> None:
    assert label_of(composed()) == "desk-project-0a1b2c"
    assert label_of(composed(endpoint(id="abcdef-more"))) == "desk-project-abcdef"
    unlike = label_of(composed(endpoint(id="Not hex!")))
    assert unlike.startswith("desk-project-")
    assert set(unlike[-6:]) <= set("0123456789abcdef")
    assert label_of(composed(endpoint(id="not hex?"))) != unlike


def test_dots_in_a_name_make_no_labels() -> None:
    info = composed(endpoint(name="my.local.project"))
    assert info.name == f"my-local-project-0a1b2c.{OURS}"
    assert of(info).name == "my.local.project"


@pytest.mark.parametrize(
    "name", ["_sub", "a b", "日本", "-", "opencode-4096", "x._tcp.local", "'", '"', "\\"]
)
def test_every_name_of_an_endpoint_can_be_advertised(name: str) -> None:
    found = of(composed(endpoint(name=name)))
    assert found.name == name


@pytest.mark.parametrize("strange", ["with space", "ünlike", "x" * 65, "a/b", "a~b"])
def test_an_unusual_id_is_advertised_as_a_digest_that_is_always_the_same(strange: str) -> None:
    found = of(composed(endpoint(id=strange)))
    assert found.id == public_id(strange) != strange
    assert len(found.id) == 32
    assert public_id(strange) == public_id(strange)
    assert public_id("usual-1._") == "usual-1._"


def test_a_name_that_was_changed_for_being_taken_is_kept() -> None:
    known = f"desk-project-0a1b2c-2.{OURS}"
    assert compose(endpoint(), [address("192.168.1.20")], settings(), name=known).name == known


def test_other_names_are_counted_on_and_the_last_ones_cannot_be_foreseen() -> None:
    taken = f"desk-project-0a1b2c.{OURS}"
    assert [other_name(taken, attempt) for attempt in (2, 3)] == [
        f"desk-project-0a1b2c-2.{OURS}",
        f"desk-project-0a1b2c-3.{OURS}",
    ]
    unforeseen = {other_name(taken, 4) for _ in range(20)}
    assert len(unforeseen) > 1
    for name in unforeseen:
        assert re.fullmatch(rf"desk-project-0a1b2c-[0-9a-f]{{4}}\.{re.escape(OURS)}", name)


def test_at_most_four_addresses_are_advertised_and_without_scopes() -> None:
    info = composed(None, [*V6[:2], "fe80::20%eth0", "192.168.1.20", "192.168.1.21"], secret=SECRET)
    assert sorted(info.parsed_addresses()) == sorted([*V6[:2], "fe80::20", "192.168.1.20"])
    assert b"%" not in info.text
    assert of(info, secret=SECRET).proven


def test_the_proof_covers_what_is_advertised_and_no_other_address() -> None:
    info = composed(secret=SECRET)
    forged = AsyncServiceInfo(
        info.type,
        info.name,
        port=info.port,
        properties=info.text,  # pyright: ignore[reportArgumentType] - as above
        server=info.server,
        parsed_addresses=["192.168.1.66", "192.168.1.20"],
    )
    found = of(forged, secret=SECRET)
    assert found.places == [place("192.168.1.20")]


def test_no_number_of_addresses_of_others_crowds_out_what_was_signed() -> None:
    info = composed(secret=SECRET)
    junk = [f"192.168.1.{number}" for number in range(60, 200)]
    found = of(
        service(info.text, name=label_of(info), server=info.server or "", addresses=junk), secret=SECRET
    )
    assert found.places == [place("192.168.1.20")]


def test_a_proof_holds_under_no_other_name() -> None:
    info = composed(secret=SECRET)
    again = service(info.text, name="replayed", server=info.server or "")
    assert "does not fit" in unusable(again, secret=SECRET)


@pytest.mark.parametrize("told", ["", "a name", "1.2.3.4/24", "fe80::20%"])
def test_what_was_signed_and_is_no_address_is_left_out(told: str) -> None:
    assert list(of(proven(addresses=[told]), secret=SECRET).places) == []


def test_a_long_name_leaves_room_for_every_other_name() -> None:
    first = composed(endpoint(name="x" * 190)).name
    for attempt in (2, 3, 4, 5):
        assert is_sendable(other_name(first, attempt))


# Proofs of others


def proven(**changes: Any) -> AsyncServiceInfo:
    txt = {"txtvers": "1", "id": "abc", "auth": "none"}
    told: dict[str, Any] = {
        "service": f"desk-0a1b2c.{OURS}",
        "target": TARGET,
        "port": 4096,
        "addresses": ["192.168.1.20"],
        **changes,
    }
    key = settings(secret=SECRET).key
    assert key is not None
    return service({**txt, **proof.sign(key, txt=txt, **told)})


def test_a_proof_that_fits_proves() -> None:
    assert of(proven(), secret=SECRET).proven
    assert of(proven(), secret=SECRET, require_secret=True).proven


@pytest.mark.parametrize("change", [{"target": "other.local."}, {"port": 4097}, {"service": "x"}])
def test_a_proof_for_elsewhere_is_refused(change: dict[str, Any]) -> None:
    assert "does not fit" in unusable(proven(**change), secret=SECRET)


def test_a_proof_with_another_secret_is_refused() -> None:
    assert "does not fit" in unusable(proven(), secret="another secret of the same kind")


def test_a_proof_leads_to_the_addresses_in_it_and_nowhere_else() -> None:
    found = of(proven(addresses=["192.168.1.2"]), secret=SECRET)
    assert list(found.places) == [place("192.168.1.2")]


def test_until_when_a_proof_holds_is_told_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    info = proven()
    found = of(info, secret=SECRET)
    assert found.proven_until is not None
    assert 60 * 60 < found.proven_until - time.time() <= 75 * 60
    assert not found.expired
    later = found.proven_until + 1
    monkeypatch.setattr("opencode_mcp_mdns.advert.time", SimpleNamespace(time=lambda: later))
    assert found.expired
    assert found.proven
    assert of(info).proven_until is None
    assert not of(info).expired


def test_an_old_proof_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    info = proven()
    later = time.time() + 76 * 60
    monkeypatch.setattr(proof, "time", SimpleNamespace(time=lambda: later))
    assert "too old" in unusable(info, secret=SECRET)


def test_without_a_secret_of_our_own_nobody_is_proven() -> None:
    assert not of(proven()).proven


@pytest.mark.parametrize("left_out", ["proof", "addrs"])
def test_without_a_whole_proof_nobody_is_proven_and_may_be_refused(left_out: str) -> None:
    txt = {key: value for key, value in proven().properties.items() if key != left_out.encode()}
    assert not of(service(txt), secret=SECRET).proven
    assert "MDNS_REQUIRE_SECRET" in unusable(service(txt), secret=SECRET, require_secret=True)


def test_a_bare_opencode_is_refused_where_a_proof_is_required() -> None:
    bare = service({"path": "/"}, name="opencode-4096", type_=HTTP)
    assert of(bare, secret=SECRET).places
    assert "MDNS_REQUIRE_SECRET" in unusable(bare, secret=SECRET, require_secret=True)


def test_a_value_in_front_of_the_signed_one_is_refused() -> None:
    info = proven()
    doubled = b"\x06ID=evi" + info.text
    assert "does not fit" in unusable(service(doubled), secret=SECRET)


# Bare ones


def test_a_bare_opencode_says_only_where_it_is() -> None:
    found = of(service({"path": "/"}, name="opencode-4096", type_=HTTP))
    assert found == Advert(places=[place("192.168.1.20")])


@pytest.mark.parametrize(
    "name",
    [
        "opencode-4097",
        "opencode-",
        "opencode",
        "opencode-4096x",
        "xopencode-4096",
        "opencode-4096 ",
        "printer",
    ],
)
@pytest.mark.parametrize("type_", [HTTP, "_HTTP._tcp.local."])
def test_another_web_server_is_never_one(name: str, type_: str) -> None:
    assert "does not fit its port" in unusable(service({"id": "abc"}, name=name, type_=type_))


# Names


@pytest.mark.parametrize(
    ("type_", "name", "candidate"),
    [
        (HTTP, f"opencode-4096.{HTTP}", True),
        (HTTP, f"opencode-99999.{HTTP}", True),
        (HTTP, f"opencode-4096.{HTTP.upper()}", True),
        (HTTP, f"opencode-100000.{HTTP}", False),
        (HTTP, f"opencode-4096\n.{HTTP}", False),
        (HTTP, f"opencode-4096.sub.{HTTP}", False),
        (HTTP, f"printer.{HTTP}", False),
        (HTTP, f"opencode-.{HTTP}", False),
        (HTTP, HTTP, False),
        (HTTP, "", False),
        (HTTP, f"opencode-4096.{OURS}", False),
        (HTTP, "opencode-4096", False),
        (OURS, f"anything.{OURS}", True),
        (OURS, f"any.thing\x1b[31m\x00.{OURS}", True),
        (OURS, f"\u202e.{OURS}", True),
        (OURS, OURS, False),
        (OURS, "other._ssh._tcp.local.", False),
        (OURS, f"x{OURS}", False),
        (OURS, f"x.{OURS}.evil.", False),
        (OURS, "\ufffd" * 5000, False),
    ],
)
def test_a_name_tells_whether_it_may_be_an_instance(type_: str, name: str, candidate: bool) -> None:
    assert is_candidate(type_, name) is candidate


@pytest.mark.parametrize(
    ("name", "sendable"),
    [
        (f"desk.{OURS}", True),
        (f"{'x' * 63}.{OURS}", True),
        (f"{'x' * 64}.{OURS}", False),
        (f"{'é' * 31}.{OURS}", True),
        (f"{'é' * 32}.{OURS}", False),
        (f"{chr(0xFFFD) * 21}.{OURS}", True),
        (f"{chr(0xFFFD) * 22}.{OURS}", False),  # 22 bytes that are no UTF-8, as they are read
        (f"{'.'.join(['x' * 63] * 3)}.{'x' * 30}.{OURS}", True),
        (f"{'.'.join(['x' * 63] * 3)}.{'x' * 60}.{OURS}", False),
    ],
)
def test_a_name_that_grew_when_it_was_read_cannot_be_sent(name: str, sendable: bool) -> None:
    assert is_sendable(name) is sendable


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_label_is_safe_text(escape: str) -> None:
    assert_safe(label(OURS, f"a{escape}b.{OURS}"))
    assert len(label(OURS, f"{'x' * 5000}.{OURS}")) == 100
    assert label(OURS, f"a.b.{OURS}") == "a.b"


def test_the_types_to_look_for_are_those_of_the_settings() -> None:
    assert service_types(settings()) == [OURS, HTTP]
    assert service_types(MDnsSettings(types=("_x._tcp",))) == ["_x._tcp.local."]


def test_a_service_of_another_type_that_the_user_named_may_have_any_name() -> None:
    found = of(service({}, name="thing", type_="_x._tcp.local."))
    assert (found.name, found.id) == ("thing", "")
    assert is_candidate("_x._tcp.local.", "thing._x._tcp.local.")


# Hostile ones


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("key", ["name", "host", "version", "cwd", "auth", "path", "addrs", "proof", "x"])
def test_text_that_steers_a_terminal_is_made_safe(key: str, escape: str) -> None:
    found = of(service({"id": "abc", key: f"a{escape}b{escape}"}))
    assert_safe(*texts(found))
    assert found.id == "abc"


@pytest.mark.parametrize("escape", ["\u202e", "\u200b", "\u2028", "\u2066"])
def test_a_name_taken_from_the_label_is_safe(escape: str) -> None:
    found = of(service({"id": "abc"}, name=f"a{escape}b"))
    assert found.name == "a b"


def test_values_are_cut_to_what_people_read() -> None:
    found = of(service(dict.fromkeys(("name", "host", "version", "cwd"), "x" * 240)))
    assert list(map(len, (found.name, found.host, found.version, found.directory))) == [190, 100, 40, 240]


@pytest.mark.parametrize(
    "bad",
    ["a b", "a\x1b[31m", "a\n", "../../etc", "x" * 65, "a~b", "a\u202eb", "\ufffd", "é", " ", "a/b", "a:b"],
)
def test_an_id_that_is_none_is_refused(bad: str) -> None:
    assert unusable(service({"id": bad})) == "its id is none"


def test_an_id_in_bytes_that_are_no_text_is_refused() -> None:
    assert unusable(service({"id": b"\xff\xfe"})) == "its id is none"


@pytest.mark.parametrize("good", ["a", "x" * 64, "A-b_c.9"])
def test_an_id_of_usual_letters_is_taken(good: str) -> None:
    assert of(service({"id": good})).id == good


@pytest.mark.parametrize("version", ["2", "", "1.0", " 1", "\x1b", "01"])
def test_a_record_of_another_version_is_refused(version: str) -> None:
    assert "newer version" in unusable(service({"txtvers": version}))


def test_a_record_without_version_is_of_the_first() -> None:
    assert of(service({"id": "abc"})).id == "abc"


def test_eight_kilobytes_are_refused_and_two_are_read() -> None:
    assert unusable(service([b"x=" + b"y" * 250] * 32)) == "its TXT record has 8096 bytes"
    assert of(service([b"id=abc", *[b"x=" + b"y" * 250] * 8])).id == "abc"
    assert "TXT record" in unusable(service([b"id=abc", *[b"x" * 127] * 16]))


def test_the_first_of_the_same_key_counts_whatever_its_case() -> None:
    assert of(service([b"id=first", b"id=second"])).id == "first"
    assert of(service([b"ID=first", b"id=second"])).id == "first"
    assert of(service([b"Name=desk", b"NAME=other"])).name == "desk"


def test_a_flag_and_a_missing_key_and_an_empty_entry_mean_nothing() -> None:
    found = of(service([b"id", b"name", b"auth", b"cwd", b"=x", b"", b"host"], name="label"))
    assert found == Advert(name="label", places=[place("192.168.1.20")])


@pytest.mark.parametrize("cut", [b"\x20id=abc", b"\xff", b"\x06id=abc\xffx", b"\x00" * 50, b"\x03id=\x02id"])
def test_a_truncated_record_is_read_as_far_as_it_goes(cut: bytes) -> None:
    found = of(service(cut))
    assert found.id in ("abc", "")
    assert_safe(*texts(found))


def test_bytes_that_are_no_text_in_key_and_value_are_read_as_something_safe() -> None:
    found = of(service([b"\xff\xfe=\xff", b"name=caf\xe9", b"\x80", b"host=\xf0\x9f"]))
    assert found.name == "caf\ufffd"
    assert_safe(*texts(found))


@pytest.mark.parametrize("port", [None, 0, 22, 80, 1023, 70_000])
def test_a_port_outside_of_mdns_ports_is_refused(port: int | None) -> None:
    assert "MDNS_PORTS" in unusable(service({"id": "abc"}, port=port))


@pytest.mark.parametrize("port", [1024, 4096, 65_535])
def test_other_ports_are_allowed(port: int) -> None:
    assert of(service({"id": "abc"}, port=port)).places == [place("192.168.1.20", port)]


def test_mdns_ports_decides() -> None:
    assert of(service(port=22), ports=("22", "4000-4001")).places
    assert of(service(port=4001), ports=("22", "4000-4001")).places
    assert unusable(service(port=4002), ports=("22", "4000-4001")) == "its port 4002 is none of MDNS_PORTS"


FORBIDDEN = [
    *("127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "8.8.8.8", "192.168.1.255"),
    *("::1", "::", "::ffff:127.0.0.1", "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::1", "2606:4700::1111"),
]


@pytest.mark.parametrize("forbidden", FORBIDDEN)
def test_a_forbidden_address_is_left_out_and_told(forbidden: str) -> None:
    found = of(service({"id": "abc"}, addresses=[forbidden]))
    assert list(found.places) == []
    assert found.left_out.startswith(f"its address {address(forbidden)} ")
    assert_safe(found.left_out)


def test_forbidden_addresses_do_not_hide_an_allowed_one() -> None:
    found = of(service({"id": "abc"}, addresses=[*FORBIDDEN, "192.168.1.20"]))
    assert found.places == [place("192.168.1.20")]
    assert "loopback" in found.left_out


def test_of_two_hundred_addresses_at_most_four_are_places() -> None:
    allowed = of(service({"id": "abc"}, addresses=[f"192.168.1.{one}" for one in range(20, 220)]))
    assert len(allowed.places) == 4
    forbidden = of(service({"id": "abc"}, addresses=[f"10.0.0.{one}" for one in range(200)]))
    assert list(forbidden.places) == []
    assert len(forbidden.left_out) < 200


def test_only_so_many_addresses_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    network = lan()
    monkeypatch.setattr(network, "refusal", looked.append)
    of(service({"id": "abc"}, addresses=[f"10.0.{one}.1" for one in range(200)]), network)
    assert len(looked) == 200
    looked.clear()
    many = [f"10.{one // 250}.{one % 250}.1" for one in range(600)]
    of(service({"id": "abc"}, addresses=many), network)
    assert len(looked) == 512


def test_ipv4_comes_first_and_link_local_last() -> None:
    found = of(service({"id": "abc"}, addresses=["fe80::20", "fd00:1::20", "192.168.1.20"]))
    assert list(map(str, found.places)) == [
        "192.168.1.20:4096",
        "[fd00:1::20]:4096",
        "[fe80::20%eth0]:4096",
    ]


def test_a_link_local_address_on_an_unknown_link_is_left_out() -> None:
    two = Network([*attached("eth0", 2, "fe80::10/64"), *attached("eth1", 3, "fe80::11/64")])
    found = of(service({"id": "abc"}, addresses=["fe80::20"]), two)
    assert list(found.places) == []
    assert "on which link" in found.left_out


def test_a_service_without_address_says_so() -> None:
    assert of(service({"id": "abc"}, addresses=[])).left_out == "it has no address"


@pytest.mark.parametrize("server", ["", "localhost", "internal.example.com.", "\x1b[31m.local.", "\ud800"])
def test_the_name_of_its_host_is_not_asked_for(server: str) -> None:
    found = of(service({"id": "abc"}, server=server), secret=SECRET)
    assert found.places == [place("192.168.1.20")]
    assert_safe(*texts(found))
    assert "does not fit" in unusable(
        service({"addrs": "192.168.1.20", "proof": "x"}, server=server), secret=SECRET
    )


# Places


def test_a_place_is_asked_at_its_url() -> None:
    assert place("192.168.1.20").url == "http://192.168.1.20:4096"
    assert place("fd00:1::20", 5000).url == "http://[fd00:1::20]:5000"
    assert str(place("fd00:1::20", 5000)) == "[fd00:1::20]:5000"


def test_the_host_header_is_left_as_it_is_but_for_a_scope() -> None:
    for one in (place("192.168.1.20"), place("fd00:1::20")):
        assert one.route.base_url == one.url
        assert one.route.headers == {}
    scoped = place("fe80::20%eth0")
    assert scoped.route.base_url == scoped.url == "http://[fe80::20%eth0]:4096"
    assert scoped.route.headers == {"host": "[fe80::20]:4096"}


def test_an_endpoint_can_have_the_url_of_any_place() -> None:
    for one in ("192.168.1.20", "fd00:1::20", "fe80::20%eth0", "fe80::20%enP1s0.10"):
        assert endpoint(url=place(one).url).url == place(one).url


@pytest.mark.parametrize("name", ["opencode-٤٠٩٦", "opencode-04096"])
def test_opencode_writes_its_port_in_one_way_only(name: str) -> None:
    assert "does not fit its port" in unusable(service({}, name=name, type_=HTTP))


# Announcing


@pytest.mark.anyio
@pytest.mark.parametrize("secret", [None, SECRET])
async def test_one_that_asks_for_no_password_is_not_announced(secret: str | None) -> None:
    def read_network() -> Network:
        raise AssertionError("nothing is looked at")

    one = endpoint(labels={"auth": "none"})
    announcement = Announcement(one, settings(secret=secret), read_network)
    with pytest.raises(TransportError, match=r"^mdns does not announce desk-project: it asks for no pass"):
        await announcement.keep(anyio.TASK_STATUS_IGNORED)


@pytest.mark.anyio
async def test_one_whose_url_has_a_name_is_not_announced() -> None:
    announcement = Announcement(endpoint(url="http://desk:4096"), settings(), lan)
    with pytest.raises(TransportError, match="cannot announce http://desk:4096: it must say an IP address"):
        await announcement.keep(anyio.TASK_STATUS_IGNORED)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Where the instance accepts connections."""
    listening: set[str] = set()

    async def accepts(where: Place) -> bool:
        return str(where) in listening

    monkeypatch.setattr("opencode_mcp_mdns.announcement._accepts", accepts)
    monkeypatch.setattr("opencode_mcp_mdns.announcement.listening_user", lambda url: 1000)
    return listening


async def reachable(url: str, network: Network) -> list[str]:
    return list(map(str, await Announcement(endpoint(url=url), settings(), lambda: network)._reachable()))


@pytest.mark.anyio
async def test_it_is_announced_where_it_accepts_connections(listening: set[str]) -> None:
    listening |= {"192.168.1.10:4096", "[fe80::10%eth0]:4096", "[fd00:1::10]:5000"}
    for url in ("http://0.0.0.0:4096", "http://[::]:4096", "http://127.0.0.1:4096"):
        assert await reachable(url, lan()) == ["192.168.1.10"]
    assert await reachable("http://192.168.1.10:4096", lan()) == ["192.168.1.10"]
    assert await reachable("http://[fd00:1::10]:5000", lan()) == ["fd00:1::10"]


@pytest.mark.anyio
async def test_a_link_local_address_is_announced_only_if_there_is_no_other(listening: set[str]) -> None:
    listening |= {"[fe80::10%eth0]:4096"}
    assert await reachable("http://[::]:4096", lan()) == ["fe80::10%eth0"]
    assert await reachable("http://[fe80::10]:4096", lan()) == ["fe80::10%eth0"]
    listening |= {"[fd00:1::10]:4096"}
    assert await reachable("http://[::]:4096", lan()) == ["fd00:1::10"]


@pytest.mark.anyio
async def test_one_that_listens_on_ipv4_only_is_not_announced_over_ipv6(listening: set[str]) -> None:
    """Whoever accepts connections over IPv6 at the same port is somebody else."""
    listening |= {"192.168.1.10:4096", "[fd00:1::10]:4096"}
    assert await reachable("http://0.0.0.0:4096", lan()) == ["192.168.1.10"]
    assert await reachable("http://[::]:4096", lan()) == ["192.168.1.10", "fd00:1::10"]
    listening.remove("192.168.1.10:4096")
    with pytest.raises(TransportError, match="nobody on eth0 can reach it"):
        await reachable("http://0.0.0.0:4096", lan())


@pytest.mark.anyio
async def test_an_address_where_another_user_listens_at_the_same_port_is_not_announced(
    listening: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening |= {"192.168.1.10:4096", "[fd00:1::10]:4096"}
    users = {
        "http://127.0.0.1:4096": 1000,
        "http://192.168.1.10:4096": 1001,
        "http://[fd00:1::10]:4096": 1000,
    }
    monkeypatch.setattr("opencode_mcp_mdns.announcement.listening_user", users.get)
    assert await reachable("http://127.0.0.1:4096", lan()) == ["fd00:1::10"]
    users["http://[fd00:1::10]:4096"] = 1001
    with pytest.raises(TransportError, match="nobody on eth0 can reach it"):
        await reachable("http://127.0.0.1:4096", lan())


@pytest.mark.anyio
async def test_it_is_announced_at_four_addresses_at_most_and_the_primary_one_is_among_them(
    listening: set[str],
) -> None:
    own = [f"10.0.{number}.1" for number in range(9)]
    listening |= {f"{one}:4096" for one in own}
    network = Network(attached("eth0", 2, *[f"{one}/24" for one in own]), primary=address(own[8]))
    assert await reachable("http://0.0.0.0:4096", network) == [own[8], *own[:3]]


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["http://0.0.0.0:4096", "http://192.168.1.11:4096"])
async def test_one_that_nobody_can_reach_is_not_announced(listening: set[str], url: str) -> None:
    with pytest.raises(TransportError, match=r"nobody on eth0 can reach it, .* on port 4096\. .*--hostname"):
        await reachable(url, lan())


class Registry:
    """Takes the place of zeroconf: a neighbour may claim names."""

    def __init__(self, taken: Callable[[str], bool]) -> None:
        self.taken = taken
        self.tried: list[tuple[str, bool]] = []

    async def async_register_service(
        self, info: AsyncServiceInfo, *, cooperating_responders: bool = False
    ) -> str:
        self.tried.append((label_of(info), cooperating_responders))
        if self.taken(label_of(info)) and not cooperating_responders:
            raise NonUniqueNameException
        return "sent"


async def registered(taken: Callable[[str], bool]) -> tuple[Announcement, Registry]:
    announcement = Announcement(endpoint(), settings(secret=SECRET), lan)
    registry = announcement._zeroconf = Registry(taken)
    assert await announcement._register([address("192.168.1.10")]) == "sent"
    return announcement, registry


@pytest.mark.anyio
async def test_it_is_announced_under_its_name_if_that_is_free(caplog: pytest.LogCaptureFixture) -> None:
    _, registry = await registered(lambda name: False)
    assert registry.tried == [("desk-project-0a1b2c", False)]
    assert caplog.messages == []


@pytest.mark.anyio
async def test_it_is_announced_under_another_name_if_its_own_is_taken_and_proves_that() -> None:
    announcement, registry = await registered(lambda name: name == "desk-project-0a1b2c")
    assert registry.tried == [("desk-project-0a1b2c", False), ("desk-project-0a1b2c-2", False)]
    assert of(arrived(announcement._info), secret=SECRET).proven


@pytest.mark.anyio
async def test_who_claims_every_name_does_not_keep_it_from_being_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    announcement, registry = await registered(lambda name: True)
    names = [name.removeprefix("desk-project-0a1b2c") for name, _ in registry.tried]
    assert names[:3] == ["", "-2", "-3"]
    assert all(re.fullmatch("-[0-9a-f]{4}", name) for name in names[3:])
    assert [asked for _, asked in registry.tried] == [False] * 4 + [True]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Somebody on the network claims every name for desk-project")
    assert of(arrived(announcement._info), secret=SECRET).proven


@pytest.mark.anyio
async def test_one_that_nobody_can_reach_any_more_is_an_error(listening: set[str]) -> None:
    listening |= {"192.168.1.10:4096"}
    announcement, _ = await registered(lambda name: False)
    listening.clear()
    announcement.woke()
    session: Any = SimpleNamespace(network=lan())
    with pytest.raises(TransportError, match="nobody on eth0 can reach it"):
        await announcement._renew(session)
