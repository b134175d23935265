"""Environment variables of mdns: what they take, and what is said of those that cannot be used."""

import ipaddress

import pytest

from mdns.unit_parts import SECRET, VARIABLES, place
from opencode_mcp import SettingsError
from opencode_mcp.settings import documented, read_settings
from opencode_mcp_mdns import MDnsSettings
from opencode_mcp_mdns.vouching import Vouching

TAKES = {documented(field).variable: documented(field).takes for field in MDnsSettings.model_fields.values()}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *MDnsSettings.model_fields):
        monkeypatch.delenv(name, raising=False)


def refused(**environment: str) -> str:
    """Return what is said of unusable variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SettingsError) as caught:
            read_settings(MDnsSettings)
    return str(caught.value)


def accepted(**environment: str) -> MDnsSettings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return read_settings(MDnsSettings)


def test_mdns_reads_these_variables_with_these_defaults() -> None:
    assert list(TAKES) == VARIABLES
    assert read_settings(MDnsSettings).model_dump() == {
        "types": ("_opencode._tcp", "_http._tcp"),
        "interfaces": (),
        "ports": ("1024-65535",),
        "max_services": 256,
        "forget_after_ms": 600_000,
        "credentials_for": (),
        "secret": None,
        "require_secret": False,
        "publish_cwd": False,
    }


def test_without_variables_no_secret_nobody_vouched_for_and_no_privileged_port() -> None:
    settings = read_settings(MDnsSettings)
    assert settings.key is None
    assert settings.vouched_names == settings.vouched_networks == settings.vouched_scoped == []
    assert settings.port_ranges == [range(1024, 65536)]


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_like_none(name: str) -> None:
    assert accepted(**{name: ""}) == read_settings(MDnsSettings)


def test_no_field_is_read_by_its_own_name() -> None:
    assert accepted(require_secret="1", ports="22", secret="x") == read_settings(MDnsSettings)


GOOD: list[tuple[str, str, str, object]] = [
    ("MDNS_TYPES", "_opencode._tcp", "types", ("_opencode._tcp",)),
    ("MDNS_TYPES", " _A._tcp , _b-2._TCP.local. ,", "types", ("_a._tcp", "_b-2._tcp")),
    ("MDNS_TYPES", "_x._tcp,_X._tcp.local", "types", ("_x._tcp",)),
    ("MDNS_TYPES", "_abcdefghijklmno._tcp", "types", ("_abcdefghijklmno._tcp",)),
    ("MDNS_TYPES", "_1a._tcp,_a-1-b._tcp", "types", ("_1a._tcp", "_a-1-b._tcp")),
    ("MDNS_INTERFACES", "eth0, wlan0", "interfaces", ("eth0", "wlan0")),
    ("MDNS_INTERFACES", "192.168.1.7", "interfaces", ("192.168.1.7",)),
    ("MDNS_PORTS", "4096", "ports", ("4096",)),
    ("MDNS_PORTS", "1, 4096-4100 ,65535", "ports", ("1", "4096-4100", "65535")),
    ("MDNS_MAX_SERVICES", "1", "max_services", 1),
    ("MDNS_MAX_SERVICES", "1000", "max_services", 1_000),
    ("MDNS_FORGET_AFTER_MS", "0", "forget_after_ms", 0),
    ("MDNS_FORGET_AFTER_MS", "1000000000000000", "forget_after_ms", 10**15),
    ("MDNS_CREDENTIALS_FOR", "192.168.1.5, nas.example", "credentials_for", ("192.168.1.5", "nas.example")),
    (
        "MDNS_CREDENTIALS_FOR",
        "10.0.0.0/8,fd00::/8,desk",
        "credentials_for",
        ("10.0.0.0/8", "fd00::/8", "desk"),
    ),
    ("MDNS_CREDENTIALS_FOR", "localhost,mylocal", "credentials_for", ("localhost", "mylocal")),
    ("MDNS_CREDENTIALS_FOR", "desk1,1.desk", "credentials_for", ("desk1", "1.desk")),
    ("MDNS_CREDENTIALS_FOR", "fe80::1%eth0", "credentials_for", ("fe80::1%eth0",)),
    ("MDNS_REQUIRE_SECRET", "0", "require_secret", False),
    ("MDNS_PUBLISH_CWD", "1", "publish_cwd", True),
    ("MDNS_PUBLISH_CWD", "0", "publish_cwd", False),
]


@pytest.mark.parametrize(("name", "value", "field", "meant"), GOOD)
def test_what_a_variable_takes_is_taken(name: str, value: str, field: str, meant: object) -> None:
    assert getattr(accepted(**{name: value}), field) == meant


BAD: dict[str, list[str]] = {
    "MDNS_TYPES": [
        *(",", " ", "_udp._udp", "opencode._tcp", "_._tcp", "_a b._tcp", "_a_b._tcp", "_a._tcp.example"),
        *("_abcdefghijklmnop._tcp", "_-a._tcp", "_a-._tcp", "_opencode._tcp,bad", "_http._tcp\x07"),
        *("_123._tcp", "_1-2._tcp", "_a--b._tcp"),  # zeroconf takes none of them; RFC 6335, section 5.1
        "_sub._sub._http._tcp",
    ],
    "MDNS_INTERFACES": [",,", "eth0,\x1b[31m", "eth0\x07", "\u202eeth0"],
    "MDNS_PORTS": [
        *(",", "0", "0-10", "65536", "1-65536", "5000-4000", "-1", "http", "4096.5", "1-2-3", "4096;4097"),
        *(
            "4096-",
            "-4096",
            "100000",
            "4096,0",
            "4096 - 4100",
            "40 96",
            "٤٠٩٦",
            "²",
            "4_096",
            "+4096",
            "4096\t-4100",
        ),
    ],
    "MDNS_MAX_SERVICES": ["0", "-1", "1001", "many", "1.5"],
    "MDNS_FORGET_AFTER_MS": ["-1", "soon", "0.5", str(10**15 + 1)],
    "MDNS_CREDENTIALS_FOR": [
        *(",", "desk.local", "desk.LOCAL", "desk.local.", "a.b.local", "ok,desk.local", "10.0.0.0/33"),
        *("fd00::/129", "a b", "-desk", "desk-", "desk_1", "http://desk", "desk:4096", "*", "me@desk"),
        *("b\u00fcro", "x" * 254, "desk\x1b[31m", "192.168.1.300", "192.168.1", "10.0.0.1.2", "1", "desk.1."),
        *("192.168.1.5%eth0", "fe80::/10%eth0", "fe80::1%", "fe80::1%a%b", "desk%eth0", "FE80::1%eth0"),
    ],
    "MDNS_REQUIRE_SECRET": ["1", "maybe", "2"],
    "MDNS_PUBLISH_CWD": ["2", "home"],
}


@pytest.mark.parametrize(("name", "value"), [(name, one) for name, bad in BAD.items() for one in bad])
def test_what_it_does_not_take_is_said_with_its_name_and_what_it_takes(name: str, value: str) -> None:
    said = refused(**{name: value})
    assert said.startswith(f"{name}=")
    assert said.endswith(f" cannot be used: it takes {TAKES[name]}.")
    assert said.isprintable()
    assert len(said) < 400


@pytest.mark.parametrize("short", ["x", "fifteen letters"])
def test_a_short_secret_is_refused_and_not_shown(short: str) -> None:
    said = refused(MDNS_SECRET=short)
    assert said == f"MDNS_SECRET cannot be used: it takes {TAKES['MDNS_SECRET']}."
    assert "16 characters" in said


def test_a_secret_of_sixteen_characters_is_taken_and_not_shown() -> None:
    settings = accepted(MDNS_SECRET="sixteen letters!", MDNS_REQUIRE_SECRET="1")
    assert settings.key is not None
    assert settings.require_secret
    for shown in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
        assert "sixteen letters!" not in shown


def test_the_key_is_made_of_the_secret_in_the_same_way_on_all_machines() -> None:
    key = accepted(MDNS_SECRET="sixteen letters!").key
    assert key == bytes.fromhex("1c5e468adcee11b060d03e23d93784daaf5216f4887ca8aecf60f6a8f46f9494")


def test_the_key_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = accepted(MDNS_SECRET="sixteen letters!")
    key = settings.key
    monkeypatch.setattr("opencode_mcp_mdns.settings.hashlib.scrypt", None)
    assert settings.key is key


def test_a_guess_at_the_secret_takes_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cost: dict[str, int] = {}

    def scrypt(password: bytes, *, salt: bytes, n: int, r: int, p: int, dklen: int) -> bytes:
        cost.update(n=n, r=r, p=p)
        return bytes(dklen)

    monkeypatch.setattr("opencode_mcp_mdns.settings.hashlib.scrypt", scrypt)
    key = accepted(MDNS_SECRET="sixteen letters!").key
    assert key is not None
    assert len(key) >= 32
    assert 128 * cost["n"] * cost["r"] >= 16 * 2**20


def test_a_secret_that_is_no_utf_8_makes_a_key_all_the_same() -> None:
    one, other = (accepted(MDNS_SECRET=f"caf{letter} and sixteen more").key for letter in "\udce9\udce8")
    assert one is not None
    assert other is not None
    assert one != other


def test_requiring_a_secret_takes_a_secret() -> None:
    said = refused(MDNS_REQUIRE_SECRET="1")
    assert said.startswith("MDNS_REQUIRE_SECRET='1' cannot be used")
    assert "MDNS_SECRET" in said


def test_requiring_a_secret_that_is_unusable_is_one_complaint() -> None:
    assert refused(MDNS_REQUIRE_SECRET="1", MDNS_SECRET="short") == refused(MDNS_SECRET="short")


def test_every_unusable_variable_is_named_and_the_secret_beside_them_is_not_shown() -> None:
    said = refused(MDNS_SECRET=SECRET, MDNS_PORTS="0", MDNS_MAX_SERVICES="0").splitlines()
    assert [line.partition("=")[0] for line in said] == ["MDNS_PORTS", "MDNS_MAX_SERVICES"]
    assert SECRET not in "".join(said)


def test_a_long_value_is_shown_in_part() -> None:
    assert len(refused(MDNS_TYPES="x" * 10_000)) < 400


def test_ports_are_ranges_with_both_ends() -> None:
    assert accepted(MDNS_PORTS="22,4000-4002").port_ranges == [range(22, 23), range(4000, 4003)]


def test_hosts_to_vouch_for_are_told_apart_as_networks_and_names() -> None:
    settings = accepted(MDNS_CREDENTIALS_FOR="192.168.1.5,10.1.2.3/8,fd00::7,desk.example")
    assert settings.vouched_networks == [
        ipaddress.ip_network("192.168.1.5/32"),
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fd00::7/128"),
    ]
    assert settings.vouched_names == ["desk.example"]


def test_who_vouches_for_an_address_on_one_link_does_not_vouch_for_it_on_another() -> None:
    settings = accepted(MDNS_CREDENTIALS_FOR="fe80::1%eth0")
    assert settings.vouched_scoped == ["fe80::1%eth0"]
    assert settings.vouched_networks == settings.vouched_names == []
    vouching = Vouching(settings, changed=lambda: None)
    assert vouching.vouched(place("fe80::1%eth0"))
    for other in ("fe80::1%wlan0", "fe80::1%eth00", "fe80::1", "fe80::2%eth0", "192.168.1.20"):
        assert not vouching.vouched(place(other)), other


def test_who_names_no_link_vouches_for_an_address_on_all_of_them() -> None:
    vouching = Vouching(accepted(MDNS_CREDENTIALS_FOR="fe80::1,192.168.1.0/24"), changed=lambda: None)
    for one in ("fe80::1%eth0", "fe80::1%wlan0", "192.168.1.20"):
        assert vouching.vouched(place(one)), one
    assert not vouching.vouched(place("fe80::2%eth0"))
    assert not vouching.vouched(place("192.168.2.20"))
