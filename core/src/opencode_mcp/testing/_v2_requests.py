"""The routes of OpenCode 2.x for what waits for a person: permissions and forms."""

from collections.abc import Iterable
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from opencode_mcp.testing import _tools
from opencode_mcp.testing import _v2_json as shape
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing._v2_words import chosen, invalid, json_of, refuse

Json = dict[str, Any]


class Requests:
    """Lists and answers what the agents ask."""

    def __init__(self, store: Store, tools: Tools, directory: str, *, preview: bool) -> None:
        self._store = store
        self._tools = tools
        self._directory = directory
        self._preview = preview
        self._settled: dict[str, Json] = {}

    def directory_of(self, request: Request) -> str:
        """Return the location a request means; a bare `directory` says nothing."""
        header = request.headers.get("x-opencode-directory")
        asked = request.query_params.get("location[directory]") or header
        return (asked.rstrip("/") or "/") if asked else self._directory

    async def permissions_here(self, request: Request) -> Response:
        """List the permission requests of a location."""
        return self._here(request, self._permissions())

    async def permissions(self, request: Request) -> Response:
        """List the permission requests of a session."""
        return JSONResponse({"data": _of(request, self._permissions())})

    async def permission(self, request: Request) -> Response:
        """Return one permission request."""
        return JSONResponse({"data": shape.permission(self._asked(request).body, self._preview)})

    async def reply(self, request: Request) -> Response:
        """Answer a permission request; a rejection goes for all that the session asks."""
        asked = self._asked(request)
        body = await json_of(request)
        key = "reply" if self._preview else "decision"
        decision = chosen(body, key, "once", "always", "reject")
        feedback = body.get("message")
        if feedback is not None and not isinstance(feedback, str):
            raise invalid("Expected string", "message", "Payload")
        self._tools.reply(asked, {"reply": decision, "message": feedback})
        if decision == "reject":
            for other in list(self._tools.permissions.values()):
                if other.body["sessionID"] == asked.body["sessionID"]:
                    self._tools.reply(other, {"reply": "reject"})
        return Response(status_code=204)

    async def forms_here(self, request: Request) -> Response:
        """List the forms of a location."""
        return self._here(request, self._forms())

    async def forms(self, request: Request) -> Response:
        """List the forms of a session."""
        return JSONResponse({"data": _of(request, self._forms())})

    async def form(self, request: Request) -> Response:
        """Return one form and its state."""
        form_id = request.path_params["form_id"]
        if form_id in self._settled and self._settled[form_id]["sessionID"] == _session_of(request):
            return JSONResponse({"data": self._settled[form_id]})
        form = shape.form(self._form(request).body, self._preview)
        return JSONResponse({"data": {**form, "state": {"status": "pending"}}})

    async def fill_in(self, request: Request) -> Response:
        """Answer a form."""
        asked = self._form(request)
        given = (await json_of(request)).get("answer")
        if not isinstance(given, dict):
            raise invalid("Missing key", "answer", "Payload")
        answer = cast(Json, given)
        form: Json = shape.form(asked.body, self._preview)
        labels = [self._labels(form, field, answer) for field in form["fields"]]
        if unknown := set(answer) - {field["key"] for field in form["fields"]}:
            raise _wrong(form, f"Unknown field: {min(unknown)}")
        self._settle(form, {"status": "answered", "answer": answer})
        self._tools.reply(asked, {"answers": labels, "form": answer})
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        """Dismiss a form; with a message the agent goes on."""
        asked = self._form(request)
        message = request.query_params.get("message")
        state = {"status": "cancelled"} if message is None else {"status": "cancelled", "message": message}
        self._settle(shape.form(asked.body, self._preview), state)
        self._tools.reply(asked, None if message is None else {"dismissed": message})
        return Response(status_code=204)

    def _permissions(self) -> list[Json]:
        return [shape.permission(one.body, self._preview) for one in self._tools.permissions.values()]

    def _forms(self) -> list[Json]:
        return [shape.form(one.body, self._preview) for one in self._tools.questions.values()]

    def _here(self, request: Request, found: Iterable[Json]) -> Response:
        directory = self.directory_of(request)
        sessions = self._store.sessions
        here = [one for one in found if sessions[one["sessionID"]]["directory"] == directory]
        return JSONResponse({"location": {"directory": directory}, "data": here})

    def _asked(self, request: Request) -> _tools.Request:
        request_id = request.path_params["request_id"]
        asked = self._tools.permissions.get(request_id)
        if asked is None or asked.body["sessionID"] != _session_of(request):
            message = f"Permission request not found: {request_id}"
            raise refuse(404, "PermissionNotFoundError", message, requestID=request_id)
        return asked

    def _form(self, request: Request) -> _tools.Request:
        form_id = request.path_params["form_id"]
        asked = self._tools.questions.get(form_id)
        if asked is not None and asked.body["sessionID"] == _session_of(request):
            return asked
        if form_id in self._settled and self._settled[form_id]["sessionID"] == _session_of(request):
            raise refuse(409, "FormAlreadySettledError", f"Form already settled: {form_id}", id=form_id)
        raise refuse(404, "FormNotFoundError", f"Form not found: {form_id}", id=form_id)

    def _settle(self, form: Json, state: Json) -> None:
        self._settled[form["id"]] = {**form, "state": state}

    def _labels(self, form: Json, field: Json, answer: Json) -> list[str]:
        value = answer.get(field["key"], [])
        listed = field["type"] == "multiselect"
        if isinstance(value, str) and not listed:
            value = [value]
        elif not isinstance(value, list) or (value and not listed):
            raise _wrong(form, f"Expected {'a list' if listed else 'a string'} in {field['key']}")
        labels = cast("list[str]", value)
        known = {option["value"] for option in field["options"]}
        if not field["custom"] and not known.issuperset(labels):
            raise _wrong(form, f"Expected one of the options in {field['key']}")
        return labels


def _session_of(request: Request) -> str:
    return request.path_params["session_id"]


def _of(request: Request, found: Iterable[Json]) -> list[Json]:
    return [one for one in found if one["sessionID"] == _session_of(request)]


def _wrong(form: Json, message: str) -> Exception:
    return refuse(400, "FormInvalidAnswerError", message, id=form["id"])
