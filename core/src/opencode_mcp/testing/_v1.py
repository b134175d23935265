"""OpenCode 1.18.33, put together from its parts."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from opencode_mcp.testing._bus import Bus
from opencode_mcp.testing._faults import SILENT, Fault
from opencode_mcp.testing._ids import Ids
from opencode_mcp.testing._play import Player
from opencode_mcp.testing._routes import Routes
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing._turns import Turns
from opencode_mcp.testing._v1_voice import ClassicVoice
from opencode_mcp.testing.script import Reply

Json = dict[str, Any]

_STREAMS = ("/event", "/global/event")


class Classic:
    """The first `Generation`."""

    def __init__(
        self,
        directory: str,
        version: str,
        default_reply: Callable[[str], Reply],
        heartbeat_seconds: float,
        deaf_seconds: float,
        *,
        delta_clock: bool,
    ) -> None:
        ids = Ids()
        self._bus = Bus(ids, heartbeat_seconds, deaf_seconds)
        self.store = Store(ids, version)
        self.store.voice = voice = ClassicVoice(self.store, self._bus)
        self.tools = Tools(self.store)
        self.player = Player(self.store, self.tools, default_reply, delta_clock=delta_clock)
        self._turns = Turns(self.store, self.tools, self.player, voice)
        self._routes = Routes(self.store, self._turns, self.tools, directory, version)
        self._router = self._routes.router()

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return self._bus.listeners

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, fault: Callable[[], Fault | None]
    ) -> None:
        """Answer a request, as an ASGI app."""
        if scope["path"] in _STREAMS and scope["method"] == "GET":
            directory = self._routes.directory_of(Request(scope)) if scope["path"] == "/event" else None
            once = fault() is Fault.STREAM_CUT
            await self._bus.stream(receive, send, directory, lambda: fault() in SILENT, once=once)
        else:
            await self._router(scope, receive, send)

    def prompt(self, session_id: str, text: str) -> None:
        """Send a prompt."""
        self._turns.prompt(session_id, [text])

    def set_busy(self, session_id: str, busy: bool) -> None:
        """Say that a session is busy, or idle, without a turn."""
        self.store.set_status(session_id, "busy" if busy else "idle")

    def emit(self, kind: str, properties: Json, directory: str) -> None:
        """Send an event, with these properties."""
        self._bus.publish(kind, properties, directory)

    def emit_raw(self, data: str) -> None:
        """Send any text as an event."""
        self._bus.write(f"data: {data}\n\n".encode())

    def cut(self) -> None:
        """End the streams that are open."""
        self._bus.cut()

    async def close(self) -> None:
        """End the streams and the turns."""
        self._bus.cut()
        await self._turns.close()
