"""What an advertisement says: anybody's, whatever it holds."""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo

from opencode_mcp import Route, clean_line
from opencode_mcp_mdns import proof
from opencode_mcp_mdns.network import Address, Network
from opencode_mcp_mdns.settings import MDnsSettings

OURS = "_opencode._tcp"
GENERIC = "_http._tcp"

DOMAIN = ".local."
TXT_VERSION = "1"
MOST_ADDRESSES = 4
"""Of one service; more are neither announced nor asked."""

_TXT_BYTES = 2_048
_LABEL_BYTES = 63  # RFC 1035, section 2.3.4
_NAME_BYTES = 253
_ADDRESSES_LOOKED_AT = 512
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What is taken for an id."""

_GENERIC_NAME = re.compile(r"opencode-([1-9][0-9]{0,4})")


class UnusableError(Exception):
    """An advertisement that cannot be used; `str(error)` says why, as a clause about `it`."""


class Place(NamedTuple):
    """An address and a port: what an instance is, once it has been verified."""

    address: Address
    port: int

    @property
    def host(self) -> str:
        """The address as it stands in a URL."""
        return f"[{self.address}]" if self.address.version == 6 else str(self.address)

    @property
    def url(self) -> str:
        """Where it is to be asked."""
        return f"http://{self.host}:{self.port}"

    @property
    def route(self) -> Route:
        """How it is asked: without the scope of a link-local address in the Host header."""
        if "%" not in self.host:
            return Route(base_url=self.url)
        bare = self.host.partition("%")[0]
        return Route(base_url=self.url, headers={"host": f"{bare}]:{self.port}"})

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advert:
    """One advertised service that may be used; all of it is safe text.

    Attributes:
        id: The id in our own TXT record; empty for others, a bare OpenCode for example.
        name: What it calls itself; empty for a bare OpenCode, whose name is but its port.
        host: The machine it says it runs on.
        version: OpenCode's version.
        directory: The project, or its last folder.
        places: Where it may be, at most four.
        proven_until: Until when it has proved the secret, in seconds since the epoch; None if it has not.
        left_out: Why some of its addresses are not among `places`.
    """

    id: str = ""
    name: str = ""
    host: str = ""
    version: str = ""
    directory: str = ""
    places: Sequence[Place] = ()
    proven_until: float | None = None
    left_out: str = ""

    @property
    def proven(self) -> bool:
        """Whether it proved the secret."""
        return self.proven_until is not None

    @property
    def expired(self) -> bool:
        """Whether it proved the secret so long ago that this says nothing any more."""
        return self.proven_until is not None and self.proven_until < time.time()


def service_types(settings: MDnsSettings) -> list[str]:
    """Return the types to look for, as DNS names."""
    return [one + DOMAIN for one in settings.types]


def label(type_: str, name: str) -> str:
    """Return the instance's own part of a service's name, as safe text."""
    return clean_line(_label(type_, name), 100)


def is_sendable(name: str) -> bool:
    """Whether a name fits into a packet again: one that holds no UTF-8 grows when it is read."""
    labels = [label.encode() for label in name.split(".")]
    return max(map(len, labels)) <= _LABEL_BYTES and sum(map(len, labels)) + len(labels) <= _NAME_BYTES


def is_candidate(type_: str, name: str) -> bool:
    """Whether a service may be an instance, by its name: of `_http._tcp` hardly anything is."""
    if not name.lower().endswith(f".{type_.lower()}"):
        return False
    return type_.lower() != GENERIC + DOMAIN or _GENERIC_NAME.fullmatch(_label(type_, name)) is not None


def read(info: AsyncServiceInfo, network: Network, settings: MDnsSettings) -> Advert:
    """Read what was resolved of a service.

    Raises:
        UnusableError: It cannot be used.
    """
    port = info.port or 0
    if not any(port in ports for ports in settings.port_ranges):
        raise UnusableError(f"its port {port} is none of MDNS_PORTS")
    bare = _GENERIC_NAME.fullmatch(_label(info.type, info.name))
    if info.type.lower() == GENERIC + DOMAIN and (bare is None or int(bare[1]) != port):
        raise UnusableError(f"its name does not fit its port {port}")
    if len(info.text) > _TXT_BYTES:
        raise UnusableError(f"its TXT record has {len(info.text)} bytes")
    txt = _text(info.properties)
    if txt.get("txtvers", TXT_VERSION) != TXT_VERSION:
        raise UnusableError("it is of a newer version than this opencode-mcp: update it")
    instance_id = txt.get("id", "")
    if instance_id and not ID.fullmatch(instance_id):
        raise UnusableError("its id is none")
    proven_until = _proven_until(info, port, txt, settings)
    signed = None if proven_until is None else txt[proof.ADDRESSES].split(",")
    places, left_out = _places(info, port, network, signed)
    named = "" if bare else label(info.type, info.name)
    return Advert(
        id=instance_id,
        name=_shown(txt, "name", 190) or named,
        host=_shown(txt, "host", 100),
        version=_shown(txt, "version", 40),
        directory=_shown(txt, "cwd", 300),
        places=places,
        proven_until=proven_until,
        left_out=left_out,
    )


def _proven_until(
    info: AsyncServiceInfo, port: int, txt: Mapping[str, str], settings: MDnsSettings
) -> float | None:
    if settings.key is None:
        return None
    if proof.PROOF in txt and proof.ADDRESSES in txt:
        try:
            return proof.check(settings.key, service=info.name, target=info.server or "", port=port, txt=txt)
        except proof.UnprovenError as error:
            raise UnusableError(str(error)) from None
    if settings.require_secret:
        raise UnusableError("it does not prove MDNS_SECRET, which MDNS_REQUIRE_SECRET demands")
    return None


def _places(
    info: AsyncServiceInfo, port: int, network: Network, signed: Sequence[str] | None
) -> tuple[Sequence[Place], str]:
    """Return where it may be, and why not elsewhere as well; of what was signed only that counts."""
    told = signed
    if told is None:
        told = info.parsed_scoped_addresses(IPVersion.All)[:_ADDRESSES_LOOKED_AT]
    addresses = (network.scoped(one) for one in map(_address, told) if one is not None)
    found: dict[Place, None] = {}
    reasons: dict[str, str] = {}
    for address in sorted(addresses, key=lambda one: (one.version, one.is_link_local)):
        reason = network.refusal(address)
        if reason is None and signed is not None and address.is_link_local and network.links > 1:
            reason = "is link-local, and a proof does not say on which link"
        if reason is None:
            found[Place(address, port)] = None
        else:
            reasons.setdefault(reason, str(address))
    left_out = "; ".join(f"its address {address} {reason}" for reason, address in reasons.items())
    return list(found)[:MOST_ADDRESSES], left_out or ("" if found else "it has no address")


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _text(properties: Mapping[bytes, bytes | None]) -> dict[str, str]:
    """Return a TXT record as text; keys have no case, and the first of the same counts (RFC 6763, 6.4)."""
    found: dict[str, str] = {}
    for key, value in properties.items():
        found.setdefault(key.decode(errors="replace").lower(), (value or b"").decode(errors="replace"))
    return found


def _shown(txt: Mapping[str, str], key: str, limit: int) -> str:
    return clean_line(txt.get(key, ""), limit)


def _label(type_: str, name: str) -> str:
    return name[: -len(type_) - 1]
