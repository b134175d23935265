"""The wire under the fake tailscaled: a byte stream that can be watched for its end, and as much HTTP/1.1 as
the LocalAPI and `serve` speak. By hand, since thousands of requests pass here in a benchmark.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_PIECE = 1 << 16
_HEAD_LIMIT = 1 << 20
_CHUNKED_FROM = 2048  # bytes; Go's server counts no further before it begins to send

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class GoneError(Exception):
    """The other side has closed the stream."""


class Stream:
    """One connection, from the side of a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ahead = bytearray()
        self.over = False
        """Whether the other side has closed."""

    async def until(self, end: bytes) -> bytes:
        """Take what comes, up to and with some bytes."""
        while (at := self._ahead.find(end)) < 0:
            if len(self._ahead) > _HEAD_LIMIT:
                raise GoneError
            await self._more()
        return self._take(at + len(end))

    async def exactly(self, count: int) -> bytes:
        """Take so many bytes."""
        while len(self._ahead) < count:
            await self._more()
        return self._take(count)

    async def some(self, limit: int = _PIECE) -> bytes:
        """Take what is there, or the next that comes, and not more than a limit; nothing at the end."""
        if not self._ahead:
            with contextlib.suppress(GoneError):
                await self._more()
        return self._take(min(limit, len(self._ahead)))

    async def gone(self) -> None:
        """Wait until the other side closes; what it sends meanwhile is kept."""
        with contextlib.suppress(GoneError):
            while True:
                await self._more()

    async def send(self, data: bytes) -> None:
        """Send, and wait while the other side is slow."""
        if self._writer.is_closing():
            raise GoneError
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError:
            raise GoneError from None

    async def close(self) -> None:
        """Close, after what was sent."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once; what was not taken yet is lost."""
        self._writer.transport.abort()

    def _take(self, count: int) -> bytes:
        taken = bytes(self._ahead[:count])
        del self._ahead[:count]
        return taken

    async def _more(self) -> None:
        try:
            data = await self._reader.read(_PIECE)
        except OSError:
            data = b""
        if not data:
            self.over = True
            raise GoneError
        self._ahead += data


StreamServer = Callable[[Stream], Awaitable[None]]
"""Serves one connection until it returns."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request.

    Attributes:
        method: Such as `GET`.
        target: As it was asked for, with the query.
        headers: By their names in small letters.
        body: All of it.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path, decoded."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        """The query; of a name that comes twice, the last."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An answer of known length."""

    status: int = 200
    body: bytes = b""
    kind: str = JSON
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])

    def encoded(self, headers: Mapping[str, str] | None = None, *, bodiless: bool = False) -> bytes:
        """Return the bytes of it; a longer text is chunked, as Go's server does when nobody set a length."""
        chunked = self.kind == TEXT and len(self.body) > _CHUNKED_FROM
        length = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(len(self.body))}
        first = head(self.status, {"content-type": self.kind, **length, **self.headers, **(headers or {})})
        if bodiless:
            return first
        return first + (chunk(self.body) + chunk(b"") if chunked else self.body)


def text(status: int, sentence: str) -> Answer:
    """Answer with an error as Go's `http.Error` does."""
    return Answer(status, f"{sentence}\n".encode(), TEXT, {"x-content-type-options": "nosniff"})


def error_json(sentence: str, status: int = 500) -> Answer:
    """Answer with an error as the LocalAPI's `WriteErrorJSON` does."""
    return Answer(status, go_json({"error": sentence}) + b"\n")


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of the head of an answer."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Return a chunk of a chunked body; an empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def go_json(value: Any) -> bytes:
    """Write JSON as Go's encoder does: no spaces, and nothing that HTML would take for markup."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        if sign in written:
            written = written.replace(sign, f"\\u{ord(sign):04x}")
    return written.encode()


async def read_head(stream: Stream) -> tuple[str, str, str, dict[str, str]]:
    """Read the head of a message: the three parts of its first line, and its headers."""
    first, *lines = (await stream.until(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    parts = [*first.split(" ", 2), "", ""]
    return parts[0], parts[1], parts[2], headers


async def read_request(stream: Stream) -> Request:
    """Read the next request of a connection.

    Raises:
        GoneError: There is none.
    """
    method, target, _, headers = await read_head(stream)
    body = b""
    if "chunked" in headers.get("transfer-encoding", ""):
        body = await _chunks(stream)
    elif length := int(headers.get("content-length") or 0):
        body = await stream.exactly(length)
    return Request(method=method, target=target, headers=headers, body=body)


async def _chunks(stream: Stream) -> bytes:
    body = bytearray()
    while length := int((await stream.until(b"\r\n")).split(b";")[0], 16):
        body += (await stream.exactly(length + 2))[:-2]
    await stream.until(b"\r\n")
    return bytes(body)


async def connect(host: str, port: int) -> Stream:
    """Connect to a server by TCP.

    Raises:
        OSError: There is none.
    """
    return Stream(*await asyncio.open_connection(host, port))


async def connect_unix(path: str) -> Stream:
    """Connect to a server at a path.

    Raises:
        OSError: There is none.
    """
    return Stream(*await asyncio.open_unix_connection(path))


async def pump(one: Stream, other: Stream) -> None:
    """Pass bytes on both ways until either side ends, and then close the other, as tailscaled does."""
    await first_of(_pass_on(one, other), _pass_on(other, one))


async def _pass_on(source: Stream, target: Stream) -> None:
    with contextlib.suppress(GoneError):
        while data := await source.some():
            await target.send(data)


async def first_of(*waits: Awaitable[object]) -> None:
    """Wait until the first is done, and stop the others.

    Raises:
        Exception: What the first raised.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
