"""Reads the JSON of OpenCode 1.x. Whatever is missing or odd is left out; what is text is made safe."""

from typing import Any, cast

from opencode_mcp.model import Activity, Session
from opencode_mcp.opencode.api import (
    AUTOMATIC,
    MOST_TEXT,
    ActivityChanged,
    Alive,
    Delta,
    Event,
    Message,
    MessageUpdated,
    PartUpdated,
    Request,
    RequestClosed,
    RequestOpened,
    SessionDeleted,
    SessionFailed,
    SessionUpdated,
    ToolUse,
)
from opencode_mcp.opencode.fields import identifier, is_identifier, items, mapping, milliseconds, number, text
from opencode_mcp.text import clean_line, clean_path, clean_text


def session(info: Any) -> Session | None:
    """Read a session; None if it has no id or is archived."""
    session_id = identifier(info, "id")
    if not session_id or number(info, "time", "archived"):
        return None
    return Session(
        id=session_id,
        title=clean_line(text(info, "title")),
        directory=clean_path(text(info, "directory")),
        parent_id=identifier(info, "parentID") or None,
        updated=milliseconds(info, "time", "updated"),
    )


def sessions(body: Any) -> list[Session]:
    """Read a list of sessions, newest first."""
    found = [one for one in map(session, items(body)) if one is not None]
    return sorted(found, key=lambda one: one.updated, reverse=True)


def busy(body: Any) -> set[str]:
    """Read `/session/status`: idle sessions are absent, the others are `busy` or in `retry`."""
    at_work = {key for key in mapping(body) if text(body, key, "type") not in ("", "idle")}
    return {key for key in at_work if is_identifier(key)}


def permissions(body: Any) -> list[Request]:
    """Read the open permission requests."""
    return [one for one in map(_permission, items(body)) if one is not None]


def questions(body: Any) -> list[Request]:
    """Read the open questions."""
    return [one for one in map(_question, items(body)) if one is not None]


def messages(body: Any) -> list[Message]:
    """Read messages with their parts."""
    found: list[Message] = []
    for item in items(body):
        parts = list(items(item.get("parts")))
        message = _message(item.get("info"), parts)
        if message is not None:
            found.append(message)
    return found


def error_line(error: Any) -> str:
    """Say an error `{"name":…,"data":{"message":…}}` in one line; empty for none."""
    if not isinstance(error, dict):
        return ""
    name = text(error, "name")
    message = text(error, "data", "message")
    return clean_line(": ".join(filter(None, (name, message))) or "unknown error", 500)


def event(envelope: Any) -> Event | None:
    """Read one event of `/global/event`; None for what is not an event."""
    payload = mapping(envelope, "payload")
    kind = payload.get("type")
    properties = mapping(payload, "properties")
    match kind:
        case "message.part.delta":
            return Delta(
                identifier(properties, "sessionID"),
                identifier(properties, "messageID"),
                identifier(properties, "partID"),
                clean_text(text(properties, "delta")),
            )
        case "message.part.updated":
            return _part(mapping(properties, "part"))
        case "message.updated":
            info = properties.get("info")
            message = _message(info, [])
            return MessageUpdated(identifier(info, "sessionID"), message) if message else Alive()
        case "session.status":
            return _activity(properties, text(properties, "status", "type"))
        case "session.idle":
            return _activity(properties, "idle")
        case "session.created" | "session.updated":
            info = properties.get("info")
            found = session(info)
            return SessionUpdated(found) if found else SessionDeleted(identifier(info, "id"))
        case "session.deleted":
            return SessionDeleted(identifier(properties, "info", "id"))
        case "session.error":
            return SessionFailed(identifier(properties, "sessionID"), error_line(properties.get("error")))
        case "permission.asked" | "question.asked":
            request = _permission(properties) if kind == "permission.asked" else _question(properties)
            return RequestOpened(request) if request else Alive()
        case "permission.replied" | "question.replied" | "question.rejected":
            return RequestClosed(identifier(properties, "requestID"))
        case str():
            return Alive()  # heartbeats, duplicates (`sync`), and what later versions may add
        case _:
            return None


def _activity(properties: dict[str, Any], state: str) -> Event:
    session_id = identifier(properties, "sessionID")
    if not session_id or not state:
        return Alive()
    return ActivityChanged(session_id, Activity.IDLE if state == "idle" else Activity.BUSY)


def _part(part: dict[str, Any]) -> Event:
    return PartUpdated(
        identifier(part, "sessionID"),
        identifier(part, "messageID"),
        identifier(part, "id"),
        AUTOMATIC if _is_automatic(part) else clean_line(text(part, "type"), 40),
        clean_text(text(part, "text"), MOST_TEXT),
        _tool(part) if part.get("type") == "tool" else None,
    )


def _is_automatic(part: dict[str, Any]) -> bool:
    """Whether OpenCode itself wrote a part: when it compacts a long conversation, and then goes on."""
    return part.get("type") == "compaction" or part.get("synthetic") is True


def _tool(part: dict[str, Any]) -> ToolUse:
    state = mapping(part, "state")
    given = mapping(state, "input")
    title = text(state, "title") or next(
        (
            text(given, key)
            for key in ("command", "filePath", "pattern", "description", "url")
            if key in given
        ),
        "",
    )
    return ToolUse(
        tool=clean_line(text(part, "tool"), 80),
        status=clean_line(text(state, "status"), 20),
        title=clean_line(title, 120),
    )


def _message(info: Any, parts: list[dict[str, Any]]) -> Message | None:
    message_id = identifier(info, "id")
    if not message_id:
        return None
    error = mapping(info).get("error")
    texts = [
        clean_text(text(part, "text"), MOST_TEXT)
        for part in parts
        if part.get("type") == "text" and not part.get("synthetic") and not part.get("ignored")
    ]
    return Message(
        id=message_id,
        role=clean_line(text(info, "role"), 20),
        parent_id=identifier(info, "parentID"),
        created=milliseconds(info, "time", "created"),
        completed=bool(number(info, "time", "completed")) or bool(error),
        finish=clean_line(text(info, "finish"), 40),
        error=error_line(error),
        text="\n".join(filter(None, texts)),
        summary=mapping(info).get("summary") is True,
        automatic=bool(parts) and all(map(_is_automatic, parts)),
        tools=tuple(_tool(part) for part in parts if part.get("type") == "tool"),
    )


def _permission(item: dict[str, Any]) -> Request | None:
    request_id, session_id = identifier(item, "id"), identifier(item, "sessionID")
    if not request_id or not session_id:
        return None
    patterns = item.get("patterns")
    first = cast("list[Any]", patterns)[0] if isinstance(patterns, list) and patterns else ""
    about = text(item, "metadata", "command") or (first if isinstance(first, str) else "")
    summary = clean_line(f"{text(item, 'permission')}: {about}", 200)
    return Request(id=request_id, session_id=session_id, kind="permission", summary=summary)


def _question(item: dict[str, Any]) -> Request | None:
    request_id, session_id = identifier(item, "id"), identifier(item, "sessionID")
    if not request_id or not session_id:
        return None
    asked = next(items(item.get("questions")), dict[str, Any]())
    summary = clean_line(text(asked, "question") or text(asked, "header"), 200)
    return Request(id=request_id, session_id=session_id, kind="question", summary=summary)
