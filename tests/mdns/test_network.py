"""Which addresses somebody on the network may send us to, and what the networks of this machine are."""

import ipaddress
import socket
from typing import Any, Self

import ifaddr
import pytest

from mdns.unit_parts import address, attached, lan
from opencode_mcp import TransportError
from opencode_mcp_mdns import MDnsSettings, opencode_mcp_transports
from opencode_mcp_mdns import network as module
from opencode_mcp_mdns.network import Network, missing, read_network

FORBIDDEN: list[tuple[str, str]] = [
    ("127.0.0.1", "loopback"),
    ("127.8.9.10", "loopback"),
    ("::1", "loopback"),
    ("0.0.0.0", "no address of a host"),
    ("::", "no address of a host"),
    ("224.0.0.251", "multicast"),
    ("239.1.2.3", "multicast"),
    ("ff02::1", "multicast"),
    ("ff02::1%eth0", "multicast"),
    ("255.255.255.255", "in no network"),
    ("192.168.1.255", "no address of a host"),
    ("192.168.1.0", "no address of a host"),
    ("169.254.169.254", "link-local"),
    ("::ffff:127.0.0.1", "holds an IPv4 address"),
    ("::ffff:192.168.1.20", "holds an IPv4 address"),
    ("64:ff9b::7f00:1", "holds an IPv4 address"),
    ("64:ff9b::c0a8:114", "holds an IPv4 address"),
    ("64:ff9b:1::7f00:1", "holds an IPv4 address"),
    ("2002:7f00:1::1", "holds an IPv4 address"),
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "holds an IPv4 address"),
    ("::127.0.0.1", "in no network"),
    ("8.8.8.8", "in no network"),
    ("192.168.2.20", "in no network"),
    ("10.0.0.1", "in no network"),
    ("240.0.0.1", "in no network"),
    ("2606:4700::1111", "in no network"),
    ("fd00:2::20", "in no network"),
    ("fe80::20", "on which link"),
    ("fe80::20%eth1", "in no network"),
    ("fe80::20%3", "in no network"),
]


@pytest.mark.parametrize(("forbidden", "because"), FORBIDDEN)
def test_nobody_may_send_us_there(forbidden: str, because: str) -> None:
    assert because in (lan().refusal(address(forbidden)) or "")


@pytest.mark.parametrize(
    "translated",
    ["::ffff:10.0.0.9", "64:ff9b::a00:9", "64:ff9b:1:2::a00:9", "2002:a00:9::1", "2001:0:a00:9::1"],
)
def test_an_address_that_holds_another_is_refused_in_an_attached_network_too(translated: str) -> None:
    inside = Network(attached("eth0", 2, f"{address(translated) + 1}/64"))
    assert inside.refusal(address(translated)) == "holds an IPv4 address"


@pytest.mark.parametrize("inside", ["224.0.0.9", "169.254.1.9", "0.0.0.0"])
def test_a_forbidden_address_is_refused_in_an_attached_network_too(inside: str) -> None:
    everything = Network(attached("tun0", 2, "10.0.0.1/0"))
    assert everything.refusal(address(inside)) is not None


@pytest.mark.parametrize(
    "allowed",
    ["192.168.1.1", "192.168.1.254", "192.168.1.10", "fd00:1::20", "2001:db8:1::20", "fe80::20%eth0"],
)
def test_a_host_in_an_attached_network_is_allowed(allowed: str) -> None:
    assert lan().refusal(address(allowed)) is None


def test_without_a_network_nobody_is_allowed() -> None:
    for one in ("192.168.1.20", "fd00:1::20", "fe80::20%eth0"):
        assert Network([]).refusal(address(one)) is not None


def test_the_ends_of_a_network_of_two_are_hosts() -> None:
    link = Network(attached("ppp0", 2, "10.0.0.2/31"))
    assert link.refusal(address("10.0.0.3")) is None
    assert link.refusal(address("10.0.0.4")) is not None
    lone = Network(attached("ppp0", 2, "10.0.0.2/32"))
    assert lone.refusal(address("10.0.0.2")) is None
    assert lone.refusal(address("10.0.0.3")) is not None


def test_broadcast_is_that_of_the_attached_network_whatever_its_size() -> None:
    wide = Network(attached("eth0", 2, "10.0.4.1/22"))
    assert wide.refusal(address("10.0.4.255")) is None
    assert wide.refusal(address("10.0.5.0")) is None
    assert wide.refusal(address("10.0.7.255")) == "is no address of a host"
    assert wide.refusal(address("10.0.4.0")) == "is no address of a host"


def test_loopback_is_allowed_only_where_it_is_attached_itself() -> None:
    loopback = Network(attached("lo", 1, "127.0.0.1/8"))
    assert loopback.refusal(address("127.0.0.1")) is None
    assert loopback.refusal(address("127.255.255.255")) is not None


