"""OpenCode 2.x: `/api/*`, as the contract of 2.1.2 has it, and the preview of 2.0 where it differs."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import anyio
import httpx2

from opencode_mcp.errors import OpenCodeMCPError, ProtocolError, RequestError, TooLargeError
from opencode_mcp.model import Session
from opencode_mcp.opencode import v2_decode as decode
from opencode_mcp.opencode.api import Event, Message, PartUpdated, Request, Snapshot
from opencode_mcp.opencode.fields import identifier, mapping, text
from opencode_mcp.opencode.http import Http, parsed
from opencode_mcp.opencode.v2_events import Events

logger = logging.getLogger(__name__)

_SESSIONS_SHOWN = 50
_SESSIONS_SEARCHED = 1000
_SESSIONS_IF_LARGE = 5
_AT_WORK_ASKED = 20
"""About so many sessions at work it is asked what they wait for, or who they are."""
_AT_WORK_SECONDS = 10.0
"""For so long at most."""
_PATIENT = 15.0
"""Seconds for what a person asks for."""
_BYTES = 64 * 1024
_SESSIONS_BYTES = 4 * 1024 * 1024
_MESSAGES_BYTES = 16 * 1024 * 1024
_PAGES = 4
"""So many more pages are asked for where the first one lacks messages."""
_PAGE = 20
"""So many entries are asked for there at least: of what is no message, many may follow each other."""
_LOG_EVENTS = 5_000
_LOG_CHARACTERS = 16 * 1024 * 1024
_LOG_SECONDS = 5.0
_NOT_FOUND = (404, 405)


class V2:
    """The `OpenCode` protocol on the 2.x API.

    Args:
        http: The server.
        version: What it says its version is.
        health: The path that told so.
    """

    def __init__(self, http: Http, version: str, health: str) -> None:
        self._http = http
        self._version = version
        self._health = health
        self._logless = False

    @property
    def generation(self) -> Literal[2]:
        """The API of 2.x."""
        return 2

    @property
    def version(self) -> str:
        """The server's version."""
        return self._version

    async def ping(self) -> None:
        """Ask for its health again."""
        await self._http.get(self._health, max_bytes=_BYTES)

    async def directory(self) -> str:
        """Return nothing: one server has many projects."""
        return ""

    async def snapshot(self, directories: Collection[str] = ()) -> Snapshot:
        """Take stock of all projects: who is at work is told for the whole server, the rest by session."""
        sessions = {one.id: one for one in await self._list(_SESSIONS_SHOWN, _SESSIONS_IF_LARGE)}
        busy = decode.active(await self._http.get("/api/session/active"))
        requests: list[Request] = []
        unasked = set(busy)
        with anyio.move_on_after(_AT_WORK_SECONDS):
            for session_id in sorted(busy)[:_AT_WORK_ASKED]:
                # One that ends meanwhile, or is broken, must not hide the others.
                with suppress(RequestError, ProtocolError):
                    if session_id not in sessions:  # a sub-agent's, or an old one
                        sessions[session_id] = await self.session(session_id)
                    found, complete = await self._requests(sessions[session_id])
                    requests += found
                    if complete:
                        unasked.discard(session_id)
        return Snapshot(
            directory="",
            sessions=tuple(sorted(sessions.values(), key=lambda one: one.updated, reverse=True)),
            busy=frozenset(busy),
            requests=tuple(requests),
            unasked=frozenset(unasked),
        )

    @asynccontextmanager
    async def events(self, heard: Callable[[], None] | None = None) -> AsyncGenerator[AsyncIterator[Event]]:
        """Follow `/api/event`, which covers all projects; comments in it say that the server lives."""
        async with self._http.stream("/api/event", heard=heard) as source:
            yield _decoded(source)

    async def log(self, session_id: str, after: int) -> Sequence[Event]:
        """Read the session's log behind `after`; nothing if the server has none, or tells it too slowly."""
        found: list[Event] = []
        size = 0
        path = f"/api/experimental/session/{session_id}/log"
        try:
            with anyio.move_on_after(_LOG_SECONDS):
                async with self._http.stream(path, {"after": after}) as source:
                    async for event in _decoded(source, until="log.synced"):
                        found.append(event)
                        size += len(event.text) if isinstance(event, PartUpdated) else 0
                        if len(found) >= _LOG_EVENTS or size > _LOG_CHARACTERS:
                            break
        except RequestError as error:
            if error.status in _NOT_FOUND and not self._logless:
                self._logless = True
                told = "OpenCode %s has no log of session %s: what its stream missed is read from its lists."
                logger.info(told, self._version, session_id)
        except OpenCodeMCPError:
            pass
        return found

    async def sessions(self) -> Sequence[Session]:
        """List the sessions of all projects, newest first."""
        return await self._list(_SESSIONS_SEARCHED, _SESSIONS_SHOWN, _SESSIONS_IF_LARGE, seconds=_PATIENT)

    async def session(self, session_id: str) -> Session:
        """Return one session."""
        body = await self._http.get(f"/api/session/{session_id}", seconds=_PATIENT)
        session = decode.session(mapping(body, "data"))
        if session is None:
            raise RequestError("The session is archived.")
        return session

    async def create_session(self, directory: str) -> Session:
        """Create a session at a location; without one it is where the server runs."""
        wanted = {"location": {"directory": directory}} if directory else {}
        body = await self._http.post("/api/session", wanted, seconds=_PATIENT)
        session = decode.session(mapping(body, "data"))
        if session is None:
            raise ProtocolError("The new session came back without an id.")
        return session

    async def messages(self, session_id: str, limit: int) -> Sequence[Message]:
        """Return the newest messages, oldest first, each with the user's message that it answers.

        In between there is what is no message, such as the end of an execution: then more is asked for.
        """
        body = await self._messages(session_id, limit, order="desc")
        entries = decode.entries(body)
        for _ in range(_PAGES):
            lacking, cursor = limit - len(entries), text(body, "cursor", "next")
            if lacking <= 0 or not cursor:
                break
            body = await self._next_page(session_id, lacking, cursor)
            entries += decode.entries(body)
        entries = entries[:limit]
        found = decode.messages(entries)
        if found and found[0].role == "assistant":
            users = sum(one.role == "user" for one in found)
            with suppress(RequestError, ProtocolError):
                asked = decode.user_ids(
                    await self._messages(session_id, users + 1, order="desc", type="user")
                )
                found = decode.messages(entries, asked[users] if len(asked) > users else "")
        return found

    async def is_busy(self, session: Session) -> bool:
        """Ask who is at work."""
        return session.id in decode.active(await self._http.get("/api/session/active", seconds=_PATIENT))

    async def prompt(self, session: Session, prompt: str) -> str:
        """Queue it: the default would steer a turn of somebody else that has begun meanwhile."""
        wanted = {"text": prompt, "delivery": "queue"}
        body = await self._http.post(f"/api/session/{session.id}/prompt", wanted, seconds=_PATIENT)
        return identifier(body, "data", "id")

    async def abort(self, session_id: str) -> None:
        """Interrupt a session; no error if it is idle."""
        await self._http.post(f"/api/session/{session_id}/interrupt", seconds=_PATIENT)

    async def _requests(self, session: Session) -> tuple[list[Request], bool]:
        """Return what a session waits for, and whether that is known to be all."""
        permissions = await self._asked(session, "permission", "/api/permission/request")
        forms = await self._asked(session, "form", "/api/form", "/api/form/request")
        found = decode.requests(permissions, forms)
        complete = permissions is not None and forms is not None
        return [one for one in found if one.session_id == session.id], complete

    async def _asked(self, session: Session, what: str, *elsewhere: str) -> Any:
        """Ask what a session waits for, and where a version does not tell, what its whole directory does.

        Returns:
            The answer; None if this version tells it nowhere.
        """
        where = {"location[directory]": session.directory} if session.directory else None
        for path, params in (
            (f"/api/session/{session.id}/{what}", None),
            *((one, where) for one in elsewhere),
        ):
            try:
                return await self._http.get(path, params)
            except RequestError as error:
                if error.status not in _NOT_FOUND:
                    raise
        return None

    async def _next_page(self, session_id: str, lacking: int, cursor: str) -> Any:
        if lacking < _PAGE:
            with suppress(TooLargeError):
                return await self._messages(session_id, _PAGE, cursor=cursor)
        return await self._messages(session_id, lacking, cursor=cursor)

    async def _messages(self, session_id: str, limit: int, **more: str) -> Any:
        return await self._http.get(
            f"/api/session/{session_id}/message",
            {"limit": limit, **more},
            seconds=_PATIENT,
            max_bytes=_MESSAGES_BYTES,
        )

    async def _list(self, limit: int, *fewer: int, seconds: float | None = None) -> list[Session]:
        where = {"parentID": "null", "archived": "false", "limit": limit, "order": "desc"}
        try:
            body = await self._http.get("/api/session", where, seconds=seconds, max_bytes=_SESSIONS_BYTES)
        except TooLargeError:
            if not fewer:
                raise
            return await self._list(*fewer, seconds=seconds)
        return [one for one in decode.sessions(body) if one.parent_id is None]


async def _decoded(
    source: AsyncIterator[httpx2.ServerSentEvent], until: str | None = None
) -> AsyncGenerator[Event]:
    events = Events()
    async for sent in source:
        envelope = parsed(sent)
        if until is not None and mapping(envelope).get("type") == until:
            return
        for event in events.read(envelope):
            yield event
