"""Reads fields of foreign JSON: whatever is missing, or of another type, comes back empty."""

import re
from collections.abc import Iterator
from typing import Any, cast

REALM = 'Basic realm="Secure Area"'
"""How OpenCode 1.x and 2.x alike ask for a password, in `www-authenticate`."""
USERNAME = "opencode"
"""Their user name, if no other is set; OpenCode 2.x knows no other."""
HEALTH_1 = "/global/health"
"""Where OpenCode 1.x says how it is."""
HEALTHS_2 = ("/api/info", "/api/health")
"""Where 2.1 does, and the preview of 2.0. OpenCode 1.18 has the second too, without a version."""
_MOST_ITEMS = 5_000
"""Of a list; a small document can hold millions of empty objects, and reading them takes seconds."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_YEAR_10000 = 253_402_300_800_000


def mapping(value: Any, *path: str) -> dict[str, Any]:
    """Return the object at `path` in `value`, or an empty one."""
    for key in path:
        value = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def text(value: Any, *path: str) -> str:
    """Return the string at `path` in `value`, or an empty one."""
    found = mapping(value, *path[:-1]).get(path[-1])
    return found if isinstance(found, str) else ""


def number(value: Any, *path: str) -> int:
    """Return the number at `path` in `value` as an integer, or 0."""
    found = mapping(value, *path[:-1]).get(path[-1])
    return int(found) if isinstance(found, int | float) and abs(found) < 2**53 else 0


def milliseconds(value: Any, *path: str) -> int:
    """Return the moment at `path` in `value`, in milliseconds since the epoch; 0 if it is none."""
    found = number(value, *path)
    return found if 0 <= found < _YEAR_10000 else 0


def items(value: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the objects in the list `value`, if it is one."""
    if isinstance(value, list):
        for item in cast("list[Any]", value)[:_MOST_ITEMS]:
            if isinstance(item, dict):
                yield cast("dict[str, Any]", item)


def identifier(value: Any, *path: str) -> str:
    """Return the id at `path` if it is safe to put into a URL, or an empty string."""
    found = text(value, *path)
    return found if is_identifier(found) else ""


def is_identifier(value: str) -> bool:
    """Whether an id is safe to put into a URL."""
    return _ID.fullmatch(value) is not None
