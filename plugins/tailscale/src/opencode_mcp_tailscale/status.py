"""What tailscaled says of this machine and of the others on its tailnet, as far as it is understood."""

import dataclasses
import ipaddress
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Self

from opencode_mcp import TransportError, clean_line
from opencode_mcp_tailscale.loose import mapping, number, parsed, text, texts

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_NODE_ID = re.compile(r"[!-~]{1,128}")
_MULLVAD = ".mullvad.ts.net"
_RUNNING, _NEEDS_LOGIN = "Running", "NeedsLogin"
_NETWORKS = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))
"""Where all addresses of tailnets are, those of headscale too."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine on the tailnet.

    Attributes:
        id: Its stable node id; it stays when its name, address or key changes.
        name: Its name in MagicDNS without the dot at the end, given by the control plane; may be empty.
        user: The login name of its owner; empty if it is tagged, or not known.
        user_id: The owner's id.
        tags: Its tags.
        addresses: On the tailnet, the one to be used first: IPv4, unless `choose` knows better.
        online: Whether it is connected to the control plane.
        expired: Whether its key has expired.
        shared: Whether it is of another tailnet, and shared with this user.
        sharee: Whether it is here only since something is shared with its user.
        mullvad: Whether it is a server of Mullvad.
        busy: Whether there is traffic with it, so that it answers soon.
    """

    id: str
    name: str = ""
    user: str = ""
    user_id: int = 0
    tags: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()
    online: bool = False
    expired: bool = False
    shared: bool = False
    sharee: bool = False
    mullvad: bool = False
    busy: bool = False

    @property
    def short_name(self) -> str:
        """The first part of its name; the id if it has none."""
        return self.name.partition(".")[0] or self.id

    @property
    def owner(self) -> str:
        """Whose it is, in words for a person."""
        return clean_line(self.user or ", ".join(self.tags), 200) or f"user {self.user_id}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """How tailscaled stands.

    Attributes:
        state: `Running`, or in one word what is missing for that.
        login_url: Where to log in, or empty.
        kernel: Whether the machine has a network interface on the tailnet; else tailscaled is in user space.
        own: This machine; None while it has no node.
        peers: The others.
        malformed: How many others are left out because what is said of them is not understood.
    """

    state: str
    login_url: str = ""
    kernel: bool = False
    own: Machine | None = None
    peers: Sequence[Machine] = ()
    malformed: int = 0

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Read the answer of tailscaled.

        Raises:
            TransportError: It is not understood.
        """
        document = mapping(parsed(body))
        state = text(document.get("BackendState"))
        if not state:
            raise TransportError("tailscaled tells its status in words that are not understood.")
        users = _users(document.get("User"))
        # In its own words, since the suffix of the tailnet is no longer told otherwise by new versions.
        suffix = _suffix(document)
        found = [_machine(one, users, suffix) for one in mapping(document.get("Peer")).values()]
        own = _machine(document.get("Self"), users, suffix)
        if own is not None and state == _NEEDS_LOGIN and _is_past(mapping(document.get("Self"))):
            own = dataclasses.replace(own, expired=True)
        return cls(
            state=clean_line(state, 40),
            login_url=clean_line(text(document.get("AuthURL")), 300),
            kernel=document.get("TUN") is True,
            own=own,
            peers=[one for one in found if one is not None],
            malformed=sum(one is None for one in found),
        )

    @property
    def problem(self) -> str:
        """Why nobody can be reached on the tailnet, and what to do; or empty."""
        if self.own is not None and self.own.expired and self.state in (_RUNNING, _NEEDS_LOGIN):
            mend = f"log in at {self.login_url}" if self.login_url else "run `tailscale up --force-reauth`"
            return f"The key of this machine has expired: {mend}."
        if self.state == _RUNNING:
            return "" if self.own else "tailscaled does not say which machine this is."
        if self.state not in _STATES:
            return f"Tailscale is not running: its state is {self.state}."
        return _STATES[self.state].format(f"at {self.login_url}" if self.login_url else "with `tailscale up`")


