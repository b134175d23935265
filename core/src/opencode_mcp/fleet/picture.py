"""What is known of one OpenCode server: started by a snapshot, kept by its events."""

import dataclasses
from itertools import islice
from typing import Any

from opencode_mcp.model import Activity, Session
from opencode_mcp.opencode.api import (
    ActivityChanged,
    Event,
    PartUpdated,
    Request,
    RequestClosed,
    RequestOpened,
    SessionChanged,
    SessionDeleted,
    SessionUpdated,
    Snapshot,
)

_SESSIONS_KEPT = 200
_KEPT = 1_000
"""Of everything else: no server has as many that are meant seriously."""
_DIRECTORIES_ASKED = 8


class Picture:
    """Sessions, who is busy, and what waits for a person.

    Attributes:
        directory: The server's own project; empty before the first snapshot, or if it has none.
        puzzled: Whether a session is at work of which nothing is known, and no snapshot was taken since.
    """

    def __init__(self) -> None:
        self.directory = ""
        self._sessions: dict[str, Session] = {}
        self._busy: set[str] = set()
        self._requests: dict[str, Request] = {}
        self._doing: dict[str, str] = {}
        self.puzzled = False
        self._unknown: dict[str, None] = {}

    def start(self, snapshot: Snapshot) -> None:
        """Take over a snapshot; sub-agents' sessions, which it does not list, stay known."""
        self.directory = snapshot.directory
        children = {key: one for key, one in self._sessions.items() if one.parent_id}
        others = {  # of other projects, which OpenCode 1.x does not list
            key: one
            for key, one in self._sessions.items()
            if snapshot.directory and not one.parent_id and one.directory not in ("", snapshot.directory)
        }
        oldest_first = {one.id: one for one in reversed(snapshot.sessions)}
        self._sessions = {**children, **others, **oldest_first}
        self._busy = set(islice(snapshot.busy, _KEPT))
        self.puzzled = False
        # After an abort OpenCode 1.x goes on listing the request of a session that no longer waits for it.
        kept = [one for one in self._requests.values() if one.session_id in snapshot.unasked]
        self._requests = {one.id: one for one in (*kept, *snapshot.requests) if one.session_id in self._busy}
        self._doing = {key: tool for key, tool in self._doing.items() if key in self._busy}
        _drop_oldest(self._sessions, _SESSIONS_KEPT)
        _drop_oldest(self._requests, _KEPT)

    def apply(self, event: Event) -> bool:
        """Take note of an event and say whether anything that people see may have changed."""
        match event:
            case SessionUpdated(session):
                self._sessions.pop(session.id, None)
                self._sessions[session.id] = session
                _drop_oldest(self._sessions, _SESSIONS_KEPT)
            case SessionChanged():
                return self._change(event)
            case SessionDeleted(session_id):
                self._sessions.pop(session_id, None)
                self._rest(session_id)
            case ActivityChanged(session_id, Activity.BUSY):
                if session_id in self._busy or len(self._busy) >= _KEPT:
                    return False
                self._busy.add(session_id)
                if session_id not in self._sessions and session_id not in self._unknown:
                    self.puzzled = True  # once: a snapshot may not know it either
                    self._unknown[session_id] = None
                    _drop_oldest(self._unknown, _KEPT)
            case ActivityChanged(session_id, _):
                was_busy = session_id in self._busy
                self._rest(session_id)
                return was_busy
            case RequestOpened(request):
                self._requests[request.id] = request
                _drop_oldest(self._requests, _KEPT)
            case RequestClosed(request_id):
                self._requests.pop(request_id, None)
            case PartUpdated(session_id, tool=tool) if tool is not None:
                self._doing[session_id] = str(tool)
                _drop_oldest(self._doing, _KEPT)
                return False
            case _:
                return False
        return True

    def _change(self, event: SessionChanged) -> bool:
        session = self._sessions.pop(event.session_id, None)
        if session is None:
            return False
        self._sessions[session.id] = dataclasses.replace(
            session,
            title=session.title if event.title is None else event.title,
            directory=session.directory if event.directory is None else event.directory,
            updated=max(session.updated, event.updated or 0),
        )
        return True

    def _rest(self, session_id: str) -> None:
        self._busy.discard(session_id)
        self._unknown.pop(session_id, None)
        self._doing.pop(session_id, None)
        for key in [key for key, one in self._requests.items() if one.session_id == session_id]:
            del self._requests[key]

    @property
    def activity(self) -> Activity:
        """Busy if any session is."""
        return Activity.BUSY if self._busy else Activity.IDLE

    @property
    def session(self) -> Session | None:
        """The session that counts: the one at work, else the one used last; never a sub-agent's."""
        busy = {self.root(session_id) for session_id in self._busy}
        roots = [one for one in self._sessions.values() if not one.parent_id]
        at_work = [one for one in roots if one.id in busy]
        return max(reversed(at_work or roots), key=lambda one: one.updated, default=None)

    @property
    def directories(self) -> set[str]:
        """Projects besides the server's own that have sessions, a bounded number."""
        found = {one.directory for one in self._sessions.values() if one.directory}
        return set(sorted(found - {self.directory})[:_DIRECTORIES_ASKED])

    def root(self, session_id: str) -> str:
        """Return the session that a sub-agent works for in the end; `session_id` itself if it is none."""
        for _ in range(16):
            session = self._sessions.get(session_id)
            if session is None or not session.parent_id:
                break
            session_id = session.parent_id
        return session_id

    def title(self, session_id: str) -> str:
        """Return what a session is called, or nothing if it is not known."""
        session = self._sessions.get(session_id)
        return session.title if session else ""

    def is_busy(self, session_id: str) -> bool:
        """Whether a session or a sub-agent of it is at work."""
        return session_id in self._busy or any(self.root(busy) == session_id for busy in self._busy)

    def waiting_for(self, session_id: str | None = None) -> str:
        """Say what a person is asked for, in any session or in the tree of `session_id`; or nothing."""
        for request in self._requests.values():
            if request.session_id in self._busy and session_id in (None, self.root(request.session_id)):
                return f"{request.kind}: {request.summary}"
        return ""

    def doing(self, session_id: str) -> str:
        """Say which tool the agent of a session, or a sub-agent of it, used last; or nothing."""
        for busy, tool in self._doing.items():
            if busy in self._busy and self.root(busy) == session_id:
                return tool
        return ""


def _drop_oldest(entries: dict[str, Any], kept: int) -> None:
    while len(entries) > kept:
        del entries[next(iter(entries))]
