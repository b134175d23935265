"""Reads the events of OpenCode 2.x, of its stream and of a session's log alike."""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar

from opencode_mcp.opencode import v2_decode as decode
from opencode_mcp.opencode.api import (
    MOST_TEXT,
    ActivityChanged,
    Alive,
    Delta,
    Event,
    Logged,
    Message,
    MessageUpdated,
    PartUpdated,
    RequestClosed,
    RequestOpened,
    SessionChanged,
    SessionDeleted,
    SessionFailed,
    SessionUpdated,
    ToolUse,
)
from opencode_mcp.opencode.fields import identifier, mapping, milliseconds, number, text
from opencode_mcp.text import clean_line, clean_path, clean_text

_KEPT = 1_000
_REMEMBERED = 1_000
"""Ids of events."""
_Kept = TypeVar("_Kept")


class Events:
    """Turns what a server sends into events.

    The name of a tool and what it works on are said once: they are kept for what follows.
    """

    def __init__(self) -> None:
        self._tools: OrderedDict[str, ToolUse] = OrderedDict()
        self._asked: OrderedDict[str, str] = OrderedDict()
        self._heard: OrderedDict[str, None] = OrderedDict()

    def read(self, envelope: Any) -> Sequence[Event]:
        """Read one event `{type, created?, durable?, data}`; what is not known is a sign of life."""
        kind, event_id = text(envelope, "type"), identifier(envelope, "id")
        if not kind:
            return ()
        if event_id in self._heard:
            return [Alive()]  # it came twice
        if event_id:
            _keep(self._heard, event_id, None, _REMEMBERED)
        data = mapping(envelope, "data")
        at = milliseconds(envelope, "created") or None
        found = self._read(kind, data, identifier(data, "sessionID"), at)
        logged = identifier(envelope, "durable", "aggregateID")
        position = mapping(envelope, "durable").get("seq")
        if logged and isinstance(position, int) and not isinstance(position, bool):
            found = [*found, Logged(logged, position)]
        return found

    def _read(self, kind: str, data: dict[str, Any], session_id: str, at: int | None) -> Sequence[Event]:
        room, _, rest = kind.partition(".")
        if room in ("permission", "form"):
            return [_request(kind, data)]
        if room != "session" or not session_id:
            return [Alive()]
        match rest:
            case "text.delta" | "text.ended":
                return [_text(rest, session_id, data)]
            case "execution.started":
                return [ActivityChanged(session_id, decode.activity(busy=True)), *_touched(session_id, at)]
            case "execution.succeeded":
                return [ActivityChanged(session_id, decode.activity(busy=False)), *_touched(session_id, at)]
            case "execution.failed" | "execution.interrupted":
                why = decode.error_line(data.get("error")) or f"interrupted ({_reason(data)})"
                idle = ActivityChanged(session_id, decode.activity(busy=False))
                return [SessionFailed(session_id, why), idle, *_touched(session_id, at)]
            case "inbox.delivered" | "input.promoted":
                return self._delivered(session_id, identifier(data, "inboxID") or identifier(data, "inputID"))
            case "step.started" | "step.ended" | "step.failed":
                return self._step(rest, session_id, data, at)
            case "tool.input.started" | "tool.called" | "tool.success" | "tool.failed":
                return [self._tool(rest, session_id, data)]
            case _:
                return [_session(rest, session_id, data, at)]

    def _delivered(self, session_id: str, message_id: str) -> Sequence[Event]:
        if not message_id:
            return [Alive()]
        _keep(self._asked, session_id, message_id)
        return [MessageUpdated(session_id, Message(id=message_id, role="user", completed=True))]

    def _step(self, rest: str, session_id: str, data: dict[str, Any], at: int | None) -> Sequence[Event]:
        message_id = identifier(data, "assistantMessageID")
        if not message_id:
            return [Alive()]
        error = decode.error_line(data.get("error"))
        message = Message(
            id=message_id,
            role="assistant",
            parent_id=self._asked.get(session_id, ""),
            created=at or 0,
            completed=rest != "step.started",
            finish=clean_line(text(data, "finish"), 40),
            error=error,
        )
        return [MessageUpdated(session_id, message)]

    def _tool(self, rest: str, session_id: str, data: dict[str, Any]) -> Event:
        call_id = clean_line(text(data, "id") or text(data, "callID"), 160)
        before = self._tools.get(call_id, ToolUse(tool="tool", status=""))
        status = {"tool.success": "completed", "tool.failed": "error"}.get(rest, "running")
        used = decode.tool(text(data, "name") or before.tool, status, mapping(data, "input"))
        used = dataclasses.replace(used, title=used.title or before.title)
        if call_id:
            _keep(self._tools, call_id, used)
        message_id = identifier(data, "assistantMessageID")
        return PartUpdated(session_id, message_id, f"tool:{call_id}", "tool", tool=used)


def _session(rest: str, session_id: str, data: dict[str, Any], at: int | None) -> Event:
    match rest:
        case "created":
            found = decode.session({**data, "time": {"updated": at or 0}}, id_key="sessionID")
            return SessionUpdated(found) if found else Alive()
        case "renamed" if isinstance(data.get("title"), str):
            return SessionChanged(session_id, title=clean_line(text(data, "title")))
        case "moved" if directory := clean_path(text(data, "location", "directory")):
            return SessionChanged(session_id, directory=directory)
        case "deleted" | "archived":
            return SessionDeleted(session_id)
        case "unarchived":
            return SessionChanged(session_id, updated=at)
        case _:
            return Alive()


def _request(kind: str, data: dict[str, Any]) -> Event:
    match kind:
        case "permission.asked" | "permission.v2.asked":
            request = decode.permission(data)
        case "form.created":
            request = decode.form(mapping(data, "form"))
        case "permission.replied" | "permission.v2.replied" if request_id := identifier(data, "requestID"):
            return RequestClosed(request_id)
        case "form.replied" | "form.cancelled" if request_id := identifier(data, "id"):
            return RequestClosed(request_id)
        case _:
            request = None
    return RequestOpened(request) if request else Alive()


def _touched(session_id: str, at: int | None) -> Sequence[Event]:
    return [] if at is None else [SessionChanged(session_id, updated=at)]


def _text(rest: str, session_id: str, data: dict[str, Any]) -> Event:
    """Read a piece of a text, or the whole of it; 2.x numbers the texts of a message."""
    message_id = identifier(data, "assistantMessageID")
    if not message_id:
        return Alive()
    part_id = f"{message_id}:{number(data, 'ordinal')}"
    if rest == "text.delta":
        return Delta(session_id, message_id, part_id, clean_text(text(data, "delta")), "text")
    return PartUpdated(session_id, message_id, part_id, "text", clean_text(text(data, "text"), MOST_TEXT))


def _reason(data: dict[str, Any]) -> str:
    return clean_line(text(data, "reason"), 40) or "for no given reason"


def _keep(known: OrderedDict[str, _Kept], key: str, value: _Kept, most: int | None = None) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > (_KEPT if most is None else most):
        known.popitem(last=False)
