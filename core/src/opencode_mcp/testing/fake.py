"""`FakeOpenCode`: the API of OpenCode 1.18.33 over real HTTP, and a model that says what it is told."""

import base64
import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import anyio
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from opencode_mcp.testing import _serve
from opencode_mcp.testing._bus import Bus
from opencode_mcp.testing._faults import SILENT, Fault, faulty, unauthorized
from opencode_mcp.testing._ids import Ids
from opencode_mcp.testing._routes import Routes
from opencode_mcp.testing._store import Delta, Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing._turns import Turns
from opencode_mcp.testing.script import Reply, echo

Json = dict[str, Any]

_STREAMS = ("/event", "/global/event")
_REMEMBERED_REQUESTS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Received:
    """A request that came in.

    Attributes:
        method: `GET`, `POST`, …
        path: Without the query.
        query: The parameters of the query.
        body: The JSON of the body; its text if it is none; None if it is empty.
        headers: By lower-case name.
    """

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    headers: Mapping[str, str]


class FakeOpenCode:
    """An OpenCode server for tests.

    It needs no script: by default it answers `You said: <prompt>`. It can be served, killed and served again;
    its sessions stay.

    Example:
        ```python
        fake = FakeOpenCode()
        fake.script(Reply(tools=[ToolCall(asks=True)], text="Done."))
        async with fake.serve():
            ...  # talk to fake.url
        ```

    Attributes:
        directory: The project it runs in.
        fault: How it goes wrong at the moment, or None.
        fault_path: The fault concerns paths that start with this.
        redirect_to: Where `Fault.REDIRECT` points.
        requests: The last 10,000 requests, oldest first.
        port: The port it was served on last; 0 before.
        host: The address it was served on last.
    """

    def __init__(
        self,
        directory: str = "/srv/project",
        version: str = "1.18.33",
        password: str | None = None,
        username: str = "opencode",
        *,
        default_reply: Callable[[str], Reply] = echo,
        heartbeat_seconds: float = 10.0,
        deaf_seconds: float = 0.0,
        delta_clock: bool = False,
    ) -> None:
        """Prepare a server; nothing listens yet.

        Args:
            directory: The project it runs in; need not exist.
            version: What it says its version is.
            password: The password it wants, on every route; None for none.
            username: The user name that goes with it.
            default_reply: Answers prompts for which there is no script, from the prompt's text.
            heartbeat_seconds: The time between two heartbeats of a stream.
            deaf_seconds: How long after `server.connected` a `/global/event` still misses events; 0.02 to 0.2
                in OpenCode 1.18.33.
            delta_clock: Let each delta carry `time.time_ns()` and a blank instead of its text, so that a
                reader in any process of this machine can tell how old it is.
        """
        self.directory = directory
        self.fault_path = "/"
        self.redirect_to = "http://example.invalid/"
        self.requests: deque[Received] = deque(maxlen=_REMEMBERED_REQUESTS)
        self.host, self.port = "127.0.0.1", 0
        self._fault: Fault | None = None
        self._credentials = None if password is None else f"{username}:{password}"
        ids = Ids()
        self._bus = Bus(ids, heartbeat_seconds, deaf_seconds)
        self._store = Store(self._bus, ids, version)
        self._tools = Tools(self._store)
        self._turns = Turns(self._store, self._tools, default_reply)
        self._turns.delta_clock = delta_clock
        self._routes = Routes(self._store, self._turns, self._tools, directory, version)
        self._router = self._routes.router()
        self._server: _serve.Server | None = None

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def fault(self) -> Fault | None:
        """How it goes wrong at the moment; set it at any time, None mends it."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        if fault is Fault.STREAM_CUT:
            self.cut_streams()

    @property
    def sessions(self) -> dict[str, Json]:
        """The sessions by id, in OpenCode's JSON."""
        return self._store.sessions

    @property
    def messages(self) -> dict[str, list[Json]]:
        """The messages of each session, `{info, parts}`, oldest first."""
        return self._store.messages

    @property
    def busy(self) -> set[str]:
        """The ids of the sessions that are busy."""
        return set(self._store.statuses)

    @property
    def permissions(self) -> list[Json]:
        """The open permission requests."""
        return [request.body for request in self._tools.permissions.values()]

    @property
    def questions(self) -> list[Json]:
        """The open questions."""
        return [request.body for request in self._tools.questions.values()]

    @property
    def deltas(self) -> Sequence[Delta]:
        """Every piece of text that went out, with the time at which it did."""
        return self._store.deltas

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return self._bus.listeners

    def script(self, *replies: Reply) -> None:
        """Answer the next prompts like this, in turn; adds to what is left of earlier scripts."""
        self._turns.script.extend(replies)

    def clear_script(self) -> None:
        """Forget what is left of the scripts."""
        self._turns.script.clear()

    def create_session(self, title: str = "", *, directory: str = "", parent: str = "") -> str:
        """Create a session, as if on the server's own screen, and return its id."""
        session = self._store.create_session(directory or self.directory, title=title, parent=parent)
        return session["id"]

    def prompt(self, session_id: str, text: str) -> None:
        """Send a prompt, as if on the server's own screen; only while it is served."""
        self._turns.prompt(session_id, [text])

    def set_busy(self, session_id: str, busy: bool = True) -> None:
        """Say that a session is busy, or idle, without a turn."""
        self._store.set_status(session_id, "busy" if busy else "idle")

    def emit(self, kind: str, properties: Mapping[str, Any], *, directory: str = "") -> None:
        """Send any event to the streams that are open.

        Args:
            kind: Its type, for example `session.error`.
            properties: Its properties.
            directory: The project it belongs to; by default the server's own.
        """
        self._bus.publish(kind, dict(properties), directory or self.directory)

    def cut_streams(self) -> None:
        """End the event streams that are open now; new ones work."""
        self._bus.cut()

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0, host: str = "127.0.0.1") -> AsyncGenerator["FakeOpenCode"]:
        """Listen until the block ends.

        Args:
            port: The port; 0 takes any free one.
            host: The address to listen on.

        Raises:
            OSError: The port is taken.
        """
        sock = _serve.bind(host, port)
        server = _serve.Server(self, [sock])
        await server.start()
        self.attach(server, host, sock.getsockname()[1])
        try:
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave(abruptly=False)

    async def kill(self) -> None:
        """Die as a killed process does: reset every connection, listen no more; inside `serve` only."""
        await self._leave(abruptly=True)

    def attach(self, server: _serve.Server, host: str, port: int) -> None:
        """Note where this app is served; for whoever serves it other than by `serve`."""
        self._server, self.host, self.port = server, host, port

    async def detach(self) -> None:
        """End the streams and turns; for whoever serves it other than by `serve`."""
        self._server = None
        self._bus.cut()
        await self._turns.close()

    async def _leave(self, *, abruptly: bool) -> None:
        server = self._server
        if server is None:
            return
        try:
            if abruptly:
                await server.stop(abruptly=True)
            await self.detach()
        finally:
            await server.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as an ASGI app."""
        receive = await self._remember(scope, receive)
        path: str = scope["path"]
        request = Request(scope)
        if self._fault is not None and path.startswith(self.fault_path):
            app = faulty(self._fault, lambda: self._reset(scope), self.redirect_to)
            if app is not None:
                await app(scope, receive, send)
                return
        if not self._admits(request):
            await unauthorized()(scope, receive, send)
        elif path in _STREAMS and scope["method"] == "GET":
            directory = self._routes.directory_of(request) if path == "/event" else None
            once = self._fault is Fault.STREAM_CUT
            await self._bus.stream(receive, send, directory, lambda: self._fault in SILENT, once=once)
        else:
            await self._router(scope, receive, send)

    async def _remember(self, scope: Scope, receive: Receive) -> Receive:
        """Record a request, and return a channel on which its body can be read again."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.requests.append(
            Received(
                method=scope["method"],
                path=scope["path"],
                query=dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True)),
                body=_decoded(body),
                headers={name.decode(): value.decode("latin-1") for name, value in scope["headers"]},
            )
        )
        unread = True

        async def again() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        return again

    def _admits(self, request: Request) -> bool:
        if self._credentials is None:
            return True
        expected = base64.b64encode(self._credentials.encode()).decode()
        given = request.headers.get("authorization", "")
        return given == f"Basic {expected}" or request.query_params.get("auth_token") == expected

    def _reset(self, scope: Scope) -> None:
        if self._server is not None:
            self._server.reset(_serve.client_of(scope))


def _decoded(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
