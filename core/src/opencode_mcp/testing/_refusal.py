"""How a server says no: for both generations the exception, for 1.x also the words."""

import json
from collections.abc import Callable
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Json = dict[str, Any]


class Refusal(Exception):  # noqa: N818 -- an answer of the server, not an error of ours
    """An answer of 400 or more, as OpenCode words it."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body

    def answer(self) -> Response:
        """Return it as a response."""
        return JSONResponse(self.body, self.status)


def refusing(endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Let an endpoint refuse by raising a `Refusal`."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refusal as refusal:
            return refusal.answer()

    return answer


async def json_of(request: Request) -> Json:
    """Return the JSON object that a request carries."""
    try:
        body = json.loads(await request.body())
    except ValueError:
        raise unexpected() from None
    if not isinstance(body, dict):
        raise bad("Expected object", "body", "Payload")
    return cast(Json, body)


def limit(request: Request) -> int:
    """Return how many of a list are wanted."""
    asked = request.query_params.get("limit", "")
    return int(asked) if asked.isdigit() else 100


def id_of(request: Request, prefix: str) -> str:
    """Return the id in the path, which must begin with `prefix`."""
    request_id: str = request.path_params["request_id"]
    if not request_id.startswith(prefix):
        raise bad(f'Expected a string starting with "{prefix}", got "{request_id}"', "requestID", "Params")
    return request_id


def bad(message: str, key: str, kind: str) -> Refusal:
    """Refuse what is wrong in a request."""
    text = f'{message}\n  at ["{key}"]'
    return Refusal(400, {"name": "BadRequest", "data": {"message": text, "kind": kind}})


def gone(what: str, request_id: str) -> Refusal:
    """Refuse what concerns a request that is not open."""
    message = f"{what} request not found: {request_id}"
    return Refusal(404, {"_tag": f"{what}NotFoundError", "requestID": request_id, "message": message})


def unexpected() -> Refusal:
    """Refuse as a server does in which something broke."""
    message = "Unexpected server error. Check server logs for details."
    return Refusal(500, {"name": "UnknownError", "data": {"message": message, "ref": "err_00000000"}})
