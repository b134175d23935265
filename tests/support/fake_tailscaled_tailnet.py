"""The tailnet that a fake tailscaled shows: its machines and users, as the LocalAPI writes them.

Written after `ipnstate` and `tailcfg` of tailscaled 1.103: what Go leaves out when empty is left out here,
and what it writes as `null` is `null`.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

NEVER = "0001-01-01T00:00:00Z"
SUFFIX = "tail1a2b.ts.net"
VERSION = "1.102.3-t0123456789-g0123456789"
STATES = (
    "NoState",
    "InUseOtherUser",
    "NeedsLogin",
    "NeedsMachineAuth",
    "Stopped",
    "Starting",
    "Running",
)
"""Each at the number that the bus has for it."""
_TAGGED = 1_000_000
_FIRST_USER = 11
_OWN_NUMBERS = 1 << 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A machine of the tailnet.

    Attributes:
        id: The stable id.
        node_id: The id that the bus uses.
        name: Its full name, without the dot at the end.
        user: The login of its owner; nobody's if it has tags.
        ips: Its addresses.
        host_name: What it calls itself.
        os: As Go names them, or `iOS`, `tvOS`, `android`.
        tags: Each with `tag:`.
        sharer: The login of who shared it into this tailnet, if it is of another.
        sharee: It is only here since somebody else may connect to us.
        last_seen: When it went; such as `2026-11-23T03:00:00Z`.
        key_expiry: When its key ends; None for never.
        mullvad: It is an exit node of Mullvad.
        routes: What it routes besides its addresses, as CIDR.
        capabilities: Its CapMap.
        extra: What its PeerStatus says besides this, or instead.
    """

    id: str
    node_id: int
    name: str
    user: str
    ips: tuple[str, ...]
    host_name: str
    os: str = "linux"
    tags: tuple[str, ...] = ()
    online: bool = True
    expired: bool = False
    sharer: str | None = None
    sharee: bool = False
    in_network_map: bool = True
    last_seen: str = NEVER
    key_expiry: str | None = None
    mullvad: bool = False
    exit_node_option: bool = False
    routes: tuple[str, ...] = ()
    capabilities: Row = dataclasses.field(default_factory=dict[str, Any])
    extra: Row = dataclasses.field(default_factory=dict[str, Any])

    @property
    def key(self) -> str:
        """Its public key."""
        return f"nodekey:{hashlib.sha256(self.id.encode()).hexdigest()}"

    @property
    def label(self) -> str:
        """The first part of its name."""
        return self.name.split(".")[0]

    @property
    def aliases(self) -> tuple[str, ...]:
        """Everything it can be dialled by."""
        return (*self.ips, self.name, f"{self.name}.", self.label)

    @property
    def prefixes(self) -> list[str]:
        """Its addresses as CIDR."""
        return [f"{ip}/{128 if ':' in ip else 32}" for ip in self.ips]


