"""What an advertisement says: written for our own, read from anybody's, whatever it holds."""

import dataclasses
import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo

from opencode_mcp import Endpoint, Route, clean_line
from opencode_mcp_mdns import proof
from opencode_mcp_mdns.network import Address, Network
from opencode_mcp_mdns.settings import MDnsSettings

OURS = "_opencode._tcp"
GENERIC = "_http._tcp"

_DOMAIN = ".local."
_TXT_VERSION = "1"
_TXT_BYTES = 400
_TXT_READ_BYTES = 2_048
_VALUE_BYTES = 200
_LABEL_BYTES = 52
"""Of a DNS label's 63, what the id and a number behind it leave for the name."""
_ADDRESSES = 4
_ADDRESSES_LOOKED_AT = 64
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX = re.compile(r"[0-9a-f]{6,}")
_GENERIC_NAME = re.compile(r"opencode-(\d{1,5})")


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
        auth: `basic` if it wants a password, `none` if not; empty if it does not say.
        directory: The project, or its last folder.
        places: Where it may be, at most four.
        proven: Whether it proved the secret.
        left_out: Why some of its addresses are not among `places`.
    """

    id: str = ""
    name: str = ""
    host: str = ""
    version: str = ""
    auth: str = ""
    directory: str = ""
    places: Sequence[Place] = ()
    proven: bool = False
    left_out: str = ""


def service_types(settings: MDnsSettings) -> list[str]:
    """Return the types to look for, as DNS names."""
    return [one + _DOMAIN for one in settings.types]


def label(type_: str, name: str) -> str:
    """Return the instance's own part of a service's name, as safe text."""
    return clean_line(_label(type_, name), 100)


def is_candidate(type_: str, name: str) -> bool:
    """Whether a service may be an instance, by its name: of `_http._tcp` hardly anything is."""
    if not name.lower().endswith(f".{type_.lower()}"):
        return False
    return type_.lower() != GENERIC + _DOMAIN or _GENERIC_NAME.fullmatch(_label(type_, name)) is not None


def read(info: AsyncServiceInfo, network: Network, settings: MDnsSettings) -> Advert:
    """Read what was resolved of a service.

    Raises:
        UnusableError: It cannot be used.
    """
    port = info.port or 0
    if not any(port in ports for ports in settings.port_ranges):
        raise UnusableError(f"its port {port} is none of MDNS_PORTS")
    bare = _GENERIC_NAME.fullmatch(_label(info.type, info.name))
    if info.type.lower() == GENERIC + _DOMAIN and (bare is None or int(bare[1]) != port):
        raise UnusableError(f"its name does not fit its port {port}")
    if len(info.text) > _TXT_READ_BYTES:
        raise UnusableError(f"its TXT record has {len(info.text)} bytes")
    txt = _text(info.properties)
    if txt.get("txtvers", _TXT_VERSION) != _TXT_VERSION:
        raise UnusableError("it is of a newer version than this opencode-mcp: update it")
    instance_id = txt.get("id", "")
    if instance_id and not _ID.fullmatch(instance_id):
        raise UnusableError("its id is none")
    proven = _proven(info, port, txt, settings)
    places, left_out = _places(info, port, network, txt[proof.ADDRESSES].split(",") if proven else None)
    named = "" if bare else label(info.type, info.name)
    return Advert(
        id=instance_id,
        name=_shown(txt, "name", 190) or named,
        host=_shown(txt, "host", 100),
        version=_shown(txt, "version", 40),
        auth=txt["auth"] if txt.get("auth") in ("none", "basic") else "",
        directory=_shown(txt, "cwd", 300),
        places=places,
        proven=proven,
        left_out=left_out,
    )


def _proven(info: AsyncServiceInfo, port: int, txt: Mapping[str, str], settings: MDnsSettings) -> bool:
    if settings.key is None:
        return False
    if proof.PROOF in txt and proof.ADDRESSES in txt:
        problem = proof.check(settings.key, target=info.server or "", port=port, txt=txt)
        if problem:
            raise UnusableError(problem)
        return True
    if settings.require_secret:
        raise UnusableError("it does not prove MDNS_SECRET, which MDNS_REQUIRE_SECRET demands")
    return False


def _places(
    info: AsyncServiceInfo, port: int, network: Network, signed: Sequence[str] | None
) -> tuple[Sequence[Place], str]:
    """Return where it may be, and why not elsewhere as well."""
    found: dict[Place, None] = {}
    reasons: dict[str, str] = {}
    told = info.parsed_scoped_addresses(IPVersion.All)[:_ADDRESSES_LOOKED_AT]
    addresses = (network.scoped(ipaddress.ip_address(one)) for one in told)
    for address in sorted(addresses, key=lambda one: (one.version, one.is_link_local)):
        if signed is not None and str(address).partition("%")[0] not in signed:
            reason = "is not among those it proved"
        else:
            reason = network.refusal(address)
        if reason is None:
            found[Place(address, port)] = None
        else:
            reasons.setdefault(reason, str(address))
    left_out = "; ".join(f"its address {address} {reason}" for reason, address in reasons.items())
    return list(found)[:_ADDRESSES], left_out or ("" if found else "it has no address")


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


def compose(
    endpoint: Endpoint, addresses: Sequence[Address], settings: MDnsSettings, *, name: str | None = None
) -> AsyncServiceInfo:
    """Make the advertisement of an instance.

    Args:
        endpoint: The instance; its URL tells the port.
        addresses: Where it listens, at most four count.
        settings: Say what is published of it.
        name: The service's name if it has one already, which may have been changed for being taken.
    """
    port = urlsplit(endpoint.url).port or 80
    target = f"opencode-{_digest(endpoint.id, 12)}{_DOMAIN}"
    folder = endpoint.directory if settings.publish_cwd else endpoint.directory.rstrip("/").rpartition("/")[2]
    txt = {
        "txtvers": _TXT_VERSION,
        "id": public_id(endpoint.id),
        "name": endpoint.name,
        "host": endpoint.hostname,
        "version": endpoint.labels.get("version", ""),
        "path": "/",
        "auth": "basic" if endpoint.labels.get("auth") == "basic" else "none",
        "cwd": folder,
    }
    told = [str(address).partition("%")[0] for address in addresses[:_ADDRESSES]]
    added: Mapping[str, str] = {}
    if settings.key is not None:
        room = proof.sign(settings.key, target=target, port=port, addresses=told, txt={})
        txt = _fitting(txt, _TXT_BYTES - _size(room))
        added = proof.sign(settings.key, target=target, port=port, addresses=told, txt=txt)
    else:
        txt = _fitting(txt, _TXT_BYTES)
    type_ = OURS + _DOMAIN
    return AsyncServiceInfo(
        type_,
        name or f"{_instance_label(endpoint)}.{type_}",
        port=port,
        properties={**txt, **added},
        server=target,
        parsed_addresses=told,
    )


def public_id(endpoint_id: str) -> str:
    """Return the id as it is advertised: itself, or if it is unusual a digest of it."""
    return endpoint_id if _ID.fullmatch(endpoint_id) else _digest(endpoint_id, 32)


def _instance_label(endpoint: Endpoint) -> str:
    """Return `<name>-<6 hex of the id>`; no dots, which would separate labels."""
    known = endpoint.id[:6] if _HEX.match(endpoint.id) else _digest(endpoint.id, 6)
    return f"{_cut(endpoint.name.replace('.', '-'), _LABEL_BYTES)}-{known}"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _fitting(txt: Mapping[str, str], limit: int) -> dict[str, str]:
    """Shorten what may be shortened until all of it fits."""
    fitting = {key: _cut(value, _VALUE_BYTES) for key, value in txt.items() if value}
    for key in ("cwd", "host", "version", "name"):
        excess = _size(fitting) - limit
        if excess > 0 and key in fitting:
            fitting[key] = _cut(fitting[key], max(len(fitting[key].encode()) - excess, 1))
    return fitting


def _size(txt: Mapping[str, str]) -> int:
    return sum(len(f"{key}={value}".encode()) + 1 for key, value in txt.items())


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")
