"""The door of a fake tailscaled: where it listens, whom it lets in, and the faults that a test wants."""

import asyncio
import base64
import contextlib
import functools
import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from support.fake_tailscaled_tailnet import VERSION
from support.fake_tailscaled_wire import (
    JSON,
    TEXT,
    Answer,
    GoneError,
    Request,
    Stream,
    read_request,
    text,
)

Endpoint = Callable[[Stream, Request], Awaitable[Answer | bool]]
"""Returns its answer; or, if it has answered itself, whether the connection can be used on."""

_HOST = "local-tailscaled.sock"
_PREFIX = "/localapi/v0/"
_BACKLOG = 4096
_SECONDS = 5
_HEADERS = {"Tailscale-Version": VERSION, "Tailscale-Cap": "140", "X-Content-Type-Options": "nosniff"}

_Fault = Callable[[Stream, Callable[[], Awaitable[Answer | bool]]], Awaitable[None]]


class Door:
    """Serves the LocalAPI while it is entered.

    Attributes:
        socket: Where it listens; None for TCP alone.
        port: Where it listens at 127.0.0.1, if it has a token.
        asked: How often each endpoint was asked for, such as `status`, or `POST serve-config` if not by GET.
    """

    def __init__(self, socket: Path | str | None, token: str | None, *, sec_tailscale: bool) -> None:
        self.socket = Path(socket) if socket is not None else None
        self.port = 0
        self.asked: Counter[str] = Counter()
        self._endpoints: dict[str, Endpoint] = {}
        self._token = token
        self._sec_tailscale = sec_tailscale
        self._faults: dict[str, tuple[_Fault, int | None]] = {}
        self._servers: list[asyncio.Server] = []
        self._conversations: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if kind is None and self._errors:
            raise self._errors[0]

    async def start(self) -> None:
        """Listen; after `stop`, as a daemon that was started again."""
        if self.socket is not None:
            serve = functools.partial(self._accept, tcp=False)
            self._servers.append(await asyncio.start_unix_server(serve, self.socket, backlog=_BACKLOG))
        if self._token is not None:
            serve = functools.partial(self._accept, tcp=True)
            server = await asyncio.start_server(serve, "127.0.0.1", self.port, backlog=_BACKLOG)
            self._servers.append(server)
            self.port = server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die: cut every connection, and with them the foreground sessions."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        conversations = tuple(self._conversations)
        for conversation in conversations:
            conversation.cancel()
        with anyio.move_on_after(_SECONDS, shield=True):
            await asyncio.gather(*conversations, return_exceptions=True)

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return bool(self._servers)

    def hang(self, endpoint: str, *, times: int | None = None) -> None:
        """Never answer an endpoint.

        Args:
            endpoint: Such as `status`.
            times: For how many requests; None until `mend`.
        """

        async def fault(stream: Stream, _: object) -> None:
            await stream.gone()

        self._faults[endpoint] = (fault, times)

    def fail(self, endpoint: str, status: int, body: str = "", *, times: int | None = None) -> None:
        """Answer an endpoint with an error; the body is JSON if it begins as an object does."""
        kind = JSON if body.startswith("{") else TEXT
        self._answer_with(endpoint, Answer(status, body.encode(), kind, _HEADERS), times)

    def garbage(self, endpoint: str, data: bytes, *, raw: bool = False, times: int | None = None) -> None:
        """Answer an endpoint with 200 and some bytes; if `raw`, with nothing but them, and close."""

        async def fault(stream: Stream, _: object) -> None:
            await stream.send(data)
            raise GoneError

        if raw:
            self._faults[endpoint] = (fault, times)
        else:
            self._answer_with(endpoint, Answer(200, data, JSON, _HEADERS), times)

    def flood(self, endpoint: str, megabytes: int, *, times: int | None = None) -> None:
        """Answer an endpoint with a JSON string of so many megabytes."""
        self.garbage(endpoint, b'"' + b"x" * (megabytes << 20) + b'"', times=times)

    def cut(self, endpoint: str, *, times: int | None = None) -> None:
        """Close in the middle of the answer of an endpoint: half of its body is sent."""

        async def fault(stream: Stream, answered: Callable[[], Awaitable[Answer | bool]]) -> None:
            answer = await answered()
            assert isinstance(answer, Answer), f"The answer of {endpoint} has no middle"
            encoded = answer.encoded(_HEADERS)
            await stream.send(encoded[: len(encoded) - (len(answer.body) + 1) // 2])
            raise GoneError

        self._faults[endpoint] = (fault, times)

    def mend(self, endpoint: str) -> None:
        """Take the fault of an endpoint away."""
        self._faults.pop(endpoint, None)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, tcp: bool) -> None:
        conversation = asyncio.get_running_loop().create_task(self._converse(Stream(reader, writer), tcp=tcp))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._end)

    def _end(self, conversation: asyncio.Task[None]) -> None:
        self._conversations.discard(conversation)
        if not conversation.cancelled() and (error := conversation.exception()) is not None:
            self._errors.append(error)

    async def _converse(self, stream: Stream, *, tcp: bool) -> None:
        try:
            usable = True
            while usable:
                usable = await self._answer(stream, await self._next(stream), tcp=tcp)
        except GoneError:
            pass
        except asyncio.CancelledError:
            stream.abort()
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await stream.close()

    async def _next(self, stream: Stream) -> Request:
        try:
            return await read_request(stream)
        except ValueError:
            await stream.send(text(400, "400 Bad Request").encoded({"connection": "close"}))
            raise GoneError from None

    async def _answer(self, stream: Stream, request: Request, *, tcp: bool) -> bool:
        """Answer a request; return whether the connection can be used on."""
        usable = request.headers.get("connection", "").lower() != "close"
        if (refusal := self._refusal(request, tcp=tcp)) is not None:
            await stream.send(refusal.encoded())
            return usable
        name = request.path.removeprefix(_PREFIX)
        self.asked[name if request.method == "GET" else f"{request.method} {name}"] += 1
        endpoint = self._endpoints.get(name) if request.path.startswith(_PREFIX) else None
        if (fault := self._fault(name)) is not None:
            await fault(stream, functools.partial(endpoint or _missing, stream, request))
            return usable
        answer = await (endpoint or _missing)(stream, request)
        if not isinstance(answer, Answer):
            return answer and usable
        await stream.send(answer.encoded(_HEADERS, bodiless=request.method == "HEAD"))
        return usable

    def _refusal(self, request: Request, *, tcp: bool) -> Answer | None:
        """Turn away who is not a client of the LocalAPI."""
        headers = request.headers
        if tcp and self._sec_tailscale and headers.get("sec-tailscale") != "localapi":
            return Answer(403, b"missing 'Sec-Tailscale: localapi' header", TEXT)
        if headers.get("referer") or headers.get("origin") or not _valid(headers.get("host", ""), tcp=tcp):
            return text(403, "invalid localapi request")
        if not tcp:
            return None
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return text(401, "auth required")
        if base64.b64decode(encoded).decode().partition(":")[2] != self._token:
            return text(403, "bad password")
        return None

    def _fault(self, endpoint: str) -> _Fault | None:
        fault, times = self._faults.get(endpoint, (None, None))
        if fault is not None and times is not None:
            if times > 1:
                self._faults[endpoint] = (fault, times - 1)
            else:
                del self._faults[endpoint]
        return fault

    def _answer_with(self, endpoint: str, answer: Answer, times: int | None) -> None:
        encoded = answer.encoded()

        async def fault(stream: Stream, _: object) -> None:
            await stream.send(encoded)

        self._faults[endpoint] = (fault, times)


async def _missing(_: Stream, request: Request) -> Answer:
    return Answer(200, b"tailscaled\n", TEXT) if request.path == "/" else text(404, "404 page not found")


def _valid(host: str, *, tcp: bool) -> bool:
    """Whether a `Host` is one that the LocalAPI answers to."""
    if host in ("", _HOST):
        return True
    name = host.rpartition(":")[0] if tcp else ""
    with contextlib.suppress(ValueError):
        return name == "localhost" or (bool(name) and ipaddress.ip_address(name.strip("[]")).is_loopback)
    return False
