"""Which addresses somebody on the network may send us to, and what the networks of this machine are."""

import ipaddress
import socket
import time
from types import SimpleNamespace
from typing import Any, Self

import anyio
import ifaddr
import pytest

from mdns.unit_parts import address, attached, lan
from opencode_mcp import TransportError
from opencode_mcp_mdns import MDnsSettings, opencode_mcp_transports
from opencode_mcp_mdns import network as module
from opencode_mcp_mdns.network import Network, missing, read_network
from opencode_mcp_mdns.session import Session, _OnLink

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


def test_zeroconf_gets_the_address_that_matters_first() -> None:
    """The operating system may take no more than the first 20."""
    many = attached("docker0", 3, *[f"10.0.{number}.1/24" for number in range(30)])
    network = Network([*many, *attached("eth0", 2, "192.168.1.10/24")], primary=address("192.168.1.10"))
    assert network.for_zeroconf[0] == "192.168.1.10"
    assert len(network.for_zeroconf) == 31


def test_links_are_counted_and_not_addresses() -> None:
    assert lan().links == 1
    assert Network([]).links == 0
    assert Network([*lan().attached, *attached("wlan0", 3, "192.168.1.11/24")]).links == 2


ON_LINK = ["192.168.1.20", "192.168.1.10", "::ffff:192.168.1.20", "fe80::20", "fe80::20%eth0", "fd00:1::20"]
OFF_LINK = [
    "10.0.0.1",
    "8.8.8.8",
    "::ffff:10.0.0.1",
    "192.168.2.20",
    "fd00:2::20",
    "2606:4700::1111",
    "127.0.0.1",
]


@pytest.mark.parametrize("sender", ON_LINK)
def test_a_packet_of_an_attached_network_is_on_link(sender: str) -> None:
    assert lan().is_on_link(sender)
    assert not Network([]).is_on_link(sender)


@pytest.mark.parametrize("sender", OFF_LINK)
def test_a_packet_from_elsewhere_is_not(sender: str) -> None:
    assert not lan().is_on_link(sender)


def test_networks_are_others_if_an_address_of_this_machine_is_that_is_not_in_use() -> None:
    every = attached("eth0", 2, "192.168.1.10/24")
    assert Network(every, own=[address("10.0.0.7")]) != Network(every)
    assert Network(every, own=[address("192.168.1.10")]) == Network(every)


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


# The session, without a socket

QUERY, RESPONSE = bytes(12), b"\x00\x00\x84" + bytes(9)


class Protocol:
    """Zeroconf's own: notes what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, ...]] = []

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.got.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.got.append((exc,))

    def connection_lost(self, exc: Exception | None) -> None:
        self.got.append((exc,))


class Transport:
    """A socket's: has a protocol, which may be another later."""

    def __init__(self) -> None:
        self.protocol: Any = Protocol()

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol


class Zeroconf:
    """Takes the place of zeroconf: notes which networks it is to use, and can use some."""

    def __init__(self) -> None:
        self.updates: list[list[str | int]] = []
        self.error: Exception | None = None
        self.usable: set[str] = {"192.168.1.10"}
        self.readers: list[Any] = [SimpleNamespace(transport=Transport())]
        self.engine = self
        self.zeroconf = self

    @property
    def senders(self) -> list[Any]:
        return [SimpleNamespace(sock_name=(one, 5353)) for one in self.usable]

    async def async_update_interfaces(self, interfaces: list[str | int]) -> None:
        self.updates.append(interfaces)
        if self.error is not None:
            raise self.error


def session(network: Network | None = None) -> tuple[Session, Zeroconf]:
    fake: Any = Zeroconf()
    return Session(fake, network or lan(), lan), fake


@pytest.mark.parametrize(
    ("data", "sender", "taken"),
    [
        (RESPONSE, ("192.168.1.20", 5353), True),
        (RESPONSE, ("fe80::20%eth0", 5353, 0, 2), True),
        (RESPONSE, ("::ffff:192.168.1.20", 5353, 0, 0), True),
        (RESPONSE, ("192.168.1.20", 5354), False),
        (RESPONSE, ("192.168.1.20", 40_000), False),
        (RESPONSE, ("10.0.0.1", 5353), False),
        (RESPONSE, ("2606:4700::1111", 5353, 0, 0), False),
        (QUERY, ("192.168.1.20", 5353), True),
        (QUERY, ("192.168.1.20", 40_000), True),  # of a simple resolver, RFC 6762, section 6.7
        (QUERY, ("10.0.0.1", 5353), False),
        (QUERY, ("::ffff:10.0.0.1", 5353, 0, 0), False),
        (b"", ("192.168.1.20", 5353), True),
        (b"\x00\x00", ("10.0.0.1", 5353), False),
    ],
)
@pytest.mark.anyio
async def test_only_what_comes_from_the_link_is_heard(
    data: bytes, sender: tuple[Any, ...], taken: bool
) -> None:
    inner = Protocol()
    _OnLink(inner, session()[0]).datagram_received(data, sender)
    assert inner.got == ([(data, sender)] if taken else [])


