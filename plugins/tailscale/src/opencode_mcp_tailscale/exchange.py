"""One request over a connection that is open, with h11 alone.

Thousands of machines are asked again and again, and httpcore2's connection takes half as much time again.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import anyio
import h11
import httpcore2

MOST_PARTS = 256
"""How many parts an answer may come in, each of which takes time, however small it is."""
_READ_BYTES = 64 * 1024


class TooMuchError(httpcore2.RemoteProtocolError):
    """An answer is too long, or comes in too many parts; the message says which, without a subject."""


class Exchange:
    """A request, and what is answered.

    Args:
        stream: The connection; whoever opened it closes it.
        timeout: How many seconds the answer may take, from when the request has been sent.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream, timeout: float | None = None) -> None:
        self._stream = stream
        self._timeout = timeout
        self._until: float | None = None
        self._h11 = h11.Connection(h11.CLIENT)
        self._reads = self._events = 0

    async def begin(
        self, method: str, target: str, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[bytes, bytes]]:
        """Send a request without a body; return the status, and the headers by their names in lower case.

        Raises:
            httpcore2.NetworkError: The connection is broken.
            httpcore2.ProtocolError: What comes back is no answer.
            httpcore2.TimeoutException: None came in time.
        """
        try:
            encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
            sent = self._h11.send(h11.Request(method=method, target=target, headers=encoded))
            self._h11.send(h11.EndOfMessage())
        except (h11.LocalProtocolError, UnicodeError) as error:
            raise httpcore2.LocalProtocolError(str(error)) from None
        with contextlib.suppress(httpcore2.WriteError):  # who does not want to read may have answered
            await self._stream.write(sent or b"", self._timeout)
        if self._timeout is not None:
            self._until = anyio.current_time() + self._timeout
        while True:
            event = await self._next()
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse)
                and self._h11.their_state is h11.SWITCHED_PROTOCOL
            ):
                return event.status_code, dict(event.headers)

    async def body(self, most_bytes: int) -> bytes:
        """Return the body of the answer.

        Raises:
            TooMuchError: It is larger than `most_bytes`.
            httpcore2.NetworkError: The connection is broken.
            httpcore2.ProtocolError: What comes back is no answer.
            httpcore2.TimeoutException: It did not come in time.
        """
        body = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > most_bytes:
                raise TooMuchError(f"is larger than {most_bytes // 1000} kB")
        return bytes(body)

    @property
    def upgraded(self) -> httpcore2.AsyncNetworkStream:
        """The connection once it is no more one of HTTP, with what came after the answer."""
        data = self._h11.trailing_data[0]
        return _Led(self._stream, data) if data else self._stream

    async def _next(self) -> Any:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise httpcore2.RemoteProtocolError(str(error)) from None
            if event is not h11.NEED_DATA:
                self._events += 1
                self._bound(self._events)
                return event
            self._reads += 1
            self._bound(self._reads)
            left = None if self._until is None else max(0.0, self._until - anyio.current_time())
            data = await self._stream.read(_READ_BYTES, left)
            if not data and self._h11.their_state is h11.SEND_RESPONSE:
                raise httpcore2.RemoteProtocolError("The connection was closed without an answer.")
            self._h11.receive_data(data)

    def _bound(self, parts: int) -> None:
        if parts > MOST_PARTS:
            raise TooMuchError(f"comes in more than {MOST_PARTS} parts")


class _Led(httpcore2.AsyncNetworkStream):
    """A connection of which something has been read already."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, data: bytes) -> None:
        self._stream = stream
        self._data = data

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._data:
            return await self._stream.read(max_bytes, timeout)
        data, self._data = self._data[:max_bytes], self._data[max_bytes:]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