_STATES = {
    _NEEDS_LOGIN: "Tailscale is logged out: log in {}.",
    "NeedsMachineAuth": "This machine waits to be approved by an administrator of the tailnet.",
    "Stopped": "Tailscale is stopped: run `tailscale up`.",
    "Starting": "Tailscale is starting.",
    "NoState": "Tailscale is starting.",
    "InUseOtherUser": "Another user of this machine uses Tailscale.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Who:
    """Who has an address.

    Attributes:
        user: The login name; empty if the machine is tagged.
        tags: The machine's tags.
        node_id: The machine's stable node id.
        capabilities: What the tailnet's grants let it do towards this machine.
    """

    user: str
    tags: tuple[str, ...]
    node_id: str = ""
    capabilities: frozenset[str] = frozenset()

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Read the answer of tailscaled; what is not understood is nobody."""
        told = mapping(parsed(body))
        node = mapping(told.get("Node"))
        tags = texts(node.get("Tags"))
        login = text(mapping(told.get("UserProfile")).get("LoginName"))
        return cls(
            user="" if tags else login,
            tags=tags,
            node_id=text(node.get("StableID")),
            capabilities=frozenset(mapping(told.get("CapMap"))),
        )


def login_key(login: str) -> str:
    """Return what is equal of login names that mean the same: ASCII letters may differ in their case."""
    return "".join(one.lower() if one.isascii() else one for one in login)


def _machine(found: object, users: Mapping[int, str], suffix: str) -> Machine | None:
    told = mapping(found)
    known = text(told.get("ID"))
    if not _NODE_ID.fullmatch(known):
        return None
    name = text(told.get("DNSName")).rstrip(".").lower()
    if not _HOST_NAME.fullmatch(name):
        name = ""
    tags = texts(told.get("Tags"))
    user = number(told.get("UserID"))
    sharer = number(told.get("AltSharerUserID"))
    return Machine(
        id=known,
        name=name,
        user="" if tags else users.get(user, ""),
        user_id=user,
        tags=tags,
        addresses=_addresses(told.get("TailscaleIPs")),
        # A machine that is not in the network map is known from before only.
        online=told.get("Online") is True and told.get("InNetworkMap") is not False,
        expired=told.get("Expired") is True,
        shared=bool(sharer) or bool(suffix and name and not name.endswith(f".{suffix}")),
        sharee=told.get("ShareeNode") is True,
        mullvad=name.endswith(_MULLVAD),
        busy=told.get("Active") is True or bool(text(told.get("CurAddr"))),
    )


def _is_past(told: Mapping[str, Any]) -> bool:
    """Whether the time at which a key expires is over, by this machine's clock."""
    try:
        expiry = datetime.fromisoformat(text(told.get("KeyExpiry")))
    except ValueError:
        return False
    # In the year 1, as Go writes no time, it never does.
    return expiry.year > 1 and expiry.tzinfo is not None and expiry < datetime.now(UTC)


def _addresses(found: object) -> tuple[Address, ...]:
    usable = [address for address in map(_address, texts(found)) if address is not None]
    return tuple(sorted(usable, key=lambda address: address.version))


@lru_cache(8192)  # they stay the same from one status to the next, and take half of the time to read
def _address(told: str) -> Address | None:
    try:
        address = ipaddress.ip_address(told)
    except ValueError:
        return None
    # A zone can be any text.
    return address if "%" not in told and any(address in network for network in _NETWORKS) else None


def _suffix(document: Mapping[str, Any]) -> str:
    current = text(mapping(document.get("CurrentTailnet")).get("MagicDNSSuffix"))
    return (current or text(document.get("MagicDNSSuffix"))).strip(".").lower()


def _users(found: object) -> Mapping[int, str]:
    profiles = map(mapping, mapping(found).values())
    return {number(one.get("ID")): text(one.get("LoginName")) for one in profiles}
