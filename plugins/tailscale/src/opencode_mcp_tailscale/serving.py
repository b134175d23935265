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
        allowed: Who may be told of it: login names in small letters, tags, capabilities; nobody in it means
            everybody.
    """

    session: str
    entry: Entry
    allowed: Sequence[str] = ()


def members(config: Mapping[str, Any], port: int) -> Sequence[Member]:
    """Return what the announcers of this machine announce at an index port.

    First what the index has already: where two have the same id, or there is no room for all, it stays.
    """
    served = _index_handlers(_part(config, holder(config, port)), port)
    found: list[Member] = []
    for session, part in sorted(mapping(config.get("Foreground")).items()):
        handlers = _handlers(part, f"{_MARK}:{port}")
        told = mapping(parsed(text(mapping(handlers.get("/")).get("Text"))))
        entry = read_entry(told)
        # A handler belongs to an id: nobody has that of another one.
        if entry is None or entry.path != f"/i/{entry.id}/":
            continue
        url = text(mapping(handlers.get(entry.path)).get("Proxy"))
        allowed = texts(told.get("allow"))
        # If it is not understood who may know, nobody is told, rather than everybody.
        understood = "allow" not in told or (all(allowed) and 0 < len(allowed) == len(items(told["allow"])))
        if not _is_url(url) or not understood:
            continue
        entry = dataclasses.replace(entry, url=url)
        found.append(Member(session=session, entry=entry, allowed=allowed))
    found.sort(key=lambda one: _target(served, one.entry.path) != one.entry.url)
    unique: dict[str, Member] = {}
    for one in found:
        unique.setdefault(one.entry.id, one)
    return list(unique.values())


def holder(config: Mapping[str, Any], port: int) -> str:
    """Return the session that serves the index at a port; empty if none does."""
    for session, part in mapping(config.get("Foreground")).items():
        if str(port) in mapping(mapping(part).get("TCP")) and _index_handlers(part, port):
            return session
    return ""


def serves(config: Mapping[str, Any], port: int, session: str, entry: Entry) -> bool:
    """Whether a session serves an instance at an index port, and names it if the index is for everybody."""
    handlers = _index_handlers(_part(config, session), port)
    named = _target(handlers, PATH) or entry.id in _ids(text(mapping(handlers.get(PATH)).get("Text")))
    return bool(named) and _target(handlers, entry.path) == entry.url


def has_room(config: Mapping[str, Any], port: int, entry: Entry) -> bool:
    """Whether an instance that is announced fits into the index, beside those that it has already."""
    return any(one.entry.id == entry.id for one in _fitting(members(config, port)))


def is_current(config: Mapping[str, Any], port: int, session: str) -> bool:
    """Whether a session serves those that are announced now, and no others."""
    handlers = _index_handlers(_part(config, session), port)
    present = {one.entry.path: one.entry.url for one in _fitting(members(config, port))}
    return present == {path: _target(handlers, path) for path in handlers if path != PATH}


def asked_at(config: Mapping[str, Any], port: int, session: str) -> str:
    """Return the URL at which a session is asked who may know of what; empty if everybody may."""
    return _target(_index_handlers(_part(config, session), port), PATH)


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
        everybody: What all announcers of the machine announce; the last are left out if there is no room.
        port: The index port.
        name: The machine's name on the tailnet.
        index: The URL at which this process tells who may know of what; empty if everybody may.
    """
    fitting = _fitting(everybody)
    handlers: dict[str, Any] = {one.entry.path: {"Proxy": one.entry.url} for one in fitting}
    handlers[PATH] = {"Proxy": index} if index else {"Text": write_index(one.entry for one in fitting)}
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


def without(config: Mapping[str, Any], member: Member, port: int) -> dict[str, Any]:
    """Return the config after an announcer that does not serve the index has left, from the index as well."""
    new = changed(config, member.session, None)
    if any(one.entry.id == member.entry.id for one in members(new, port)):
        return new
    handlers = _index_handlers(_part(new, holder(new, port)), port)
    handlers.pop(member.entry.path, None)
    told = mapping(parsed(text(mapping(handlers.get(PATH)).get("Text"))))
    if told:
        left = [one for one in items(told.get("instances")) if mapping(one).get("id") != member.entry.id]
        handlers[PATH] = {"Text": json.dumps({**told, "instances": left})}
    return new


def _fitting(everybody: Sequence[Member]) -> Sequence[Member]:
    """Return those for whom an index has room, the first before the others."""
    ids = _ids(write_index(one.entry for one in everybody))
    return [one for one in everybody if one.entry.id in ids]


def _ids(index: str) -> set[str]:
    """Return the ids that an index names."""
    return {text(mapping(one).get("id")) for one in items(mapping(parsed(index)).get("instances"))}


def _part(config: Mapping[str, Any], session: str) -> dict[str, Any]:
    return mapping(mapping(config.get("Foreground")).get(session))


def _target(handlers: Mapping[str, Any], path: str) -> str:
    return text(mapping(handlers.get(path)).get("Proxy"))


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
