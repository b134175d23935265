"""Ways in which a server, or what stands between, goes wrong."""

import enum
from collections.abc import Callable

import anyio
import anyio.lowlevel
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from opencode_mcp.testing._serve import until_disconnect

_HUGE_BYTES = 1 << 30
_BLOCK = b"x" * (1 << 16)
_JSON = [(b"content-type", b"application/json")]


class Fault(enum.Enum):
    """What a `FakeOpenCode` does instead of answering."""

    HANG = "hang"
    """Accept, never answer; streams that are open fall silent."""
    DRIP = "drip"
    """Answer with one byte a second, without end."""
    HUGE = "huge"
    """Answer with a JSON string of 1 GiB."""
    REDIRECT = "redirect"
    """Answer 302, to a host that is none of ours."""
    GARBAGE = "garbage"
    """Answer 200 and call it JSON, which it is not."""
    HTML = "html"
    """Answer 200 with a web page."""
    RESET = "reset"
    """Reset the connection."""
    UNAUTHORIZED = "unauthorized"
    """Answer 401."""
    SERVER_ERROR = "server error"
    """Answer 500."""
    STREAM_SILENT = "stream silent"
    """Event streams open and stay silent, as behind a proxy that buffers; the rest works."""
    STREAM_CUT = "stream cut"
    """End the open event streams, and each new one right after its first event; the rest works."""


SILENT = frozenset({Fault.HANG, Fault.STREAM_SILENT})


def unauthorized() -> Response:
    """Return OpenCode's answer to missing or wrong credentials."""
    return Response(status_code=401, headers={"www-authenticate": 'Basic realm="Secure Area"'})


def faulty(fault: Fault, reset: Callable[[], None], redirect_to: str) -> ASGIApp | None:
    """Return the app that goes wrong in this way, or None if only the streams do."""
    simple: dict[Fault, Response] = {
        Fault.REDIRECT: RedirectResponse(redirect_to, 302),
        Fault.GARBAGE: Response("healthy: yes, [very", media_type="application/json"),
        Fault.HTML: HTMLResponse("<!doctype html><title>Not what you think</title>"),
        Fault.UNAUTHORIZED: unauthorized(),
        Fault.SERVER_ERROR: JSONResponse({"name": "UnknownError", "data": {"message": "scripted"}}, 500),
    }
    if fault in simple:
        return simple[fault]

    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, anyio.sleep_forever)

    async def drop(scope: Scope, receive: Receive, send: Send) -> None:
        reset()
        await until_disconnect(receive, anyio.sleep_forever)

    async def drip(scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            await _start(send)
            while True:
                await _more(send, b" ")
                await anyio.sleep(1)

        await until_disconnect(receive, work)

    async def huge(scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            await _start(send)
            await _more(send, b'"')
            for _ in range(_HUGE_BYTES // len(_BLOCK)):
                await _more(send, _BLOCK)
                await anyio.lowlevel.checkpoint()
            await send({"type": "http.response.body", "body": b'"'})

        await until_disconnect(receive, work)

    return {Fault.HANG: hang, Fault.RESET: drop, Fault.DRIP: drip, Fault.HUGE: huge}.get(fault)


async def _start(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _JSON})


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
