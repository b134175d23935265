"""How OpenCode 2.x says no, and reads what a request says."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from opencode_mcp.testing._refusal import Refusal

Json = dict[str, Any]

_PAGE = 50


def refuse(status: int, tag: str, message: str, **more: Any) -> Refusal:
    """Return an error as 2.x tags it."""
    return Refusal(status, {"_tag": tag, **more, "message": message})


def invalid(message: str, key: str, kind: str) -> Refusal:
    """Refuse what is wrong in a request."""
    return refuse(400, "InvalidRequestError", f'{message}\n  at ["{key}"]', kind=kind)


async def json_of(request: Request) -> Json:
    """Return the JSON object that a request carries; an empty body is an empty object."""
    raw = await request.body()
    try:
        body: Any = json.loads(raw) if raw else {}
    except ValueError:
        raise refuse(400, "InvalidRequestError", "Expected JSON", kind="Body") from None
    if not isinstance(body, dict):
        raise refuse(400, "InvalidRequestError", "Expected object", kind="Body")
    return cast(Json, body)


def chosen(body: Mapping[str, Any], key: str, *choices: str) -> str:
    """Return a value that must be one of `choices`; if one of them is empty, it may be missing."""
    if key not in body and "" not in choices:
        raise invalid("Missing key", key, "Payload")
    value = body.get(key, "")
    if value not in choices:
        wanted = " | ".join(f'"{choice}"' for choice in choices if choice)
        raise invalid(f"Expected {wanted}, got {json.dumps(value)}", key, "Payload")
    return value


def number(request: Request, key: str, default: int, least: int) -> int:
    """Return a whole number of the query."""
    asked = request.query_params.get(key)
    if asked is None:
        return default
    try:
        value = int(asked)
    except ValueError:
        value = least - 1
    if value < least:
        raise invalid(f"Expected an integer of at least {least}, got {asked}", key, "Query")
    return value


def page(request: Request, newest_first: Sequence[Json], **filters: str) -> Response:
    """Return one page of a list; the cursor holds all that made it."""
    query = request.query_params
    if cursor := query.get("cursor"):
        if "order" in query:
            raise refuse(400, "InvalidRequestError", "A cursor goes without an order", kind="Query")
        place: Json = _decoded(cursor)
    else:
        place = {"order": query.get("order") or "desc", "from": 0, "filters": filters}
    if place["order"] not in ("asc", "desc"):
        raise invalid('Expected "asc" | "desc"', "order", "Query")
    limit = number(request, "limit", place.get("limit", _PAGE), 1)
    ordered = list(newest_first if place["order"] == "desc" else reversed(newest_first))
    start: int = place["from"]
    cursors: dict[str, str] = {}
    if start > 0:
        cursors["previous"] = _encoded({**place, "from": max(0, start - limit), "limit": limit})
    if start + limit < len(ordered):
        cursors["next"] = _encoded({**place, "from": start + limit, "limit": limit})
    return JSONResponse({"data": ordered[start : start + limit], "cursor": cursors})


def filters_of(request: Request, *keys: str) -> dict[str, str]:
    """Return what a list is narrowed by: the query's parameters, or those that its cursor was made with."""
    if cursor := request.query_params.get("cursor"):
        return _decoded(cursor)["filters"]
    return {key: request.query_params[key] for key in keys if key in request.query_params}


def _encoded(place: Json) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> Json:
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return {
            "order": place["order"],
            "from": place["from"],
            "filters": place["filters"],
            "limit": place["limit"],
        }
    except (ValueError, KeyError, TypeError):
        raise refuse(400, "InvalidCursorError", f"Invalid cursor: {cursor}") from None
