"""The event stream of OpenCode 2.x, which keeps nothing, and the logs of the sessions, which do."""

import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from starlette.types import Receive, Send

from opencode_mcp.testing._ids import Ids, now_ms
from opencode_mcp.testing._serve import until_disconnect

Json = dict[str, Any]

_VOLATILE = ("session.status", "session.idle", "session.usage.updated", "session.compacted")
_VOLATILE_ENDS = (".delta", ".progress")
_SECOND_VERSION = ("session.deleted", "session.tool.success", "session.tool.failed")
_NOWHERE = ("session.execution.", "session.usage.updated")
_HEARTBEAT = b": heartbeat\n\n"
_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


class Listener:
    """A reader of a stream.

    Attributes:
        aggregate: The session whose stored events it wants; empty for everything.
    """

    def __init__(self, aggregate: str, most_behind: int) -> None:
        self.aggregate = aggregate
        self._most_behind = most_behind
        self._waiting: deque[bytes] = deque()
        self._news = anyio.Event()
        self._closed = False

    def push(self, data: bytes) -> bool:
        """Hand on an event; False means that the reader is too far behind, and was cut off."""
        if len(self._waiting) >= self._most_behind:
            self._waiting.clear()  # what comes after a gap is worth nothing
            self.close()
            return False
        self._waiting.append(data)
        self._news.set()
        return True

    def close(self) -> None:
        """End the stream after what still waits."""
        self._closed = True
        self._news.set()

    async def events(self, heartbeat_seconds: float) -> AsyncIterator[bytes]:
        """Give what comes, with heartbeats where nothing does."""
        ahead = anyio.current_time() + heartbeat_seconds
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._closed:
                return
            self._news = anyio.Event()
            with anyio.CancelScope(deadline=ahead):
                await self._news.wait()
            if anyio.current_time() >= ahead:
                ahead += heartbeat_seconds
                yield _HEARTBEAT


class Feed:
    """Publishes events.

    Attributes:
        logs: The stored events of each session.
    """

    def __init__(self, ids: Ids, heartbeat_seconds: float, most_behind: int) -> None:
        self.logs: dict[str, list[Json]] = {}
        self._ids = ids
        self._heartbeat_seconds = heartbeat_seconds
        self._most_behind = most_behind
        self._listeners: set[Listener] = set()

    @property
    def listeners(self) -> int:
        """How many event streams are open; those of logs do not count."""
        return sum(not one.aggregate for one in self._listeners)

    def publish(self, kind: str, data: Json, directory: str) -> None:
        """Send an event to every stream, and store it if events of its kind are."""
        event: Json = {"id": self._ids.new("evt"), "created": now_ms(), "type": kind}
        aggregate = str(data.get("sessionID", "")) if _is_stored(kind) else ""
        if aggregate:
            log = self.logs.setdefault(aggregate, [])
            version = 2 if kind in _SECOND_VERSION else 1
            event["durable"] = {"aggregateID": aggregate, "seq": len(log), "version": version}
        if not kind.startswith(_NOWHERE):
            event["location"] = {"directory": directory}
        event["data"] = data
        line = _line(event)
        if aggregate:
            self.logs[aggregate].append(json.loads(line.removeprefix(b"data: ")))
        self.write(line, aggregate)

    def write(self, line: bytes, stored_in: str = "") -> None:
        """Send a line to every stream, and to the followers of a log."""
        for listener in tuple(self._listeners):
            if listener.aggregate in ("", stored_in) and not listener.push(line):
                self._listeners.discard(listener)

    def cut(self) -> None:
        """End every open stream."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def stream(
        self, receive: Receive, send: Send, silent: Callable[[], bool], *, once: bool = False
    ) -> None:
        """Answer a request for the events of the server.

        Args:
            receive: The ASGI channel from the client.
            send: The ASGI channel to the client.
            silent: While true, nothing goes out and what happens is lost.
            once: End after the first event.
        """
        hello = _line({"id": self._ids.new("evt"), "type": "server.connected", "data": {}})
        first = [hello] if once else [hello, _HEARTBEAT]
        await self._run(receive, send, Listener("", self._most_behind), first, silent, live=not once)

    async def log(
        self,
        receive: Receive,
        send: Send,
        session_id: str,
        after: int,
        silent: Callable[[], bool],
        *,
        follow: bool,
    ) -> None:
        """Answer a request for the stored events of a session after a sequence number."""
        log = self.logs.get(session_id, [])
        synced: Json = {"type": "log.synced", "aggregateID": session_id}
        if log:
            synced["seq"] = log[-1]["durable"]["seq"]
        first = [_line(event) for event in log if event["durable"]["seq"] > after] + [_line(synced)]
        listener = Listener(session_id, self._most_behind)
        await self._run(receive, send, listener, first, silent if follow else _never, live=follow)

    async def _run(
        self,
        receive: Receive,
        send: Send,
        listener: Listener,
        first: list[bytes],
        silent: Callable[[], bool],
        *,
        live: bool,
    ) -> None:
        async def write(data: bytes) -> None:
            if not silent():
                await send({"type": "http.response.body", "body": data, "more_body": True})

        async def follow() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await write(b"".join(first))
            if live:
                async for data in listener.events(self._heartbeat_seconds):
                    await write(data)
            await send({"type": "http.response.body", "body": b""})

        if live:
            self._listeners.add(listener)
        try:
            await until_disconnect(receive, follow)
        finally:
            self._listeners.discard(listener)


def _is_stored(kind: str) -> bool:
    return kind.startswith("session.") and kind not in _VOLATILE and not kind.endswith(_VOLATILE_ENDS)


def _never() -> bool:
    return False


def _line(record: Json) -> bytes:
    return b"data: " + json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
