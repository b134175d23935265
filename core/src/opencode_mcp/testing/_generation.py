"""The seam between a `FakeOpenCode` and the API it speaks: one implementation for 1.x, one for 2.x."""

from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from opencode_mcp.testing._faults import Fault
from opencode_mcp.testing._play import Player
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools

Json = dict[str, Any]


class Generation(Protocol):
    """An OpenCode server of one generation, without what both have in common: port, password and faults.

    Attributes:
        store: What it remembers.
        tools: What it asks.
        player: Its model.
    """

    store: Store
    tools: Tools
    player: Player

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        ...

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, fault: Callable[[], Fault | None]
    ) -> None:
        """Answer a request, as an ASGI app; streams go wrong as `fault` says."""
        ...

    def prompt(self, session_id: str, text: str) -> None:
        """Send a prompt."""
        ...

    def set_busy(self, session_id: str, busy: bool) -> None:
        """Say that a session is busy, or idle, without a turn."""
        ...

    def emit(self, kind: str, properties: Json, directory: str) -> None:
        """Send an event to the streams that are open."""
        ...

    def emit_raw(self, data: str) -> None:
        """Send any text as an event to the streams that are open."""
        ...

    def cut(self) -> None:
        """End the streams that are open."""
        ...

    async def close(self) -> None:
        """End the streams and the turns, as a server does that stops."""
        ...
