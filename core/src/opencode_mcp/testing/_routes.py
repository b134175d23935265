"""The classic routes of OpenCode 1.18.33: what they take, what they answer, and how they refuse."""

import base64
import json
from collections.abc import Callable
from typing import Any

from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from opencode_mcp.testing._refusal import Refusal, bad, gone, id_of, json_of, limit, refusing, unexpected
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing._turns import Turns

Json = dict[str, Any]

WEB_PAGE = (
    '<!doctype html>\n<html lang="en">\n  <head><title>OpenCode</title></head>\n  <body></body>\n</html>\n'
)


class Routes:
    """Everything but the event streams."""

    def __init__(self, store: Store, turns: Turns, tools: Tools, directory: str, version: str) -> None:
        self._store = store
        self._turns = turns
        self._tools = tools
        self._directory = directory
        self._version = version

    def router(self) -> Router:
        """Return the ASGI app."""
        session = "/session/{session_id}"
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/global/health", self._health),
            ("GET", "/path", self._path),
            ("GET", "/session", self._list),
            ("POST", "/session", self._create),
            ("GET", "/session/status", self._status),
            ("GET", session, self._get),
            ("PATCH", session, self._patch),
            ("DELETE", session, self._delete),
            ("GET", f"{session}/children", self._children),
            ("GET", f"{session}/message", self._messages),
            ("POST", f"{session}/message", self._prompt),
            ("POST", f"{session}/prompt_async", self._prompt_async),
            ("POST", f"{session}/abort", self._abort),
            ("GET", "/permission", self._permissions),
            ("POST", "/permission/{request_id}/reply", self._reply_permission),
            ("GET", "/question", self._questions),
            ("POST", "/question/{request_id}/reply", self._reply_question),
            ("POST", "/question/{request_id}/reject", self._reject_question),
            ("GET", "/experimental/session", self._list_all),
        ]
        return Router(
            [Route(path, refusing(endpoint), methods=[method]) for method, path, endpoint in routes],
            default=HTMLResponse(WEB_PAGE),
            redirect_slashes=False,
            middleware=[Middleware(GZipMiddleware, minimum_size=1024)],
        )

    def directory_of(self, request: Request) -> str:
        """Return the project a request means."""
        asked = request.query_params.get("directory") or request.headers.get("x-opencode-directory")
        return (asked.rstrip("/") or "/") if asked else self._directory

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"healthy": True, "version": self._version})

    async def _path(self, request: Request) -> Response:
        home = "/home/user"
        return JSONResponse(
            {
                "home": home,
                "state": f"{home}/.local/state/opencode",
                "config": f"{home}/.config/opencode",
                "worktree": "/",
                "directory": self.directory_of(request),
            }
        )

    async def _list(self, request: Request) -> Response:
        directory = self.directory_of(request)
        found = [session for session in self._filtered(request) if session["directory"] == directory]
        return JSONResponse(found[: limit(request)])

    async def _list_all(self, request: Request) -> Response:
        project = {"id": "global", "worktree": "/"}
        found = [{**session, "project": project} for session in self._filtered(request)]
        return JSONResponse(found[: limit(request)])

    def _filtered(self, request: Request) -> list[Json]:
        query = request.query_params
        roots, search = query.get("roots", "false"), query.get("search", "").casefold()
        if roots not in ("true", "false"):
            raise bad(f'Expected "true" | "false", got "{roots}"', "roots", "Query")
        found = [
            session
            for session in self._store.sessions.values()
            if search in session["title"].casefold() and not (roots == "true" and "parentID" in session)
        ]
        return sorted(found, key=lambda session: (-session["time"]["updated"], session["id"]))

    async def _create(self, request: Request) -> Response:
        body = await json_of(request) if await request.body() else {}
        title, parent = body.get("title", ""), body.get("parentID", "")
        if not isinstance(title, str) or not isinstance(parent, str):
            raise Refusal(400, {"_tag": "BadRequest"})
        return JSONResponse(
            self._store.create_session(self.directory_of(request), title=title, parent=parent)
        )

    async def _get(self, request: Request) -> Response:
        return JSONResponse(self._session(request))

    async def _patch(self, request: Request) -> Response:
        session = self._session(request)
        self._store.touch_session(session["id"], title=str((await json_of(request)).get("title", "")))
        return JSONResponse(session)

    async def _delete(self, request: Request) -> Response:
        session_id: str = self._session(request)["id"]
        self._turns.forget(session_id)
        self._store.delete_session(session_id)
        return JSONResponse(True)

    async def _children(self, request: Request) -> Response:
        return JSONResponse(self._store.children(self._session(request)["id"]))

    async def _messages(self, request: Request) -> Response:
        messages = self._store.messages[self._session(request)["id"]]
        if before := request.query_params.get("before"):
            oldest = json.loads(base64.urlsafe_b64decode(before + "=" * (-len(before) % 4)))["id"]
            messages = [message for message in messages if message["info"]["id"] < oldest]
        asked = request.query_params.get("limit")
        if asked is None:
            return JSONResponse(messages)
        if not asked.isdigit():
            raise bad("Expected an integer, got NaN", "limit", "Query")
        kept = messages[-int(asked) :] if int(asked) else messages
        headers: dict[str, str] = {}
        if len(kept) < len(messages):
            info = kept[0]["info"]
            cursor = json.dumps({"id": info["id"], "time": info["time"]["created"]}, separators=(",", ":"))
            encoded = base64.urlsafe_b64encode(cursor.encode()).decode().rstrip("=")
            following = request.url.include_query_params(before=encoded)
            headers = {"link": f'<{following}>; rel="next"', "x-next-cursor": encoded}
        return JSONResponse(kept, headers=headers)

    async def _prompt_async(self, request: Request) -> Response:
        session_id, body = await self._prompted(request)
        return Response(status_code=204, background=BackgroundTask(self._start_later, session_id, body))

    async def _prompt(self, request: Request) -> Response:
        session_id, body = await self._prompted(request)
        turn = self._start(session_id, body)
        await turn.done.wait()
        if turn.broken:
            raise unexpected()
        return JSONResponse(self._store.messages[session_id][-1])

    async def _prompted(self, request: Request) -> tuple[str, Json]:
        session_id: str = self._session(request)["id"]
        body = await json_of(request)
        if "parts" not in body:
            raise bad("Missing key", "parts", "Payload")
        message_id = body.get("messageID", "msg")
        if not message_id.startswith("msg"):
            raise bad(f'Expected a string starting with "msg", got "{message_id}"', "messageID", "Payload")
        return session_id, body

    async def _start_later(self, session_id: str, body: Json) -> None:
        await self._turns.may_start()
        self._start(session_id, body)

    def _start(self, session_id: str, body: Json) -> Any:
        texts = [part["text"] for part in body["parts"] if part.get("type") == "text"]
        return self._turns.prompt(
            session_id, texts, model=body.get("model"), message_id=body.get("messageID", "")
        )

    async def _abort(self, request: Request) -> Response:
        self._turns.abort(request.path_params["session_id"])
        return JSONResponse(True)

    async def _status(self, request: Request) -> Response:
        directory = self.directory_of(request)
        directories = self._store.status_directories
        statuses = self._store.statuses.items()
        return JSONResponse({key: status for key, status in statuses if directories[key] == directory})

    async def _permissions(self, request: Request) -> Response:
        directory = self.directory_of(request)
        return JSONResponse(
            [item.body for item in self._tools.permissions.values() if item.directory == directory]
        )

    async def _reply_permission(self, request: Request) -> Response:
        asked = id_of(request, "per")
        body = await json_of(request)
        if body.get("reply") not in ("once", "always", "reject"):
            reply = json.dumps(body.get("reply"))
            raise bad(f'Expected "once" | "always" | "reject", got {reply}', "reply", "Payload")
        open_one = self._tools.permissions.get(asked)
        if open_one is None or open_one.directory != self.directory_of(request):
            raise gone("Permission", asked)
        self._tools.reply(open_one, body)
        return JSONResponse(True)

    async def _questions(self, request: Request) -> Response:
        directory = self.directory_of(request)
        return JSONResponse(
            [item.body for item in self._tools.questions.values() if item.directory == directory]
        )

    async def _reply_question(self, request: Request) -> Response:
        body = await json_of(request)
        if "answers" not in body:
            raise bad("Missing key", "answers", "Payload")
        return self._answer_question(request, {"answers": body["answers"]})

    async def _reject_question(self, request: Request) -> Response:
        return self._answer_question(request, None)

    def _answer_question(self, request: Request, answer: Json | None) -> Response:
        asked = id_of(request, "que")
        open_one = self._tools.questions.get(asked)
        if open_one is None or open_one.directory != self.directory_of(request):
            raise gone("Question", asked)
        self._tools.reply(open_one, answer)
        return JSONResponse(True)

    def _session(self, request: Request) -> Json:
        session_id: str = request.path_params["session_id"]
        if not session_id.startswith("ses"):
            raise unexpected()
        if session_id not in self._store.sessions:
            message = f"Session not found: {session_id}"
            raise Refusal(404, {"name": "NotFoundError", "data": {"message": message}})
        return self._store.sessions[session_id]
