"""OpenCode 2.x, put together from its parts."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from opencode_mcp.testing import _v2_json as shape
from opencode_mcp.testing._faults import SILENT, Fault
from opencode_mcp.testing._ids import Ids
from opencode_mcp.testing._play import Player
from opencode_mcp.testing._refusal import Refusal, refusing
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools, Wording
from opencode_mcp.testing._v2_events import Feed
from opencode_mcp.testing._v2_executions import Executions
from opencode_mcp.testing._v2_inbox import Inbox
from opencode_mcp.testing._v2_requests import Requests
from opencode_mcp.testing._v2_routes import FormLists, Routes
from opencode_mcp.testing._v2_voice import CurrentVoice
from opencode_mcp.testing._v2_words import number
from opencode_mcp.testing.script import Reply

Json = dict[str, Any]

_WORDING = Wording(
    rejected="The user declined this tool call",
    corrected="{feedback}",
    aborted="Tool execution interrupted",
    question="frm",
    sub_agent="subagent",
    agent="agent",
    child_title="{description}",
    child_result='<subagent sessionID="{id}" state="completed">\n{text}\n</subagent>',
)
_LOG = "/api/experimental/session/{session_id}/log"


class Current:
    """The second `Generation`."""

    def __init__(
        self,
        directory: str,
        version: str,
        default_reply: Callable[[str], Reply],
        heartbeat_seconds: float,
        *,
        preview: bool,
        pid: int,
        url: Callable[[], str],
        most_behind: int,
        has_log: bool,
        form_lists: FormLists,
        delta_clock: bool,
    ) -> None:
        ids = Ids()
        self._feed = Feed(ids, heartbeat_seconds, most_behind)
        self.store = Store(ids, version, names_sessions=False)
        messages = shape.Messages(self.store, preview=preview)
        self.store.voice = voice = CurrentVoice(self.store, self._feed, messages, preview=preview)
        self.tools = Tools(self.store, _WORDING)
        self.player = Player(self.store, self.tools, default_reply, delta_clock=delta_clock)
        self._inbox = Inbox(self.store, voice)
        self._executions = Executions(self.store, self.tools, self.player, voice, self._inbox)
        requests = Requests(self.store, self.tools, directory, preview=preview)

        def about() -> Json:
            if preview:
                return {"healthy": True, "version": version, "pid": pid}
            return {"version": version, "pid": pid, "urls": [url()], "paths": {"tmp": "/tmp/opencode"}}  # noqa: S108

        self._routes = Routes(
            self.store,
            self._executions,
            self._inbox,
            requests,
            messages,
            about,
            preview=preview,
            form_lists=form_lists,
        )
        self._table = [(method, compile_path(path)[0], run) for method, path, run in self._routes.table()]
        self._log_path = compile_path(_LOG)[0] if has_log else None

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return self._feed.listeners

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, fault: Callable[[], Fault | None]
    ) -> None:
        """Answer a request, as an ASGI app; what there is no route for is 404 and empty."""
        path, method = scope["path"], scope["method"]
        if method == "GET" and path == "/api/event":
            once = fault() is Fault.STREAM_CUT
            await self._feed.stream(receive, send, lambda: fault() in SILENT, once=once)
            return
        if method == "GET" and self._log_path is not None and (found := self._log_path.match(path)):
            await self._log(found["session_id"], scope, receive, send, lambda: fault() in SILENT)
            return
        for wanted, pattern, endpoint in self._table:
            if wanted == method and (found := pattern.match(path)):
                params = found.groupdict()
                request = Request({**scope, "path_params": params}, receive)
                respond = refusing(self._checked(endpoint, params.get("session_id")))
                await (await respond(request))(scope, receive, send)
                return
        await Response(status_code=404)(scope, receive, send)

    def prompt(self, session_id: str, text: str) -> None:
        """Send a prompt that waits for its turn."""
        self._inbox.admit(session_id, text, "queue")
        self._executions.wake(session_id)

    def set_busy(self, session_id: str, busy: bool) -> None:
        """Start or end an execution in which nothing happens."""
        self._executions.set_busy(session_id, busy)

    def emit(self, kind: str, properties: Json, directory: str) -> None:
        """Send an event, with these properties as its data."""
        self._feed.publish(kind, properties, directory)

    def emit_raw(self, data: str) -> None:
        """Send any text as an event."""
        self._feed.write(f"data: {data}\n\n".encode())

    def cut(self) -> None:
        """End the streams that are open."""
        self._feed.cut()

    async def close(self) -> None:
        """End the streams and the executions."""
        self._feed.cut()
        await self._executions.close()

    def _checked(
        self, endpoint: Callable[[Request], Any], session_id: str | None
    ) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            if session_id is not None:
                self._routes.check(session_id)
            return await endpoint(request)

        return answer

    async def _log(
        self, session_id: str, scope: Scope, receive: Receive, send: Send, silent: Callable[[], bool]
    ) -> None:
        request = Request(scope)
        try:
            self._routes.check(session_id)
            after = number(request, "after", -1, 0)
        except Refusal as refusal:
            await refusal.answer()(scope, receive, send)
            return
        follow = request.query_params.get("follow") == "true"
        await self._feed.log(receive, send, session_id, after, silent, follow=follow)
