"""An httpx2 transport whose connections are opened in a way of our own."""

import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, cast

import anyio
import httpcore2
import httpx2

_MOST_CONNECTIONS = 64


class Through(httpx2.AsyncBaseTransport):
    """Sends requests over the connections that a backend of httpcore2 opens.

    Args:
        backend: Opens them.
        keep_seconds: How long a connection that is not used is kept for the next request.
        host: Returns what to say in the Host header, if not what the request says.
    """

    def __init__(
        self,
        backend: httpcore2.AsyncNetworkBackend,
        *,
        keep_seconds: float = 0.0,
        host: Callable[[], str] = str,
    ) -> None:
        self._host = host
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_no_tls(),
            max_connections=_MOST_CONNECTIONS,
            max_keepalive_connections=1 if keep_seconds else 0,
            keepalive_expiry=keep_seconds,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        with _as_httpx2():
            response = await self._pool.handle_async_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=self._headers(request),
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx2.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=cast("dict[str, Any]", response.extensions),  # pyright: ignore[reportUnknownMemberType]
        )

    def _headers(self, request: httpx2.Request) -> list[tuple[bytes, bytes]]:
        host = self._host()
        if not host:
            return request.headers.raw
        kept = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
        return [(b"Host", host.encode()), *kept]

    async def aclose(self) -> None:
        """Close all connections."""
        with _as_httpx2():
            await self._pool.aclose()


class Backend(httpcore2.AsyncNetworkBackend):
    """Opens connections for httpcore2, in a way of its own."""

    async def open(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection.

        Raises:
            httpcore2.ConnectError: There is none to be had.
            httpcore2.ConnectTimeout: Nobody answers within `timeout` seconds.
        """
        raise NotImplementedError

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Open a connection, as httpcore2 asks for it."""
        return await self.open(host, port, timeout)


class Once(Backend):
    """Hands out one connection that is open already, once."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream: httpcore2.AsyncNetworkStream | None = stream

    async def open(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Return the connection.

        Raises:
            httpcore2.ConnectError: It was handed out before.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            raise httpcore2.ConnectError("The server closed the connection.")
        return stream


class UnixStream(httpcore2.AsyncNetworkStream):
    """A connection to a Unix socket, whose reading can be given up at any moment.

    If that of anyio 4.16 is cancelled just as something arrives, the event loop reports an error: the reader
    that it leaves there for a moment sets the result of a future that is cancelled.

    Args:
        stream: The connection, as the backend opened it.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrives next; nothing at the end."""
        if self._socket.fileno() < 0:
            raise httpcore2.ReadError("The connection is closed.")
        try:
            with anyio.move_on_after(timeout):
                while True:
                    await anyio.wait_readable(self._socket)
                    with suppress(BlockingIOError):
                        return self._socket.recv(max_bytes)
            # What is there by now came in time, as far as anybody knows: it may be this process that is late.
            return self._socket.recv(max_bytes)
        except BlockingIOError:
            raise httpcore2.ReadTimeout(f"Nothing came within {timeout} s.") from None
        except (OSError, anyio.ClosedResourceError) as error:
            raise httpcore2.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send some bytes."""
        sent = 0
        try:
            sent = self._socket.send(buffer)  # which takes a fraction of the time, and nearly always does it
        except BlockingIOError:
            pass
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from error
        if sent < len(buffer):
            await self._stream.write(buffer[sent:], timeout)

    async def aclose(self) -> None:
        """Close it."""
        anyio.notify_closing(self._socket)
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        """Return what the backend knows of it."""
        return self._stream.get_extra_info(info)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx2():
            async for part in cast("AsyncIterable[bytes]", self._response.stream):
                yield part

    async def aclose(self) -> None:
        with _as_httpx2():
            await self._response.aclose()


@contextmanager
def _as_httpx2() -> Generator[None]:
    """Turn the exceptions of httpcore2 into those of the same names of httpx2."""
    try:
        yield
    except Exception as error:
        for kind in type(error).__mro__:
            if kind.__module__.startswith("httpcore2"):
                raise getattr(httpx2, kind.__name__, httpx2.TransportError)(str(error)) from error
        raise


def network_backend() -> httpcore2.AsyncNetworkBackend:
    """Return the backend of httpcore2 for anyio, whose type it does not tell."""
    return cast("httpcore2.AsyncNetworkBackend", httpcore2.AnyIOBackend())


@cache
def _no_tls() -> ssl.SSLContext:
    """The context for plain HTTP, which never uses it: the pool would make one each time."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