@pytest.mark.anyio
async def test_what_else_happens_to_a_socket_is_told_as_it_is() -> None:
    inner = Protocol()
    link = _OnLink(inner, session()[0])
    error = OSError("gone")
    link.error_received(error)
    link.connection_lost(None)
    assert inner.got == [(error,), (None,)]


@pytest.mark.anyio
async def test_each_socket_gets_the_filter_once_later_ones_too() -> None:
    one, fake = session()
    inner = fake.readers[0].transport.protocol
    for _ in range(3):
        await one.use(lan())
    assert fake.readers[0].transport.protocol._inner is inner
    fake.readers.append(SimpleNamespace(transport=Transport()))
    await one.use(lan())
    assert all(isinstance(it.transport.protocol, _OnLink) for it in fake.readers)
    assert not isinstance(fake.readers[1].transport.protocol._inner, _OnLink)


@pytest.mark.anyio
async def test_the_filter_goes_by_the_networks_at_present() -> None:
    one, fake = session()
    await one.use(lan())
    link = fake.readers[0].transport.protocol
    await one.use(Network(attached("eth0", 2, "10.0.0.1/8")))
    link.datagram_received(RESPONSE, ("192.168.1.20", 5353))
    link.datagram_received(RESPONSE, ("10.0.0.2", 5353))
    assert [addr[0] for _, addr in link._inner.got] == ["10.0.0.2"]


@pytest.mark.anyio
async def test_what_is_gone_is_left_before_what_is_new_is_used() -> None:
    one, fake = session(Network(attached("eth0", 2, "192.168.1.10/24", "10.0.0.1/8")))
    told: list[Network] = []

    async def before(network: Network) -> None:
        assert fake.updates == []
        told.append(network)

    one.before = before
    other = Network(attached("eth0", 2, "192.168.1.10/24", "172.16.0.1/16"))
    await one.use(other)
    assert told == [other]
    assert fake.updates == [["192.168.1.10"], ["172.16.0.1", "192.168.1.10"]]
    fake.updates.clear()
    await one.use(other)
    assert told == [other]
    assert fake.updates == [["172.16.0.1", "192.168.1.10"]]  # what could not be used before


@pytest.mark.anyio
@pytest.mark.parametrize("error", [OSError(19, "No such device"), RuntimeError("No adapter")])
async def test_networks_that_cannot_be_used_are_tried_again(error: Exception) -> None:
    one, fake = session()
    fake.error = error
    await one.use(lan())
    fake.error = None
    await one.use(lan())
    assert fake.updates == [lan().for_zeroconf] * 2


@pytest.mark.anyio
async def test_addresses_on_which_nothing_is_heard_are_told_once_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = Network(attached("eth0", 2, "192.168.1.10/24", "10.0.0.1/8", "fe80::10/64"))
    one, fake = session(network)
    for _ in range(3):
        await one.use(network)
    (told,) = caplog.messages
    assert told.startswith("Multicast DNS does not work on 10.0.0.1: ")
    assert "MDNS_INTERFACES" in told
    fake.usable.add("10.0.0.1")
    await one.use(network)
    assert len(caplog.messages) == 1
    fake.usable.clear()
    await one.use(network)
    assert "10.0.0.1, 192.168.1.10" in caplog.messages[1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("seconds", "noticed"), [(3600, True), (-3600, True), (11, True), (9, False), (0, False)]
)
async def test_a_clock_that_jumps_means_that_this_machine_slept(
    monkeypatch: pytest.MonkeyPatch, seconds: float, noticed: bool
) -> None:
    one, _ = session()
    slept: list[None] = []
    one.look_at_clock()
    one.slept = lambda: slept.append(None)
    one.look_at_clock()
    assert slept == []
    now = time.time
    monkeypatch.setattr("opencode_mcp_mdns.session.time", SimpleNamespace(time=lambda: now() + seconds))
    one.look_at_clock()
    one.look_at_clock()
    assert len(slept) == noticed


@pytest.mark.anyio
async def test_a_clock_that_jumps_before_anybody_listens_is_no_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, _ = session()
    now = time.time
    monkeypatch.setattr("opencode_mcp_mdns.session.time", SimpleNamespace(time=lambda: now() + 3600))
    one.look_at_clock()
    one.slept = lambda: pytest.fail("it slept before")
    one.look_at_clock()


@pytest.mark.anyio
async def test_the_networks_are_used_at_every_look_and_told_of_when_they_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("opencode_mcp_mdns.session._CHECK_SECONDS", 0.001)
    monkeypatch.setattr("opencode_mcp_mdns.session.links_up", frozenset)
    other = Network(attached("eth0", 2, "10.0.0.1/8"))
    networks = [lan(), lan(), other]
    changes: list[Network] = []
    fake: Any = Zeroconf()
    one = Session(fake, lan(), lambda: networks.pop(0) if len(networks) > 1 else networks[0])
    async with anyio.create_task_group() as group:
        group.start_soon(one.follow, lambda: changes.append(one.network))
        with anyio.fail_after(5):
            while len(fake.updates) < 6:
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    assert changes == [other]
    assert fake.updates[:5] == [lan().for_zeroconf, lan().for_zeroconf, [], ["10.0.0.1"], ["10.0.0.1"]]