class Tailnet:
    """What there is, and how it is written.

    Attributes:
        me: This machine.
        peers: The others by their stable ids.
        suffix: What all their names end with.
        state: One of `STATES`.
        auth_url: Where to log in.
        tun: Whether it has a network interface.
        extra: What the status says besides.
    """

    def __init__(self, name: str, suffix: str, user: str) -> None:
        self.suffix = suffix
        self.peers: dict[str, Peer] = {}
        self.state = "Running"
        self.auth_url = ""
        self.tun = True
        self.extra: Row = {"FutureField": {"Unknown": [1, "two", None]}}
        self._users: dict[str, int] = {}
        self._count = 0
        self._written: dict[str, tuple[Peer, str]] = {}
        self._status: dict[bool, bytes] = {}
        self._net_map: Row | None = None
        self._by_alias: dict[str, Peer] | None = None
        number = zlib.crc32(name.encode())
        self.me = dataclasses.replace(
            self.new(name=name, user=user, id=f"n{name}CNTRL"),
            node_id=_OWN_NUMBERS + number,
            ips=(f"100.100.{number >> 8 & 255}.{number & 255}", f"fd7a:115c:a1e0:1::{number & 0xFFFF:x}"),
        )

    def new(
        self,
        *,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - as the field is called
        user: str | None = None,
        ips: Sequence[str] | None = None,
        tags: Sequence[str] = (),
        mullvad: bool = False,
        **fields: Any,
    ) -> Peer:
        """Make a machine that is not there yet; what is not said is made up."""
        number, self._count = self._count, self._count + 1
        if mullvad:
            name = f"{name or f'se-sto-wg-{number:03}'}.mullvad.ts.net"
            fields = {"exit_node_option": True, "routes": ("0.0.0.0/0", "::/0"), **fields}
        name = name or f"box{number}"
        full = (name if "." in name else f"{name}.{self.suffix}").rstrip(".")
        if ips is None:
            ips = (
                f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}",
                f"fd7a:115c:a1e0::{number:x}",
            )
        owner = "tagged-devices" if tags else user or self.me.user
        return Peer(
            id=id or f"n{number}CNTRL",
            node_id=number,
            name=full,
            user=owner,
            ips=tuple(ips),
            host_name=fields.pop("host_name", full.split(".")[0]),
            tags=tuple(tags),
            mullvad=mullvad,
            **fields,
        )

    def changed(self) -> None:
        """Forget what was written."""
        self._status.clear()
        self._net_map = None
        self._by_alias = None

    def find(self, host: str) -> Peer | None:
        """Find a peer by its key, an address, its name, or the first part of it."""
        if self._by_alias is None:
            self._by_alias = {
                alias: peer for peer in self.peers.values() for alias in (*peer.aliases, peer.key)
            }
        return self._by_alias.get(host)

    def user_id(self, login: str) -> int:
        """Return the number of a user."""
        if login == "tagged-devices":
            return _TAGGED
        return self._users.setdefault(login, _FIRST_USER + len(self._users))

    def profile(self, login: str) -> Row:
        """Describe a user."""
        shown = "Tagged Devices" if login == "tagged-devices" else login.split("@")[0].title()
        return {"ID": self.user_id(login), "LoginName": login, "DisplayName": shown}

    def status(self, *, peers: bool = True) -> bytes:
        """Write the Status."""
        if peers not in self._status:
            self._status[peers] = self._write_status(peers=peers)
        return self._status[peers]

    def as_row(self) -> Row:
        """Return the Status before it is written."""
        return json.loads(self.status())

    def node(self, peer: Peer) -> Row:
        """Describe a machine as the bus and `whois` do."""
        node: Row = {
            "ID": peer.node_id,
            "StableID": peer.id,
            "Name": f"{peer.name}.",
            "User": self.user_id(peer.user),
            "Key": peer.key,
            "Addresses": peer.prefixes,
            "AllowedIPs": [*peer.prefixes, *peer.routes],
            "HomeDERP": 1,
            "Hostinfo": {"OS": peer.os, "Hostname": peer.host_name},
            "Created": "2026-01-02T03:04:05Z",
            "Cap": 140,
            "Online": peer.online,
            "ComputedName": peer.label,
            "ComputedNameWithHost": peer.label,
        }
        if peer.sharer is not None:
            node["Sharer"] = self.user_id(peer.sharer)
        if peer.tags:
            node["Tags"] = list(peer.tags)
        if peer.capabilities:
            node["CapMap"] = peer.capabilities
        if peer.expired:
            node["Expired"] = True
        if peer.key_expiry:
            node["KeyExpiry"] = peer.key_expiry
        if not peer.online and peer.last_seen != NEVER:
            node["LastSeen"] = peer.last_seen
        return node

    def net_map(self) -> Row:
        """Describe everything, as tailscaled up to 1.96 did at every change."""
        if self._net_map is None:
            shown = [peer for peer in self.peers.values() if peer.in_network_map]
            users = {peer.user for peer in (self.me, *shown)}
            self._net_map = {
                "SelfNode": self.node(self.me),
                "NodeKey": self.me.key,
                "Name": f"{self.me.name}.",
                "Peers": [self.node(peer) for peer in shown],
                "DNS": {"Proxied": True, "CertDomains": None},
                "PacketFilter": None,
                "Domain": "example.com",
                "UserProfiles": {str(self.user_id(user)): self.profile(user) for user in sorted(users)},
            }
        return self._net_map

    @property
    def logged_in(self) -> bool:
        """Whether there is a network map."""
        return STATES.index(self.state) > STATES.index("NeedsMachineAuth")

    def _write_status(self, *, peers: bool) -> bytes:
        known = self.logged_in
        shown = list(self.peers.values()) if peers and known else []
        logins = {login for peer in (self.me, *shown) for login in (peer.user, peer.sharer) if login}
        around: Row = {
            "Version": VERSION,
            "TUN": self.tun,
            "BackendState": self.state,
            "HaveNodeKey": known,
            "AuthURL": self.auth_url,
            "TailscaleIPs": list(self.me.ips) if known else None,
            "Self": self._peer_status(self.me) if known else _stranger(self.me),
            "Health": None if self.state == "Running" else [f"Tailscale is {self.state}."],
            "MagicDNSSuffix": self.suffix if known else "",
            "CurrentTailnet": {
                "Name": "example.com",
                "MagicDNSSuffix": self.suffix,
                "MagicDNSEnabled": True,
            }
            if known
            else None,
            "CertDomains": None,
            "ExtraRecords": None,
            "User": {str(self.user_id(login)): self.profile(login) for login in sorted(logins)}
            if known
            else None,
            "ClientVersion": None,
            **self.extra,
        }
        if not known:
            del around["HaveNodeKey"]
        first = json.dumps(around, separators=(",\n\t", ": "))[:-1]
        if not shown:
            return f'{first},\n\t"Peer": null}}\n'.encode()
        return f'{first},\n\t"Peer": {{\n{",".join(map(self._peer_written, shown))}\n\t}}\n}}\n'.encode()

    def _peer_written(self, peer: Peer) -> str:
        before = self._written.get(peer.id)
        if before is None or before[0] is not peer:
            written = json.dumps(self._peer_status(peer), separators=(",\n\t\t\t", ": "))
            before = self._written[peer.id] = (peer, f'\t\t"{peer.key}": {written}')
        return before[1]

    def _peer_status(self, peer: Peer) -> Row:
        status: Row = {
            "ID": peer.id,
            "NodeID": peer.node_id,
            "PublicKey": peer.key,
            "HostName": peer.host_name,
            "DNSName": f"{peer.name}.",
            "OS": peer.os,
            "UserID": self.user_id(peer.user),
            "AltSharerUserID": self.user_id(peer.sharer) if peer.sharer else None,
            "TailscaleIPs": list(peer.ips) or None,
            "AllowedIPs": [*peer.prefixes, *peer.routes] or None,
            "Tags": list(peer.tags) or None,
            "PrimaryRoutes": list(peer.routes) or None,
            "CapMap": peer.capabilities or None,
            "ShareeNode": peer.sharee or None,
            "Expired": peer.expired or None,
            "KeyExpiry": peer.key_expiry,
            "Location": {"Country": "Sweden", "City": "Stockholm"} if peer.mullvad else None,
        }
        me = peer is self.me
        return {
            **{name: value for name, value in status.items() if value is not None or name == "TailscaleIPs"},
            "Addrs": ["192.0.2.7:41641"] if me else None,
            "CurAddr": "",
            "Relay": "fra",
            "PeerRelay": "",
            "RxBytes": 0,
            "TxBytes": 0,
            "Created": "2026-01-02T03:04:05Z",
            "LastWrite": NEVER,
            "LastSeen": peer.last_seen,
            "LastHandshake": NEVER,
            "Online": peer.online,
            "ExitNode": False,
            "ExitNodeOption": peer.exit_node_option,
            "Active": False,
            "PeerAPIURL": [f"http://{peer.ips[0]}:41112"] if peer.ips and ":" not in peer.ips[0] else None,
            "TaildropTarget": 0,
            "NoFileSharingReason": "",
            "InNetworkMap": peer.in_network_map,
            "InMagicSock": not me,
            "InEngine": False,
            **peer.extra,
        }


def _stranger(me: Peer) -> Row:
    """What a machine without a network map says of itself."""
    return {
        "ID": "",
        "NodeID": 0,
        "PublicKey": f"nodekey:{'0' * 64}",
        "HostName": me.host_name,
        "DNSName": "",
        "OS": me.os,
        "UserID": 0,
        "TailscaleIPs": None,
        "Addrs": [],
        "CurAddr": "",
        "Relay": "",
        "PeerRelay": "",
        "RxBytes": 0,
        "TxBytes": 0,
        "Created": NEVER,
        "LastWrite": NEVER,
        "LastSeen": NEVER,
        "LastHandshake": NEVER,
        "Online": False,
        "ExitNode": False,
        "ExitNodeOption": False,
        "Active": False,
        "PeerAPIURL": None,
        "TaildropTarget": 0,
        "NoFileSharingReason": "",
        "InNetworkMap": False,
        "InMagicSock": False,
        "InEngine": False,
    }