def test_a_link_local_address_counts_on_its_own_link_only() -> None:
    two = Network([*attached("eth0", 2, "fe80::10/64"), *attached("eth1", 3, "fe80::11/64")])
    assert two.refusal(address("fe80::20%eth0")) is None
    assert two.refusal(address("fe80::20%eth1")) is None
    assert two.refusal(address("fe80::20%eth2")) is not None
    without = Network([*attached("eth0", 2, "fe80::10/64"), *attached("eth1", 3, "192.168.1.10/24")])
    assert without.refusal(address("fe80::20%eth1")) is not None


def test_a_link_local_address_gets_the_name_of_the_only_link() -> None:
    assert str(lan().scoped(address("fe80::20"))) == "fe80::20%eth0"
    assert str(lan().scoped(address("fe80::20%2"))) == "fe80::20%eth0"
    assert str(lan().scoped(address("fe80::20%eth0"))) == "fe80::20%eth0"


def test_with_two_links_only_a_number_or_a_name_tells_which() -> None:
    two = Network([*attached("eth0", 2, "fe80::10/64"), *attached("eth1", 3, "fe80::11/64")])
    assert str(two.scoped(address("fe80::20"))) == "fe80::20"
    assert str(two.scoped(address("fe80::20%3"))) == "fe80::20%eth1"
    assert str(two.scoped(address("fe80::20%eth0"))) == "fe80::20%eth0"
    assert two.refusal(two.scoped(address("fe80::20"))) == "does not say on which link it is"


@pytest.mark.parametrize("scope", ["9", "lo", "eth00", "2x"])
def test_the_scope_of_a_link_that_is_not_attached_is_dropped(scope: str) -> None:
    assert str(lan().scoped(address(f"fe80::20%{scope}"))) == "fe80::20"


def test_other_addresses_have_no_scope() -> None:
    for one in ("192.168.1.20", "169.254.1.2", "fd00:1::20", "::1"):
        assert lan().scoped(address(one)) == address(one)
    v4_only = Network(attached("eth0", 2, "192.168.1.10/24", "fd00:1::10/64"))
    assert str(v4_only.scoped(address("fe80::20"))) == "fe80::20"


def test_the_machines_own_addresses_are_known_those_that_are_not_in_use_too() -> None:
    for own in ("192.168.1.10", "fd00:1::10", "fe80::10", "fe80::10%eth0", "127.0.0.1", "::1"):
        assert lan().is_own(address(own)), own
    for other in ("192.168.1.11", "fe80::11%eth0", "10.0.0.1"):
        assert not lan().is_own(address(other)), other


def test_addresses_are_ipv4_first_and_link_local_last() -> None:
    mixed = Network(
        [
            *attached("eth0", 2, "fe80::10/64", "2001:db8:1::10/64", "192.168.1.10/24", "169.254.1.1/16"),
            *attached("eth1", 3, "10.0.0.1/8", "fd00:1::10/64", "fe80::5/64"),
        ]
    )
    assert list(map(str, mixed.addresses)) == [
        "10.0.0.1",
        "192.168.1.10",
        "169.254.1.1",
        "2001:db8:1::10",
        "fd00:1::10",
        "fe80::5",
        "fe80::10",
    ]
    assert mixed.names == ["eth0", "eth1"]


def test_zeroconf_gets_ipv4_addresses_and_indexes_for_ipv6_each_once() -> None:
    assert lan().for_zeroconf == ["192.168.1.10", 2]
    two = Network([*attached("eth1", 3, "10.0.0.1/8", "10.0.0.2/8"), *attached("eth0", 2, "fe80::10/64")])
    assert two.for_zeroconf == ["10.0.0.1", "10.0.0.2", 2]
    assert Network([]).for_zeroconf == []


def test_networks_are_the_same_if_what_is_attached_is() -> None:
    assert lan() == lan()
    assert hash(lan()) == hash(lan())
    assert lan() != Network(attached("eth0", 2, "192.168.1.10/24"))
    replugged = Network(attached("eth0", 3, "192.168.1.10/24"))
    assert replugged != Network(attached("eth0", 2, "192.168.1.10/24"))
    assert lan() != "eth0"


def adapter(name: str, index: int | None, *ips: tuple[str, int]) -> ifaddr.Adapter:
    found = [ifaddr.IP((one, 0, 0) if ":" in one else one, prefix, name) for one, prefix in ips]
    return ifaddr.Adapter(name, name, found, index)


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        adapter("lo", 1, ("127.0.0.1", 8), ("::1", 128)),
        adapter("eth0", 2, ("192.168.1.10", 24), ("fe80::10", 64)),
        adapter("wlan0", 3, ("10.0.0.7", 8), ("fd00:1::7", 64), ("169.254.7.7", 16)),
        adapter("tun0", None, ("10.9.0.2", 32)),
    ]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: iter(found))
    monkeypatch.setattr(module, "_primary", lambda: address("10.0.0.7"))


def shown(network: Network) -> set[str]:
    return {f"{one.name} {one.index} {one.address}" for one in network.attached}


@pytest.mark.usefixtures("adapters")
def test_all_networks_but_loopback_and_ipv4_link_local_are_in_use() -> None:
    assert shown(read_network()) == {
        "eth0 2 192.168.1.10/24",
        "eth0 2 fe80::10/64",
        "wlan0 3 10.0.0.7/8",
        "wlan0 3 fd00:1::7/64",
        "tun0 0 10.9.0.2/32",
    }


