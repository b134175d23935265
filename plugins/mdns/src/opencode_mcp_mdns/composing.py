"""Writes our own advertisement: what is told of an instance, in at most 400 bytes."""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from zeroconf.asyncio import AsyncServiceInfo

from opencode_mcp import Endpoint
from opencode_mcp_mdns import proof
from opencode_mcp_mdns.advert import DOMAIN, ID, MOST_ADDRESSES, OURS, TXT_VERSION
from opencode_mcp_mdns.network import Address
from opencode_mcp_mdns.settings import MDnsSettings

_TXT_BYTES = 400
_VALUE_BYTES = 200
_LABEL_BYTES = 51
"""Of a DNS label's 63, what the id and a number behind it leave for the name."""
_FORESEEN = 3
_HEX = re.compile(r"[0-9a-f]{6,}")


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
    target = f"opencode-{_digest(endpoint.id, 12)}{DOMAIN}"
    txt = {
        "txtvers": TXT_VERSION,
        "id": public_id(endpoint.id),
        "name": endpoint.name,
        "host": endpoint.hostname,
        "version": endpoint.labels.get("version", ""),
        "path": "/",
        "auth": "basic" if endpoint.labels.get("auth") == "basic" else "none",
        "cwd": endpoint.directory if settings.publish_cwd else folder_of(endpoint.directory),
    }
    type_ = OURS + DOMAIN
    name = name or f"{_instance_label(endpoint)}.{type_}"
    told = [str(address).partition("%")[0] for address in addresses[:MOST_ADDRESSES]]
    added: Mapping[str, str] = {}
    if settings.key is not None:
        where: Any = {"service": name, "target": target, "port": port, "addresses": told}
        txt = _fitting(txt, _TXT_BYTES - _size(proof.sign(settings.key, **where, txt={})))
        added = proof.sign(settings.key, **where, txt=txt)
    else:
        txt = _fitting(txt, _TXT_BYTES)
    return AsyncServiceInfo(
        type_,
        name,
        port=port,
        properties={**txt, **added},
        server=target,
        parsed_addresses=told,
    )


def folder_of(directory: str) -> str:
    """Return the last folder of a path, of whatever system."""
    kind = PureWindowsPath if "\\" in directory else PurePosixPath
    return kind(directory).name


def public_id(endpoint_id: str) -> str:
    """Return the id as it is advertised: itself, or if it is unusual a digest of it."""
    return endpoint_id if ID.fullmatch(endpoint_id) else _digest(endpoint_id, 32)


def other_name(name: str, attempt: int) -> str:
    """Return another name for a service whose name is taken; the last attempt cannot be foreseen."""
    instance, _, rest = name.partition(".")
    return f"{instance}-{secrets.token_hex(2) if attempt > _FORESEEN else attempt}.{rest}"


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
