"""OpenCode 1.x: the classic routes, as run on 1.18.33. Its own `/api/*` is another engine and never used."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import httpx2

from opencode_mcp.errors import ProtocolError, RequestError, TooLargeError
from opencode_mcp.model import Session
from opencode_mcp.opencode import v1_decode as decode
from opencode_mcp.opencode.api import Event, Message, Request, Snapshot
from opencode_mcp.opencode.fields import text
from opencode_mcp.opencode.http import Http, parsed

_SESSIONS_SHOWN = 50
_SESSIONS_SEARCHED = 1000
_SESSIONS_IF_LARGE = 5
_PATIENT = 15.0
"""Seconds for what a person asks for: the first request of a project can take long on a small machine."""
_SESSIONS_BYTES = 4 * 1024 * 1024


_MESSAGES_BYTES = 16 * 1024 * 1024
"""Messages hold the outputs of tools, which reach some megabytes."""


class V1:
    """The `OpenCode` protocol on the 1.x API."""

    def __init__(self, http: Http, version: str) -> None:
        self._http = http
        self._version = version

    @property
    def generation(self) -> Literal[1]:
        """The API of 1.x."""
        return 1

    @property
    def version(self) -> str:
        """The server's version."""
        return self._version

    async def ping(self) -> None:
        """Ask for `/global/health`."""
        await self._http.get("/global/health", max_bytes=64 * 1024)

    async def directory(self) -> str:
        """Ask for `/path`."""
        return text(await self._http.get("/path", max_bytes=64 * 1024), "directory")

    async def snapshot(self, directories: Collection[str] = ()) -> Snapshot:
        """Take stock; status, permissions and questions are asked for each directory, as 1.x wants it."""
        directory = await self.directory()
        sessions = await self._list(_SESSIONS_SHOWN, _SESSIONS_IF_LARGE)
        busy, requests = await self._open_work(directory)
        for place in directories:
            # One project that is broken, or gone, must not hide the others.
            with suppress(RequestError, ProtocolError):
                more_busy, more_requests = await self._open_work(place)
                busy |= more_busy
                requests += more_requests
        return Snapshot(
            directory=directory, sessions=tuple(sessions), busy=frozenset(busy), requests=tuple(requests)
        )

    @asynccontextmanager
    async def events(self, heard: Callable[[], None] | None = None) -> AsyncGenerator[AsyncIterator[Event]]:
        """Follow `/global/event`, the one stream that covers every project of the server."""
        async with self._http.stream("/global/event", heard=heard) as source:
            yield _decoded(source)

    async def log(self, session_id: str, after: int) -> Sequence[Event]:
        """Return nothing: 1.x keeps no log."""
        return ()

    async def sessions(self) -> Sequence[Session]:
        """List the sessions of the server's own directory, newest first."""
        wanted = _SESSIONS_SEARCHED, _SESSIONS_SHOWN, _SESSIONS_IF_LARGE
        return await self._list(*wanted, seconds=_PATIENT)

    async def session(self, session_id: str) -> Session:
        """Return one session; its id tells 1.x the project."""
        session = decode.session(await self._http.get(f"/session/{session_id}", seconds=_PATIENT))
        if session is None:
            raise RequestError("The session is archived.")
        return session

    async def create_session(self, directory: str) -> Session:
        """Create a session; an empty `directory` means the server's own."""
        where = {"directory": directory} if directory else None
        session = decode.session(await self._http.post("/session", {}, where, seconds=_PATIENT))
        if session is None:
            raise ProtocolError("The new session came back without an id.")
        return session

    async def messages(self, session_id: str, limit: int) -> Sequence[Message]:
        """Return the newest messages, oldest first."""
        path = f"/session/{session_id}/message"
        return decode.messages(
            await self._http.get(path, {"limit": limit}, seconds=_PATIENT, max_bytes=_MESSAGES_BYTES)
        )

    async def is_busy(self, session: Session) -> bool:
        """Ask the status of the session's own directory."""
        where = {"directory": session.directory} if session.directory else None
        return session.id in decode.busy(await self._http.get("/session/status", where, seconds=_PATIENT))

    async def prompt(self, session: Session, prompt: str) -> str:
        """Use `prompt_async`, which answers 204 before anything happens, and tells no id."""
        parts = {"parts": [{"type": "text", "text": prompt}]}
        await self._http.post(f"/session/{session.id}/prompt_async", parts, seconds=_PATIENT)
        return ""

    async def abort(self, session_id: str) -> None:
        """Stop a session; answers `true` also when it is idle."""
        await self._http.post(f"/session/{session_id}/abort", seconds=_PATIENT)

    async def _open_work(self, directory: str) -> tuple[set[str], list[Request]]:
        where = {"directory": directory}
        busy = decode.busy(await self._http.get("/session/status", where))
        requests = decode.permissions(await self._optional("/permission", where))
        requests += decode.questions(await self._optional("/question", where))
        return busy, requests

    async def _optional(self, path: str, where: dict[str, str]) -> Any:
        """Ask for what older 1.x versions lack: they answer with their web page, or not found."""
        try:
            return await self._http.get(path, where)
        except (ProtocolError, RequestError):
            return []

    async def _list(self, limit: int, *fewer: int, seconds: float | None = None) -> list[Session]:
        # Without `roots` the list is filled up, and cut off, by sub-agents' sessions.
        where = {"roots": "true", "limit": limit}
        try:
            body = await self._http.get("/session", where, seconds=seconds, max_bytes=_SESSIONS_BYTES)
        except TooLargeError:
            if not fewer:
                raise
            return await self._list(*fewer, seconds=seconds)
        return decode.sessions(body)


async def _decoded(source: AsyncIterator[httpx2.ServerSentEvent]) -> AsyncGenerator[Event]:
    async for sent in source:
        event = decode.event(parsed(sent))
        if event is not None:
            yield event
