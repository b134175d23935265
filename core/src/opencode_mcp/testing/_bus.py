"""The two event streams: who listens, and the envelopes of OpenCode 1.18.33 around each event."""

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from starlette.types import Receive, Send

from opencode_mcp.testing._ids import Ids
from opencode_mcp.testing._serve import until_disconnect

Json = dict[str, Any]

_STORED = {
    "session.created",
    "session.updated",
    "session.deleted",
    "message.updated",
    "message.part.updated",
}
_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
    (b"vary", b"Origin"),
]


class Bus:
    """Passes events on to the streams that are open now; nothing is kept for later ones."""

    def __init__(self, ids: Ids, heartbeat_seconds: float, deaf_seconds: float) -> None:
        self._ids = ids
        self._deaf_seconds = deaf_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._streams: dict[MemoryObjectSendStream[bytes], str | None] = {}
        self._sequence: Counter[str] = Counter()

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def publish(self, kind: str, properties: Json, directory: str) -> None:
        """Send an event to `/global/event` and to the `/event` of its directory."""
        payload = {"id": self._ids.new("evt"), "type": kind, "properties": properties}
        around = {"directory": directory, "project": "global"}
        records = [{**around, "payload": payload}]
        if kind in _STORED:
            session_id: str = properties["sessionID"]
            stored: Json = {
                "id": payload["id"],
                "type": f"{kind}.1",
                "seq": self._sequence[session_id],
                "aggregateID": session_id,
                "data": properties,
            }
            self._sequence[session_id] += 1
            duplicate = {"type": "sync", "syncEvent": stored, "id": payload["id"]}
            records.append({**around, "payload": duplicate})
        if self._streams:
            everywhere, here = b"".join(map(_line, records)), _line(payload)
            for stream, wanted in tuple(self._streams.items()):
                if wanted is None:
                    stream.send_nowait(everywhere)
                elif wanted == directory:
                    stream.send_nowait(here)

    def write(self, data: bytes) -> None:
        """Send these very bytes to every stream."""
        for stream in self._streams:
            stream.send_nowait(data)

    def cut(self) -> None:
        """End every open stream."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    async def stream(
        self,
        receive: Receive,
        send: Send,
        directory: str | None,
        silent: Callable[[], bool],
        *,
        once: bool = False,
    ) -> None:
        """Answer a request for events.

        Args:
            receive: The ASGI channel from the client.
            send: The ASGI channel to the client.
            directory: The project whose events are wanted; None for all, in the envelope of `/global/event`.
            silent: While true, nothing goes out and what happens is lost.
            once: End after the first event.
        """

        def own(kind: str) -> bytes:
            payload: Json = {"id": self._ids.new("evt"), "type": kind, "properties": {}}
            return _line({"payload": payload} if directory is None else payload)

        async def write(data: bytes) -> None:
            if not silent():
                await send({"type": "http.response.body", "body": data, "more_body": True})

        async def follow() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            if directory is None and self._deaf_seconds:
                await write(own("server.connected"))
                await anyio.sleep(self._deaf_seconds)
                self._streams[feed] = directory
            else:
                self._streams[feed] = directory
                await write(own("server.connected"))
            if once:
                feed.close()
            ahead = anyio.current_time() + self._heartbeat_seconds
            while True:
                data = b""
                with anyio.CancelScope(deadline=ahead):
                    try:
                        data = await events.receive()
                    except anyio.EndOfStream:
                        await send({"type": "http.response.body", "body": b""})
                        return
                if not data:
                    data = own("server.heartbeat")
                    ahead += self._heartbeat_seconds
                await write(data)

        feed, events = anyio.create_memory_object_stream[bytes](math.inf)
        try:
            with feed, events:
                await until_disconnect(receive, follow)
        finally:
            self._streams.pop(feed, None)


def _line(record: Json) -> bytes:
    return b"data: " + json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
