"""The networks that this machine is attached to, and which addresses may be connected to in them."""

import dataclasses
import ipaddress
import socket
from collections.abc import Collection, Sequence

import ifaddr

from opencode_mcp import TransportError, clean_line

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_TRANSLATED = [
    ipaddress.ip_network("64:ff9b::/96"),  # RFC 6052
    ipaddress.ip_network("64:ff9b:1::/48"),  # RFC 8215
    ipaddress.ip_network("2002::/16"),  # 6to4, RFC 3056
    ipaddress.ip_network("2001::/32"),  # Teredo, RFC 4380
]
"""IPv6 addresses that hold an IPv4 address, which is where packets would go in the end."""


@dataclasses.dataclass(frozen=True)
class Attached:
    """One address of one interface.

    Attributes:
        name: The interface's name.
        index: Its number, which is another one after it was unplugged.
        address: Its address with the network that is directly attached to it.
    """

    name: str
    index: int
    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Network:
    """The networks in use at one moment.

    Args:
        attached: The addresses of this machine that are in use.
        own: Further addresses of this machine.
        primary: The address from which it reaches the rest of the world, or None.
    """

    def __init__(
        self,
        attached: Collection[Attached],
        own: Collection[Address] = (),
        primary: Address | None = None,
    ) -> None:
        self.attached = frozenset(attached)
        self._primary = primary
        self._own = frozenset(own) | {one.address.ip for one in attached}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and (other.attached, other._own) == (self.attached, self._own)

    def __hash__(self) -> int:
        return hash(self.attached)

    @property
    def links(self) -> int:
        """How many interfaces there are in it."""
        return len({one.index for one in self.attached})

    @property
    def names(self) -> Sequence[str]:
        """The names of its interfaces."""
        return sorted({one.name for one in self.attached})

    @property
    def addresses(self) -> Sequence[Address]:
        """The addresses of this machine in it: the primary one first, IPv4 first, link-local ones last."""
        return sorted(
            {one.address.ip for one in self.attached},
            key=lambda one: (one != self._primary, one.version, one.is_link_local, int(one)),
        )

    @property
    def for_zeroconf(self) -> list[str | int]:
        """The same as python-zeroconf wants it: IPv4 addresses, and indexes of interfaces with IPv6.

        The important one first, since the operating system may limit their number: Linux to 20 of IPv4.
        """
        v4 = [str(address) for address in self.addresses if address.version == 4]
        v6 = {one.index for one in self.attached if one.address.version == 6}
        return [*v4, *sorted(v6)]

    def is_own(self, address: Address) -> bool:
        """Whether it is an address of this machine."""
        return _without_scope(address) in self._own

    def is_on_link(self, sender: str) -> bool:
        """Whether a packet may come from a directly attached network, by its sender's address."""
        bare = _without_scope(ipaddress.ip_address(sender))
        bare = getattr(bare, "ipv4_mapped", None) or bare  # as a socket for both families says it
        return any(bare in one.address.network for one in self.attached)

    def scoped(self, address: Address) -> Address:
        """Give a link-local IPv6 address the name of the interface that it is on, if there is only one.

        The number that it may come with becomes the name, which is what people know.
        """
        if not isinstance(address, ipaddress.IPv6Address) or not address.is_link_local:
            return address
        scope = address.scope_id
        names = {
            one.name
            for one in self.attached
            if one.address.version == 6 and one.address.is_link_local
            if scope is None or scope in (one.name, str(one.index))
        }
        bare = str(_without_scope(address))
        return ipaddress.IPv6Address(f"{bare}%{names.pop()}" if len(names) == 1 else bare)

    def refusal(self, address: Address) -> str | None:
        """Return why nobody may send us to `address`, which must be `scoped`; or None.

        Whoever is on the network can advertise any address, so that we would connect to it in their stead.
        """
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None or any(address in network for network in _TRANSLATED):
                return "holds an IPv4 address"
            if address.is_link_local and address.scope_id is None:
                return "does not say on which link it is"
        elif address.is_link_local:
            return "is link-local"
        if address.is_unspecified:
            return "is no address of a host"
        if address.is_multicast:
            return "is a multicast address"
        bare = _without_scope(address)
        at = [one for one in self.attached if bare in one.address.network]
        if scope := getattr(address, "scope_id", None):
            at = [one for one in at if one.name == scope]
        if address.is_loopback and not at:
            return "is a loopback address"
        if not at:
            return "is in no network that this machine is attached to"
        if any(_is_reserved(bare, one) for one in at):
            return "is no address of a host"
        return None


def _is_reserved(address: Address, at: Attached) -> bool:
    """Whether it is the broadcast address of its network, or the network's own."""
    network = at.address.network
    return (
        network.version == 4
        and network.prefixlen < 31
        and address in (network.broadcast_address, network.network_address)
    )


def _without_scope(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return ipaddress.IPv6Address(int(address))
    return address


def read_network(wanted: Collection[str] = ()) -> Network:
    """Read the networks of this machine; it takes a fraction of a millisecond.

    Args:
        wanted: Names or addresses of the interfaces to use; all but loopback if there are none.

    Raises:
        TransportError: If the operating system does not tell.
    """
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError as error:
        raise TransportError(f"The network interfaces cannot be listed: {error.strerror}.") from None
    everything = [
        Attached(adapter.name, adapter.index or 0, _interface(ip))
        for adapter in adapters
        for ip in adapter.ips
    ]
    return Network(
        [one for one in everything if _is_wanted(one, wanted)],
        own={one.address.ip for one in everything},
        primary=_primary(),
    )


def _primary() -> Address | None:
    """Return the address that the default route is used with: others belong to containers, for example."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # an address for examples; for UDP this sends nothing
        except OSError:
            return None
        return ipaddress.ip_address(sock.getsockname()[0])


def _interface(ip: ifaddr.IP) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
    return ipaddress.ip_interface(f"{address}/{ip.network_prefix}")


def _is_wanted(one: Attached, wanted: Collection[str]) -> bool:
    address = one.address.ip
    if address.is_loopback or (address.version == 4 and address.is_link_local):
        return False
    return not wanted or one.name in wanted or str(address) in wanted


def links_up() -> frozenset[str]:
    """Return the names of the interfaces that have a link at present."""
    import psutil

    return frozenset(name for name, stats in psutil.net_if_stats().items() if stats.isup)


def missing(network: Network, wanted: Collection[str]) -> Sequence[str]:
    """Return which of the wanted interfaces are not there, as safe text."""
    there = {one.name for one in network.attached} | {str(one.address.ip) for one in network.attached}
    return [clean_line(one, 64) for one in wanted if one not in there]
