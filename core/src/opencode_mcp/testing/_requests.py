"""The requests that came in, for the test to look at."""

import dataclasses
import json
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Message, Receive, Scope

_REMEMBERED = 10_000


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


class Requests(deque[Received]):
    """The last requests, oldest first."""

    def __init__(self) -> None:
        super().__init__(maxlen=_REMEMBERED)

    async def remember(self, scope: Scope, receive: Receive) -> Receive:
        """Record a request, and return a channel on which its body can be read again."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.append(
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


def _decoded(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
