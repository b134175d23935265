"""What a fake OpenCode remembers, whatever its generation. Every change is told at once, by its voice.

Sessions, messages and parts are kept in the shape of 1.x, which has the most detail; 2.x is made from it.
"""

import copy
import dataclasses
import time
from typing import Any

from opencode_mcp.testing._ids import Ids, now_ms
from opencode_mcp.testing._voice import Voice

Json = dict[str, Any]

_NO_TOKENS: Json = {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}}
_STEP_TOKENS: Json = {"total": 15, "input": 10, "output": 5, "reasoning": 0, "cache": {"read": 0, "write": 0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """A piece of text that went out.

    Attributes:
        session_id: The session it belongs to.
        part_id: The part it belongs to.
        text: The piece.
        emitted: `time.perf_counter_ns()` just before it was handed to the streams.
    """

    session_id: str
    part_id: str
    text: str
    emitted: int


class Store:
    """Sessions with their messages.

    Attributes:
        ids: Makes the ids.
        sessions: The sessions by id.
        messages: The messages of each, `{info, parts}`, oldest first. What 2.x lists in between, such as the
            end of an execution, is in `after` of the message before it.
        statuses: What the sessions do that are not idle.
        status_directories: The directories of those, which outlive their sessions.
        deltas: Every piece of text.
        errors: What kind of error each failed tool call has, by the id of its part.
        voice: Tells what changes.
    """

    voice: Voice

    def __init__(self, ids: Ids, version: str, *, names_sessions: bool = True) -> None:
        self.ids = ids
        self.sessions: dict[str, Json] = {}
        self.messages: dict[str, list[Json]] = {}
        self.statuses: dict[str, Json] = {}
        self.status_directories: dict[str, str] = {}
        self.deltas: list[Delta] = []
        self.errors: dict[str, str] = {}
        self._version = version
        self._names_sessions = names_sessions

    def create_session(
        self, directory: str, *, title: str = "", parent: str = "", agent: str = "", session_id: str = ""
    ) -> Json:
        """Add a session and return it."""
        created = now_ms()
        if not title and self._names_sessions:
            day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created / 1000))
            title = f"{'Child' if parent else 'New'} session - {day}.{created % 1000:03}Z"
        session: Json = {
            "id": session_id or self.ids.new("ses"),
            "slug": "quiet-harbor",
            "projectID": "global",
            "directory": directory,
            "path": directory.lstrip("/"),
            **({"parentID": parent} if parent else {}),
            "cost": 0,
            "tokens": copy.deepcopy(_NO_TOKENS),
            "title": title,
            **({"agent": agent} if agent else {}),
            "version": self._version,
            "time": {"created": created, "updated": created},
        }
        self.sessions[session["id"]] = session
        self.messages[session["id"]] = []
        self.voice.session_created(session)
        return session

    def touch_session(self, session_id: str, **changes: Any) -> None:
        """Change a session and say so."""
        session = self.sessions[session_id]
        session.update(changes)
        session["time"]["updated"] = now_ms()
        self.voice.session_changed(session, changes)

    def move_session(self, session_id: str, directory: str) -> None:
        """Give a session another directory, and say so."""
        session = self.sessions[session_id]
        session.update(directory=directory, path=directory.lstrip("/"))
        session["time"]["updated"] = now_ms()
        self.voice.session_moved(session)

    def delete_session(self, session_id: str) -> None:
        """Remove a session and its children; a status of busy stays, as it does in OpenCode 1.18.33."""
        for child in self.children(session_id):
            self.delete_session(child["id"])
        self.voice.session_deleted(self.sessions[session_id])
        del self.sessions[session_id], self.messages[session_id]

    def children(self, session_id: str) -> list[Json]:
        """Return the sessions that this one started."""
        return [session for session in self.sessions.values() if session.get("parentID") == session_id]

    def set_status(self, session_id: str, kind: str) -> None:
        """Set `busy` or `idle`, and say so."""
        if kind == "idle":
            self.statuses.pop(session_id, None)
        else:
            self.statuses[session_id] = {"type": kind}
            self.status_directories[session_id] = self.sessions[session_id]["directory"]
        self.voice.status_changed(session_id, kind)

    def add_user_message(self, session_id: str, texts: list[str], model: Json, message_id: str = "") -> Json:
        """Store a prompt, and return the message as `{info, parts}`."""
        info: Json = {
            "id": message_id or self.ids.new("msg"),
            "role": "user",
            "sessionID": session_id,
            "time": {"created": now_ms()},
            "agent": "build",
            "model": model,
        }
        message: Json = {"info": info, "parts": []}
        self.messages[session_id].append(message)
        self.voice.message_added(message)
        for text in texts:
            self.add_part(message, {"type": "text", "text": text})
        self.touch_session(session_id)
        return message

    def add_assistant_message(self, session_id: str, user: Json) -> Json:
        """Store an empty answer to a prompt, and return it as `{info, parts}`."""
        model: Json = user["info"]["model"]
        directory: str = self.sessions[session_id]["directory"]
        info: Json = {
            "id": self.ids.new("msg"),
            "parentID": user["info"]["id"],
            "role": "assistant",
            "mode": "build",
            "agent": "build",
            "path": {"cwd": directory, "root": "/"},
            "cost": 0,
            "tokens": copy.deepcopy(_NO_TOKENS),
            "modelID": model["modelID"],
            "providerID": model["providerID"],
            "time": {"created": now_ms()},
            "sessionID": session_id,
        }
        message: Json = {"info": info, "parts": []}
        self.messages[session_id].append(message)
        self.voice.message_added(message)
        return message

    def complete_message(self, message: Json, **changes: Any) -> None:
        """Mark an assistant message as completed, with `finish` or `error` in `changes`."""
        message["info"]["time"]["completed"] = now_ms()
        message["info"].update(changes)
        if "finish" in changes:
            message["info"]["tokens"] = copy.deepcopy(_STEP_TOKENS)
        self.voice.message_completed(message)

    def add_part(self, message: Json, part: Json) -> Json:
        """Append a part to a message, and return it."""
        info: Json = message["info"]
        part = {
            "id": self.ids.new("prt"),
            "messageID": info["id"],
            "sessionID": info["sessionID"],
            **part,
        }
        if part["type"] == "step-finish":
            part |= {"tokens": copy.deepcopy(_STEP_TOKENS), "cost": 0}
            tokens: Json = copy.deepcopy(self.sessions[info["sessionID"]]["tokens"])
            tokens["input"] += _STEP_TOKENS["input"]
            tokens["output"] += _STEP_TOKENS["output"]
            self.sessions[info["sessionID"]]["tokens"] = tokens
        message["parts"].append(part)
        self.voice.part_added(part)
        return part

    def add_delta(self, part: Json, text: str) -> None:
        """Pass on a piece of a text or reasoning part; the whole text shows in the part when it ends."""
        stamp = time.perf_counter_ns()
        self.deltas.append(Delta(session_id=part["sessionID"], part_id=part["id"], text=text, emitted=stamp))
        self.voice.delta(part, text)
