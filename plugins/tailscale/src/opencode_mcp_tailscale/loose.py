"""JSON of others, taken as it comes: what is not of the expected kind is as if it were not there."""

import json
from typing import Any, cast


def parsed(body: bytes | str) -> object:
    """Return what a document says; None if it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def mapping(found: object) -> dict[str, Any]:
    """Return an object, or an empty one."""
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def items(found: object) -> list[object]:
    """Return a list, or an empty one; Go writes `null` for those."""
    return cast("list[object]", found) if isinstance(found, list) else []


def text(found: object) -> str:
    """Return a text, or an empty one."""
    return found if isinstance(found, str) else ""


def texts(found: object) -> tuple[str, ...]:
    """Return the texts of a list."""
    return tuple(one for one in items(found) if isinstance(one, str))


def number(found: object) -> int:
    """Return a whole number, or 0."""
    return found if isinstance(found, int) else 0