@pytest.mark.usefixtures("adapters")
def test_names_and_addresses_limit_them() -> None:
    assert shown(read_network(["eth0"])) == {"eth0 2 192.168.1.10/24", "eth0 2 fe80::10/64"}
    assert shown(read_network(["fd00:1::7"])) == {"wlan0 3 fd00:1::7/64"}
    assert shown(read_network(["eth0", "10.0.0.7"])) == {
        "eth0 2 192.168.1.10/24",
        "eth0 2 fe80::10/64",
        "wlan0 3 10.0.0.7/8",
    }
    assert shown(read_network(["eth", "192.168.1.1"])) == set()


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("wanted", ["lo", "127.0.0.1", "::1", "169.254.7.7"])
def test_loopback_and_ipv4_link_local_are_not_to_be_had_by_asking(wanted: str) -> None:
    assert shown(read_network([wanted])) == set()


@pytest.mark.usefixtures("adapters")
def test_what_is_not_in_use_is_this_machine_all_the_same() -> None:
    network = read_network(["eth0"])
    for own in ("127.0.0.1", "::1", "10.0.0.7", "fd00:1::7", "169.254.7.7", "192.168.1.10"):
        assert network.is_own(address(own)), own
    assert network.refusal(address("10.0.0.7")) is not None


@pytest.mark.usefixtures("adapters")
def test_what_is_wanted_and_not_there_is_told_as_safe_text() -> None:
    network = read_network(["eth0"])
    assert missing(network, ["eth0", "fe80::10", "eth9", "192.168.1.10"]) == ["eth9"]
    assert missing(network, ["wlan0", "a\x1b[31mb"]) == ["wlan0", "ab"]
    assert missing(network, []) == []


def test_an_operating_system_that_does_not_tell_is_a_transport_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ifaddr, "get_adapters", fail)
    with pytest.raises(TransportError, match=r"cannot be listed: Permission denied\.$"):
        read_network()


def test_the_address_that_the_rest_of_the_world_is_reached_from_comes_first() -> None:
    every = [*attached("docker0", 3, "10.0.0.1/8"), *attached("eth0", 2, "192.168.1.10/24")]
    assert str(Network(every).addresses[0]) == "10.0.0.1"
    assert str(Network(every, primary=address("192.168.1.10")).addresses[0]) == "192.168.1.10"


def test_a_first_address_that_is_not_in_use_changes_nothing() -> None:
    every = attached("eth0", 2, "192.168.1.10/24", "10.0.0.1/8", "fe80::10/64")
    for primary in (None, address("172.16.0.1"), address("10.0.0.1")):
        found = Network(every, primary=primary)
        assert list(map(str, found.addresses)) == ["10.0.0.1", "192.168.1.10", "fe80::10"]
        assert found == Network(every)


@pytest.mark.usefixtures("adapters")
def test_the_address_of_the_default_route_is_read_with_the_networks() -> None:
    assert str(read_network().addresses[0]) == "10.0.0.7"
    assert str(read_network(["eth0"]).addresses[0]) == "192.168.1.10"


class Socket:
    """A socket that reaches nothing."""

    def __init__(self, *_: Any) -> None:
        self.peer: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def connect(self, peer: tuple[str, int]) -> None:
        self.peer = peer

    def getsockname(self) -> tuple[str, int]:
        assert self.peer is not None
        assert address(self.peer[0]) in ipaddress.ip_network("192.0.2.0/24")
        return ("192.168.1.10", 1)


def test_the_default_route_is_found_out_with_an_address_that_nobody_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds: list[tuple[Any, ...]] = []

    def make(*kind: Any) -> Socket:
        kinds.append(kind)
        return Socket()

    monkeypatch.setattr("opencode_mcp_mdns.network.socket.socket", make)
    assert module._primary() == address("192.168.1.10")
    assert kinds == [(socket.AF_INET, socket.SOCK_DGRAM)]  # over UDP, to connect sends nothing


def test_without_a_default_route_there_is_no_such_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(Socket):
        def connect(self, peer: tuple[str, int]) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("opencode_mcp_mdns.network.socket.socket", Unreachable)
    assert module._primary() is None


def listen(*interfaces: str) -> str | None:
    (plugin,) = opencode_mcp_transports()
    assert plugin.announcing is not None
    return plugin.announcing(MDnsSettings(interfaces=interfaces)).listen


@pytest.mark.usefixtures("adapters")
def test_opencode_listens_on_one_address_if_just_that_is_named_and_else_on_all() -> None:
    assert listen("192.168.1.10") == "192.168.1.10"
    assert listen() == listen("eth0") == listen("192.168.1.10", "10.0.0.7") == "0.0.0.0"


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("absent", ["192.168.1.99", "127.0.0.1", "169.254.7.7"])
def test_nothing_can_be_announced_on_an_address_that_others_cannot_reach(absent: str) -> None:
    with pytest.raises(TransportError, match=rf"^MDNS_INTERFACES={absent} cannot be announced on: "):
        listen(absent)
