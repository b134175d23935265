"""The index: what a machine tells at its index port of the instances that it has.

A document of JSON, `{"v": 1, "instances": [{"id", "path", "name", "version", "auth"}, …]}`. What others
tell is data: of an instance it can only say which path of that machine leads to it.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence

from opencode_mcp import ProtocolError, clean_line
from opencode_mcp_tailscale.loose import items, mapping, parsed

PATH = "/.well-known/opencode"
MOST_BYTES = 64_000
MOST_INSTANCES = 64
_VERSION = 1
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INSTANCE_PATH = re.compile(r"/(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*/){1,8}")
_MOST_PATH = 200
_NAME = 200
_WORD = 40


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An instance in an index.

    Attributes:
        id: Its id; unique on its machine.
        path: The path that leads to it, with a slash at both ends.
        name: What it is called, one line; may be empty.
        version: OpenCode's version, if it says so.
        guarded: Whether it wants a password, if it says so.
        url: Where it is, if it is on this machine; never taken from an index.
        mine: Whether it is on this machine, and this user's; never taken from an index.
    """

    id: str
    path: str
    name: str = ""
    version: str = ""
    guarded: bool | None = None
    url: str = ""
    mine: bool = False


def read_index(body: bytes) -> Sequence[Entry]:
    """Read what a machine tells of its instances; what is malformed of it is left out.

    Raises:
        ProtocolError: It is no index, or one of another version.
    """
    document = mapping(parsed(body))
    if not isinstance(document.get("instances"), list) or not isinstance(document.get("v"), int):
        raise ProtocolError("What it tells at the index port is no index.")
    if document["v"] != _VERSION:
        shown = clean_line(str(document["v"]), 20)
        raise ProtocolError(f"It tells an index of version {shown}: update opencode-mcp, there or here.")
    entries: dict[str, Entry] = {}
    for one in items(document["instances"])[:MOST_INSTANCES]:
        entry = read_entry(one)
        if entry is not None:
            entries.setdefault(entry.id, entry)
    return list(entries.values())


def write_index(entries: Iterable[Entry]) -> str:
    """Write an index, no longer than others read."""
    instances: list[dict[str, str]] = []
    size = 0
    for entry in list(entries)[:MOST_INSTANCES]:
        one = written(entry)
        size += len(json.dumps(one).encode()) + 2
        if size < MOST_BYTES - 100:
            instances.append(one)
    return json.dumps({"v": _VERSION, "instances": instances})


def written(entry: Entry) -> dict[str, str]:
    """An instance as it stands in an index."""
    one = {"id": entry.id, "path": entry.path, "name": entry.name, "version": entry.version}
    if entry.guarded is not None:
        one["auth"] = "basic" if entry.guarded else "none"
    return {key: value for key, value in one.items() if value}


def read_entry(found: object) -> Entry | None:
    """Read an instance as it stands in an index; None if it is malformed."""
    told = mapping(found)
    known, path = told.get("id"), told.get("path")
    if not isinstance(known, str) or not _ID.fullmatch(known):
        return None
    if not isinstance(path, str) or len(path) > _MOST_PATH or not _INSTANCE_PATH.fullmatch(path):
        return None
    auth = told.get("auth")
    return Entry(
        id=known,
        path=path,
        name=_line(told.get("name"), _NAME),
        version=_line(told.get("version"), _WORD),
        guarded={"basic": True, "none": False}.get(auth) if isinstance(auth, str) else None,
    )


def _line(found: object, longest: int) -> str:
    return clean_line(found, longest).strip() if isinstance(found, str) else ""
