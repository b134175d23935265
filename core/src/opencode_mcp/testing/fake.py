"""`FakeOpenCode`: OpenCode 1.18.33, or 2.x, over real HTTP, and a model that says what it is told."""

import base64
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from opencode_mcp.testing._faults import Fault, faulty, unauthorized
from opencode_mcp.testing._generation import Generation
from opencode_mcp.testing._requests import Received as Received
from opencode_mcp.testing._requests import Requests
from opencode_mcp.testing._served import Served
from opencode_mcp.testing._store import Delta
from opencode_mcp.testing._v1 import Classic
from opencode_mcp.testing._v2 import Current
from opencode_mcp.testing._v2_routes import FormLists
from opencode_mcp.testing.script import Reply, echo

Json = dict[str, Any]


class FakeOpenCode(Served):
    """An OpenCode server for tests.

    It needs no script: by default it answers `You said: <prompt>`. It can be served, killed and served again;
    its sessions stay. The same scripts work with either generation; only the HTTP API differs.

    Example:
        ```python
        fake = FakeOpenCode()
        fake.script(Reply(tools=[ToolCall(asks=True)], text="Done."))
        async with fake.serve():
            ...  # talk to fake.url
        ```

    Attributes:
        directory: The project it runs in.
        version: What it says its version is.
        generation: 1 or 2.
        username: The user name it wants.
        password: The password it wants; None for none.
        fault: How it goes wrong at the moment, or None.
        fault_path: The fault concerns paths that start with this.
        redirect_to: Where `Fault.REDIRECT` points.
        requests: The last 10,000 requests, oldest first.
    """

    def __init__(
        self,
        directory: str = "/srv/project",
        version: str = "",
        password: str | None = None,
        username: str = "opencode",
        *,
        generation: Literal[1, 2] = 1,
        preview: bool = False,
        pid: int = 0,
        default_reply: Callable[[str], Reply] = echo,
        heartbeat_seconds: float | None = None,
        deaf_seconds: float = 0.0,
        most_behind: int = 4096,
        has_log: bool = True,
        form_lists: FormLists = "session",
        delta_clock: bool = False,
    ) -> None:
        """Prepare a server; nothing listens yet.

        Args:
            directory: The project it runs in; need not exist.
            version: What it says its version is; by default 1.18.33, 2.1.2 or 2.0.0-preview.
            password: The password it wants, on every route. None for none in 1.x; 2.x then makes one up.
            username: The user name that goes with it.
            generation: Which API it speaks, that of 1.x or that of 2.x.
            preview: Speak 2.x as its preview of July 2026 did.
            pid: In 2.x, the process id that it tells; by default that of this process.
            default_reply: Answers prompts for which there is no script, from the prompt's text.
            heartbeat_seconds: The time between two heartbeats of a stream; by default 10, in 2.x 15.
            deaf_seconds: In 1.x, how long after `server.connected` a `/global/event` still misses events;
                0.02 to 0.2 in OpenCode 1.18.33.
            most_behind: In 2.x, how many events a reader may be behind before its stream is cut.
            has_log: In 2.x, whether there is a durable log of each session's events.
            form_lists: In 2.x, where open forms are listed: by session and by location, by location alone, or
                nowhere.
            delta_clock: Let each delta carry `time.time_ns()` and a blank instead of its text, so that a
                reader in any process of this machine can tell how old it is.
        """
        self.directory = directory
        self.generation = generation
        self.version = version or ("1.18.33" if generation == 1 else "2.0.0-preview" if preview else "2.1.2")
        self.username = username
        self.password = secrets.token_urlsafe(16) if password is None and generation == 2 else password
        self.fault_path = "/"
        self.redirect_to = "http://example.invalid/"
        self.requests = Requests()
        self._fault: Fault | None = None
        self._works: Generation
        if generation == 1:
            seconds = 10.0 if heartbeat_seconds is None else heartbeat_seconds
            self._works = Classic(
                directory, self.version, default_reply, seconds, deaf_seconds, delta_clock=delta_clock
            )
        else:
            self._works = Current(
                directory,
                self.version,
                default_reply,
                15.0 if heartbeat_seconds is None else heartbeat_seconds,
                preview=preview,
                pid=pid or os.getpid(),
                url=lambda: self.url,
                most_behind=most_behind,
                has_log=has_log,
                form_lists=form_lists,
                delta_clock=delta_clock,
            )

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
        """The sessions by id, in the JSON of 1.x."""
        return self._works.store.sessions

    @property
    def messages(self) -> dict[str, list[Json]]:
        """The messages of each session, in the JSON of 1.x: `{info, parts}`, oldest first."""
        return self._works.store.messages

    @property
    def busy(self) -> set[str]:
        """The ids of the sessions that are busy."""
        return set(self._works.store.statuses)

    @property
    def permissions(self) -> list[Json]:
        """The open permission requests, in the JSON of 1.x."""
        return [request.body for request in self._works.tools.permissions.values()]

    @property
    def questions(self) -> list[Json]:
        """The open questions, in the JSON of 1.x."""
        return [request.body for request in self._works.tools.questions.values()]

    @property
    def deltas(self) -> Sequence[Delta]:
        """Every piece of text that went out, with the time at which it did."""
        return self._works.store.deltas

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return self._works.streams

    def script(self, *replies: Reply) -> None:
        """Answer the next prompts like this, in turn; adds to what is left of earlier scripts."""
        self._works.player.script.extend(replies)

    def clear_script(self) -> None:
        """Forget what is left of the scripts."""
        self._works.player.script.clear()

    def create_session(self, title: str = "", *, directory: str = "", parent: str = "") -> str:
        """Create a session, as if on the server's own screen, and return its id."""
        session = self._works.store.create_session(directory or self.directory, title=title, parent=parent)
        return session["id"]

    def move_session(self, session_id: str, directory: str) -> None:
        """Give a session another directory, as if on the server's own screen."""
        self._works.store.move_session(session_id, directory)

    def prompt(self, session_id: str, text: str) -> None:
        """Send a prompt, as if on the server's own screen; only while it is served."""
        self._works.prompt(session_id, text)

    def hold_turns(self) -> anyio.Event:
        """Take prompts that come over HTTP and let nothing happen until the event is set."""
        held = self._works.player.held = anyio.Event()
        return held

    def set_busy(self, session_id: str, busy: bool = True) -> None:
        """Say that a session is busy, or idle, without a turn."""
        self._works.set_busy(session_id, busy)

    def emit(self, kind: str, properties: Mapping[str, Any], *, directory: str = "") -> None:
        """Send any event to the streams that are open.

        Args:
            kind: Its type, for example `session.error`.
            properties: Its properties; in 2.x its data. What 2.x stores also goes into the session's log.
            directory: The project it belongs to; by default the server's own.
        """
        self._works.emit(kind, dict(properties), directory or self.directory)

    def emit_raw(self, data: str) -> None:
        """Send any text as an event to the streams that are open; it need not be JSON."""
        self._works.emit_raw(data)

    def cut_streams(self) -> None:
        """End the event streams that are open now; new ones work."""
        self._works.cut()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as an ASGI app."""
        receive = await self.requests.remember(scope, receive)
        if self._fault is not None and scope["path"].startswith(self.fault_path):
            app = faulty(self._fault, lambda: self.reset(scope), self.redirect_to)
            if app is not None:
                await app(scope, receive, send)
                return
        if self._admits(Request(scope)):
            await self._works.answer(scope, receive, send, lambda: self._fault)
        else:
            await unauthorized()(scope, receive, send)

    async def close(self) -> None:
        """End the streams and turns, as a server does that stops."""
        await self._works.close()

    def _admits(self, request: Request) -> bool:
        if self.password is None:
            return True
        expected = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        given = request.headers.get("authorization", "")
        return given == f"Basic {expected}" or request.query_params.get("auth_token") == expected
