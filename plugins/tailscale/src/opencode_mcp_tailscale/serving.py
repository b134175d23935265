"""What this machine serves to the tailnet: the index port, which the announcers of the machine share.

Each announcer has a session of tailscaled's, and with it a part of the serve config that tailscaled removes
when the announcer ends, however that happens. Into its part each writes what it announces, under a host name
that nobody can ask for. One of them besides serves the index port, for all: there can be only one. It is
found in the config too, so the announcers need nothing else to know of each other, be they of different users
or in containers.
"""

import copy
import dataclasses
import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from opencode_mcp_tailscale.index import PATH, Entry, read_entry, write_index, written
from opencode_mcp_tailscale.loose import items, mapping, parsed, text, texts

_MARK = "opencode-mcp.invalid"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """What one announcer of this machine announces.

    Attributes:
        session: The id of its session.
        entry: The instance; its `url` says where tailscaled finds it.
        allowed: Who may be told of it, login names in small letters and tags; nobody in it means everybody.
    """

    session: str
    entry: Entry
    allowed: Sequence[str] = ()


def members(config: Mapping[str, Any], port: int) -> Sequence[Member]:
    """Return what the announcers of this machine announce at an index port."""
    found: dict[str, Member] = {}
    for session, part in sorted(mapping(config.get("Foreground")).items()):
        handlers = _handlers(part, f"{_MARK}:{port}")
        told = mapping(parsed(text(mapping(handlers.get("/")).get("Text"))))
        entry = read_entry(told)
        if entry is None or entry.id in found:
            continue
        url = text(mapping(handlers.get(entry.path)).get("Proxy"))
        allowed = texts(told.get("allow"))
        # If it is not understood who may know, nobody is told, rather than everybody.
        understood = "allow" not in told or (all(allowed) and 0 < len(allowed) == len(items(told["allow"])))
        if not _is_url(url) or not understood:
            continue
        entry = dataclasses.replace(entry, url=url)
        found[entry.id] = Member(session=session, entry=entry, allowed=allowed)
    return list(found.values())


def holder(config: Mapping[str, Any], port: int) -> str:
    """Return the session that serves the index at a port; empty if none does."""
    for session, part in mapping(config.get("Foreground")).items():
        if str(port) in mapping(mapping(part).get("TCP")) and _index_handlers(part, port):
            return session
    return ""


def serves(config: Mapping[str, Any], port: int, session: str, entry: Entry) -> bool:
    """Whether a session serves an instance at an index port."""
    handlers = _index_handlers(mapping(config.get("Foreground")).get(session), port)
    return mapping(handlers.get(entry.path)).get("Proxy") == entry.url


def obstacle(config: Mapping[str, Any], port: int) -> str:
    """Say why an index port cannot be used: the user serves something else there; or nothing."""
    taken = (
        f"The index port {port} is used by another serve config of this machine (`tailscale serve status`)"
    )
    advice = "Set TAILSCALE_INDEX_PORT, on all machines."
    for part in [config, *map(mapping, mapping(config.get("Foreground")).values())]:
        for opened, on in mapping(part.get("AllowFunnel")).items():
            if on is True and opened.rpartition(":")[2] == str(port):
                return f"The index port {port} is open to the internet through Funnel. {advice}"
        if str(port) in mapping(part.get("TCP")) and (part is config or not _index_handlers(part, port)):
            return f"{taken}. {advice}"
    return ""


def part_of(member: Member, port: int) -> dict[str, Any]:
    """Return what an announcer that does not serve the index writes."""
    told = {**written(member.entry), **({"allow": list(member.allowed)} if member.allowed else {})}
    handlers = {"/": {"Text": json.dumps(told)}, member.entry.path: {"Proxy": member.entry.url}}
    return {"Web": {f"{_MARK}:{port}": {"Handlers": handlers}}}


def part_of_holder(
    member: Member, everybody: Sequence[Member], *, port: int, name: str, index: str
) -> dict[str, Any]:
    """Return what an announcer writes that serves the index.

    Args:
        member: What it announces itself.
        everybody: What all announcers of the machine announce.
        port: The index port.
        name: The machine's name on the tailnet.
        index: The URL at which this process tells who may know of what; empty if everybody may.
    """
    handlers: dict[str, Any] = {one.entry.path: {"Proxy": one.entry.url} for one in everybody}
    handlers[PATH] = {"Proxy": index} if index else {"Text": write_index(one.entry for one in everybody)}
    part = part_of(member, port)
    part["TCP"] = {str(port): {"HTTP": True}}
    part["Web"][f"{name}:{port}"] = {"Handlers": handlers}
    return part


def changed(config: Mapping[str, Any], session: str, part: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the config with another part for a session, or with none; all else stays as it is."""
    new = copy.deepcopy(dict(config))
    foreground = new["Foreground"] = mapping(new.get("Foreground"))
    if part is None:
        foreground.pop(session, None)
    else:
        foreground[session] = part
    return new


def _index_handlers(part: object, port: int) -> dict[str, Any]:
    """Return what an announcer that serves the index serves; nothing if it is somebody else's."""
    if not _handlers(part, f"{_MARK}:{port}"):
        return {}
    for name in mapping(mapping(part).get("Web")):
        if name.rpartition(":")[2] == str(port):
            handlers = _handlers(part, name)
            if PATH in handlers:
                return handlers
    return {}


def _handlers(part: object, name: str) -> dict[str, Any]:
    return mapping(mapping(mapping(mapping(part).get("Web")).get(name)).get("Handlers"))


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        address, port = ipaddress.ip_address(parts.hostname or ""), parts.port
    except ValueError:
        return False
    host = f"[{address}]" if address.version == 6 else str(address)
    return bool(port) and url == f"http://{host}:{port}"
