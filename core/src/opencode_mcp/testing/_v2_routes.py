"""The routes of OpenCode 2.x, as its contract for 2.1.2 has them, and where the preview differs."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from opencode_mcp.testing import _v2_json as shape
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._v2_executions import Executions
from opencode_mcp.testing._v2_inbox import ConflictError, Inbox
from opencode_mcp.testing._v2_requests import Requests
from opencode_mcp.testing._v2_words import chosen, filters_of, invalid, json_of, page, refuse

Json = dict[str, Any]
Endpoint = Callable[[Request], Awaitable[Response]]
FormLists = Literal["session", "location", "nowhere"]
"""Where open forms are listed; with `session` both by session and by location."""

_SESSION = "/api/session/{session_id}"
_EXPERIMENTAL = "/api/experimental/session/{session_id}"


class Routes:
    """Everything but the event streams."""

    def __init__(
        self,
        store: Store,
        executions: Executions,
        inbox: Inbox,
        requests: Requests,
        messages: shape.Messages,
        info: Callable[[], Json],
        *,
        preview: bool,
        form_lists: FormLists,
    ) -> None:
        self._store = store
        self._executions = executions
        self._inbox = inbox
        self._requests = requests
        self._messages = messages
        self._info = info
        self._preview = preview
        self._form_lists = form_lists

    def table(self) -> list[tuple[str, str, Endpoint]]:
        """Return method, path and endpoint of each route."""
        asked = self._requests
        routes: list[tuple[str, str, Endpoint]] = [
            ("GET", "/api/health" if self._preview else "/api/info", self._about),
            ("GET", "/api/location", self._location),
            ("GET", "/api/session", self._list),
            ("POST", "/api/session", self._create),
            ("GET", "/api/session/active", self._active),
            ("GET", _SESSION, self._get),
            ("PATCH", _SESSION, self._patch),
            ("DELETE", _SESSION, self._delete),
            ("POST", f"{_SESSION}/move", self._move),
            ("POST", f"{_SESSION}/prompt", self._prompt),
            ("POST", f"{_SESSION}/interrupt", self._interrupt),
            ("GET", f"{_SESSION}/message", self._list_messages),
            ("GET", f"{_SESSION}/message/{{message_id}}", self._message),
            ("GET", f"{_SESSION}/{'pending' if self._preview else 'inbox'}", self._waiting),
            ("PATCH", f"{_SESSION}/inbox/{{item_id}}", self._redirect),
            ("DELETE", f"{_SESSION}/inbox/{{item_id}}", self._cancel),
            ("POST", f"{_SESSION if self._preview else _EXPERIMENTAL}/wait", self._wait),
            ("GET", "/api/permission/request", asked.permissions_here),
            ("GET", f"{_SESSION}/permission", asked.permissions),
            ("GET", f"{_SESSION}/permission/{{request_id}}", asked.permission),
            ("POST", f"{_SESSION}/permission/{{request_id}}/reply", asked.reply),
            ("GET", f"{_SESSION}/form/{{form_id}}", asked.form),
            ("POST", f"{_SESSION}/form/{{form_id}}/reply", asked.fill_in),
        ]
        if self._form_lists != "nowhere":
            routes.append(("GET", "/api/form/request" if self._preview else "/api/form", asked.forms_here))
        if self._form_lists == "session":
            routes.append(("GET", f"{_SESSION}/form", asked.forms))
        if self._preview:
            routes.append(("POST", f"{_SESSION}/form/{{form_id}}/cancel", asked.cancel))
        else:
            routes.append(("DELETE", f"{_SESSION}/form/{{form_id}}", asked.cancel))
        return routes

    def check(self, session_id: str) -> None:
        """Refuse a session that is not there."""
        if session_id not in self._store.sessions:
            message = f"Session not found: {session_id}"
            raise refuse(404, "SessionNotFoundError", message, sessionID=session_id)

    async def _about(self, request: Request) -> Response:
        return JSONResponse(self._info())

    async def _location(self, request: Request) -> Response:
        directory = self._requests.directory_of(request)
        project = {"id": "global", "directory": directory, "canonical": directory}
        return JSONResponse({"directory": directory, "project": project})

    async def _list(self, request: Request) -> Response:
        filters = filters_of(request, "directory", "parentID", "search", "archived")
        found = [one for one in self._store.sessions.values() if _fits(one, filters)]
        newest = sorted(found, key=lambda one: (-one["time"]["updated"], one["id"]))
        return page(request, [shape.session(one) for one in newest], **filters)

    async def _create(self, request: Request) -> Response:
        body = await json_of(request)
        title, agent, parent, session_id = (_text(body, key) for key in ("title", "agent", "parentID", "id"))
        if parent:
            self.check(parent)
        if session_id in self._store.sessions:
            raise refuse(409, "ConflictError", f"Session already exists: {session_id}")
        directory = _text(body.get("location") or {}, "directory").rstrip("/")
        if not directory:
            directory = self._requests.directory_of(request)
        session = self._store.create_session(
            directory, title=title, parent=parent, agent=agent, session_id=session_id
        )
        if isinstance(body.get("model"), dict):
            session["model"] = body["model"]
        return JSONResponse({"data": shape.session(session)})

    async def _active(self, request: Request) -> Response:
        return JSONResponse({"data": {key: {"type": "running"} for key in self._store.statuses}})

    async def _get(self, request: Request) -> Response:
        return JSONResponse({"data": shape.session(self._session(request))})

    async def _patch(self, request: Request) -> Response:
        session, title = self._session(request), _text(await json_of(request), "title")
        if title:
            self._store.touch_session(session["id"], title=title)
        return Response(status_code=204)

    async def _delete(self, request: Request) -> Response:
        session_id: str = self._session(request)["id"]
        self._executions.forget(session_id)
        self._store.delete_session(session_id)
        return Response(status_code=204)

    async def _move(self, request: Request) -> Response:
        session, directory = self._session(request), _text(await json_of(request), "directory", needed=True)
        self._store.move_session(session["id"], directory.rstrip("/"))
        return Response(status_code=204)

    async def _prompt(self, request: Request) -> Response:
        session_id: str = self._session(request)["id"]
        body = await json_of(request)
        text, item_id = _text(body, "text", needed=True), _text(body, "id")
        if item_id and not item_id.startswith("msg"):
            raise invalid(f'Expected a string starting with "msg", got "{item_id}"', "id", "Payload")
        delivery = chosen(body, "delivery", "steer", "queue", "") or "steer"
        try:
            item = self._inbox.admit(session_id, text, delivery, item_id)
        except ConflictError:
            message = f"Prompt already exists: {item_id}"
            raise refuse(409, "ConflictError", message, resource=item_id) from None
        wakes = body.get("resume", True) is not False and item in self._inbox.of(session_id)
        then = BackgroundTask(self._wake, session_id) if wakes else None
        return JSONResponse({"data": shape.prompt(item, self._preview)}, background=then)

    async def _wake(self, session_id: str) -> None:
        if self._inbox.of(session_id):
            self._executions.wake(session_id)

    async def _interrupt(self, request: Request) -> Response:
        session_id: str = self._session(request)["id"]
        interrupted = self._executions.interrupt(session_id)
        steered = any(item["delivery"] == "steer" for item in self._inbox.of(session_id))
        if request.query_params.get("resume") == "true" and steered:
            self._executions.wake(session_id, queued=False)
        return Response(status_code=204) if self._preview else JSONResponse({"interrupted": interrupted})

    async def _list_messages(self, request: Request) -> Response:
        found = self._messages.of(self._session(request)["id"])
        filters = filters_of(request, "type")
        if "type" in filters:
            found = [message for message in found if message["type"] == filters["type"]]
        return page(request, found[::-1], **filters)

    async def _message(self, request: Request) -> Response:
        session_id, message_id = self._session(request)["id"], request.path_params["message_id"]
        for message in self._messages.of(session_id):
            if message.get("id") == message_id:
                return JSONResponse({"data": message})
        more = {"sessionID": session_id, "messageID": message_id}
        raise refuse(404, "MessageNotFoundError", f"Message not found: {message_id}", **more)

    async def _waiting(self, request: Request) -> Response:
        items = self._inbox.of(self._session(request)["id"])
        return JSONResponse({"data": [shape.prompt(item, self._preview) for item in items]})

    async def _redirect(self, request: Request) -> Response:
        session_id = self._session(request)["id"]
        delivery = chosen(await json_of(request), "delivery", "steer", "queue")
        self._inbox.redirect(session_id, request.path_params["item_id"], delivery)
        if delivery == "steer":
            await self._wake(session_id)
        return Response(status_code=204)

    async def _cancel(self, request: Request) -> Response:
        self._inbox.cancel(self._session(request)["id"], request.path_params["item_id"])
        return Response(status_code=204)

    async def _wait(self, request: Request) -> Response:
        await self._executions.wait(self._session(request)["id"])
        return Response(status_code=204)

    def _session(self, request: Request) -> Json:
        return self._store.sessions[request.path_params["session_id"]]


def _fits(session: Json, filters: dict[str, str]) -> bool:
    parent, archived = session.get("parentID", "null"), "archived" in session["time"]
    return (
        filters.get("directory", session["directory"]) == session["directory"]
        and filters.get("parentID", parent) == parent
        and filters.get("search", "").casefold() in session["title"].casefold()
        and filters.get("archived", str(archived).lower()) == str(archived).lower()
    )


def _text(body: Json, key: str, *, needed: bool = False) -> str:
    if key not in body and needed:
        raise invalid("Missing key", key, "Payload")
    value = body.get(key, "")
    if not isinstance(value, str):
        raise invalid("Expected string", key, "Payload")
    return value
