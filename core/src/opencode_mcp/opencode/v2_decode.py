"""Reads the JSON of OpenCode 2.x. Whatever is missing or odd is left out; what is text is made safe.

Names drift between its versions; of two that are known, both are understood.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from opencode_mcp.model import Activity, Session
from opencode_mcp.opencode.api import MOST_TEXT, Message, Request, ToolUse
from opencode_mcp.opencode.fields import identifier, is_identifier, items, mapping, milliseconds, number, text
from opencode_mcp.text import clean_line, clean_path, clean_text

_TELLING = ("command", "filePath", "path", "pattern", "description", "url")
"""The inputs of tools that say what they work on, the best first."""


def session(info: Any, *, id_key: str = "id") -> Session | None:
    """Read a session; None if it has no id or is archived."""
    session_id = identifier(info, id_key)
    if not session_id or number(info, "time", "archived"):
        return None
    return Session(
        id=session_id,
        title=clean_line(text(info, "title")),
        directory=clean_path(text(info, "location", "directory")),
        parent_id=identifier(info, "parentID") or None,
        updated=milliseconds(info, "time", "updated"),
    )


def sessions(body: Any) -> list[Session]:
    """Read `{data: […]}`, newest first."""
    found = [one for one in map(session, items(mapping(body).get("data"))) if one is not None]
    return sorted(found, key=lambda one: one.updated, reverse=True)


def active(body: Any) -> set[str]:
    """Read `/api/session/active`: the ids of the sessions at work."""
    return {key for key in mapping(body, "data") if is_identifier(key)}


def entries(body: Any) -> list[dict[str, Any]]:
    """Read `{data: […]}`: what of it is a message, in the order in which it is given."""
    return [
        one
        for one in items(mapping(body).get("data"))
        if identifier(one, "id") and one.get("type") in ("user", "assistant")
    ]


def messages(newest_first: Sequence[dict[str, Any]], asked: str = "") -> list[Message]:
    """Read messages, given newest first, and return them oldest first.

    They do not say what they answer: it is the user's message before them.

    Args:
        newest_first: Entries, as they are listed.
        asked: The id of the user's message before the oldest of them, if it is known.
    """
    found: list[Message] = []
    for item in reversed(newest_first):
        message = _message(item, asked)
        found.append(message)
        asked = message.id if message.role == "user" else asked
    return found


def user_ids(body: Any) -> Sequence[str]:
    """Return the ids of the user's messages, in the order in which they are given."""
    return [identifier(one, "id") for one in entries(body) if one["type"] == "user"]


def requests(permissions: Any, forms: Any) -> list[Request]:
    """Read the open permission requests and forms of a session."""
    found = [permission(one) for one in items(_data(permissions))]
    found += [form(one) for one in items(_data(forms))]
    return [one for one in found if one is not None]


def permission(item: Any) -> Request | None:
    """Read a permission request."""
    request_id, session_id = identifier(item, "id"), identifier(item, "sessionID")
    if not request_id or not session_id:
        return None
    resources = mapping(item).get("resources")
    first = cast("list[Any]", resources)[0] if isinstance(resources, list) and resources else ""
    about = text(item, "metadata", "command") or (first if isinstance(first, str) else "")
    summary = clean_line(f"{text(item, 'action')}: {about}", 200)
    return Request(id=request_id, session_id=session_id, kind="permission", summary=summary)


def form(item: Any) -> Request | None:
    """Read a form: a question, whatever the types of its fields are."""
    request_id, session_id = identifier(item, "id"), identifier(item, "sessionID")
    if not request_id or not session_id:
        return None
    asked = next(items(mapping(item).get("fields")), dict[str, Any]())
    summary = clean_line(text(asked, "description") or text(asked, "title") or text(item, "title"), 200)
    return Request(id=request_id, session_id=session_id, kind="question", summary=summary)


def error_line(error: Any) -> str:
    """Say an error `{"type":…,"message":…}` in one line; empty for none."""
    if not isinstance(error, dict):
        return ""
    named = filter(None, (text(error, "type"), text(error, "message")))
    return clean_line(": ".join(named) or "unknown error", 500)


def tool(name: str, status: str, given: Any) -> ToolUse:
    """Describe a tool call by its name, how far it is, and its input."""
    title = next((text(given, key) for key in _TELLING if text(given, key)), "")
    return ToolUse(tool=clean_line(name, 80), status=clean_line(status, 20), title=clean_line(title, 120))


def activity(*, busy: bool) -> Activity:
    """Whether an agent is at work."""
    return Activity.BUSY if busy else Activity.IDLE


def _data(body: Any) -> Any:
    """Unwrap `{data: …}`."""
    return mapping(body).get("data")


def _message(item: dict[str, Any], asked: str) -> Message:
    message_id, role = identifier(item, "id"), text(item, "type")
    created = milliseconds(item, "time", "created")
    if role == "user":
        said = clean_text(text(item, "text"), MOST_TEXT)
        return Message(id=message_id, role=role, created=created, completed=True, text=said)
    content = list(items(item.get("content")))
    return Message(
        id=message_id,
        role=role,
        parent_id=asked,
        inferred=True,
        created=created,
        completed=bool(number(item, "time", "completed")) or isinstance(item.get("error"), dict),
        finish=clean_line(text(item, "finish"), 40),
        error=error_line(item.get("error")),
        text="\n".join(_texts(content)),
        tools=tuple(
            tool(text(one, "name"), text(one, "state", "status"), mapping(one, "state", "input"))
            for one in content
            if one.get("type") == "tool"
        ),
    )


def _texts(content: Iterable[dict[str, Any]]) -> list[str]:
    said = [clean_text(text(one, "text"), MOST_TEXT) for one in content if one.get("type") == "text"]
    return list(filter(None, said))
