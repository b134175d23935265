"""HTTP to one instance: bounded in time and size, no redirects, no environment proxies, typed errors."""

import errno
import functools
import json
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx2

from opencode_mcp.errors import (
    CredentialsError,
    LocalError,
    NotListeningError,
    ProtocolError,
    RequestError,
    TooLargeError,
    UnreachableError,
)
from opencode_mcp.model import Route
from opencode_mcp.opencode.fields import REALM, USERNAME, text
from opencode_mcp.opencode.strangers import refuse_stranger
from opencode_mcp.text import clean_line

MAX_BODY = 1024 * 1024
"""Bytes of an answer that are read, unless the caller expects more."""
MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one server-sent event."""
STRANGERS_BODY = 512 * 1024
"""Bytes of an answer of a server that nobody vouches for; ten messages of an agent seldom need more."""
STRANGERS_EVENT = 256 * 1024
"""Bytes of an event of such a server: hundreds of them may have one half sent at the same time."""

Params = Mapping[str, str | int] | None
"""The parameters of a query."""

_UNAUTHORIZED = 401
_FORBIDDEN = 403
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENETDOWN, errno.EADDRNOTAVAIL}


@functools.cache
def _no_tls() -> ssl.SSLContext:
    """The context for plain HTTP, which never uses it: httpx2 would make one for each client."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.cache
def _tls() -> ssl.SSLContext:
    """The context for HTTPS, one for all: making one takes some 20 ms, and the event loop waits for it."""
    return httpx2.create_ssl_context(trust_env=False)


def warm_up() -> None:
    """Import what httpx2 imports with its first client, some 60 ms; it blocks, so call it from a thread."""
    httpx2.AsyncHTTPTransport(verify=_no_tls())


class OpenCodeAuth(httpx2.BasicAuth):
    """A user name and password that answer only to the challenge of an OpenCode server.

    Attributes:
        usual: The same with the one user name that OpenCode 2.x knows; None if this is it.
    """

    def __init__(self, username: str, password: str) -> None:
        super().__init__(username, password)
        self.usual = None if username == USERNAME else OpenCodeAuth(USERNAME, password)


class Http:
    """An HTTP client for one route, with a pool of its own.

    Credentials are held back until the server asks for them the way OpenCode does, so a stranger that
    took over a port is not handed a password unasked.

    Args:
        route: Where to.
        seconds: How long a request may take that does not say otherwise, from start to its last byte.
        vouched: Whether its transport stands for it being the user's own; a stranger gets less memory.
        auth: What to answer to a 401, or None.
    """

    def __init__(
        self, route: Route, *, seconds: float, vouched: bool, auth: httpx2.Auth | None = None
    ) -> None:
        self._seconds = seconds
        self._vouched = vouched
        self._auth = auth
        self._route = route
        self._authenticating = False
        self._given_up = False
        self._under_way: set[anyio.CancelScope] = set()
        self._client = _client(route)
        self._clients = [self._client]

    @property
    def authenticating(self) -> bool:
        """Whether the server asked for credentials, so that they are sent with each request since."""
        return self._authenticating

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._given_up = True
        for request in self._under_way:  # whose connections may still be opened, and then nobody's to close
            request.cancel()
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            for client in self._clients:
                await client.aclose()

    async def get(
        self, path: str, params: Params = None, *, seconds: float | None = None, max_bytes: int = MAX_BODY
    ) -> Any:
        """GET a JSON document."""
        return await self._json("GET", path, params, None, seconds, max_bytes)

    async def post(
        self, path: str, body: object = None, params: Params = None, *, seconds: float | None = None
    ) -> Any:
        """POST `body` as JSON and return the JSON answer, or None if it is empty."""
        return await self._json("POST", path, params, body, seconds, MAX_BODY)

    @asynccontextmanager
    async def stream(
        self, path: str, params: Params = None, *, heard: Callable[[], None] | None = None
    ) -> AsyncGenerator[AsyncIterator[httpx2.ServerSentEvent]]:
        """Open a stream of server-sent events; only its opening is bounded in time.

        Args:
            path: Where.
            params: The query.
            heard: Called with whatever arrives, comments included, which are no events.
        """
        async with AsyncExitStack() as stack:
            with _unreachable(path), anyio.fail_after(self._seconds):
                accept = {"accept": "text/event-stream"}
                response = await self._send(stack, "GET", path, params, None, accept)
                await self._check(response, path)
            if "content-encoding" in response.headers:
                raise ProtocolError(f"GET {path} was answered compressed, though we asked for plain text.")
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                raise ProtocolError(f"GET {path} was answered with something else than events.")
            if heard is not None and isinstance(response.stream, httpx2.AsyncByteStream):
                response.stream = _Heard(response.stream, heard)
            yield self._events(response, path)

    async def _events(self, response: httpx2.Response, path: str) -> AsyncGenerator[httpx2.ServerSentEvent]:
        bound = MAX_EVENT if self._vouched else STRANGERS_EVENT
        with _unreachable(path):
            try:
                async for sent in httpx2.EventSource(response, max_event_size=bound):
                    yield sent
            except httpx2.SSEError:
                raise _too_large(f"{path} sent an event of", bound, MAX_EVENT) from None

    async def _json(
        self, method: str, path: str, params: Params, body: object, seconds: float | None, max_bytes: int
    ) -> Any:
        async with AsyncExitStack() as stack:
            with _unreachable(path), anyio.fail_after(self._seconds if seconds is None else seconds):
                response = await self._send(stack, method, path, params, body, {"accept": "application/json"})
                await self._check(response, path)
                content = await self._read(response, path, max_bytes)
        if not content:
            return None
        if response.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ProtocolError(f"{method} {path} was answered with something else than JSON.")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ProtocolError(f"{method} {path} was answered with JSON that cannot be read.") from None

    async def _send(
        self,
        stack: AsyncExitStack,
        method: str,
        path: str,
        params: Params,
        body: object,
        headers: Mapping[str, str],
    ) -> httpx2.Response:
        content = None if body is None else json.dumps(body).encode()
        while True:
            request = self._client.build_request(
                method,
                path,
                params=params,
                content=content,
                headers={**headers, "content-type": "application/json"} if content else headers,
                extensions={"trace": self._look} if self._looks else None,
            )
            sent_credentials, sent = self._authenticating, self._auth
            response = await self._answer(request, self._auth if sent_credentials else None)
            stack.push_async_callback(_close, response)
            if response.status_code != _UNAUTHORIZED or self._auth is None:
                return response
            if sent_credentials:
                if not self._try_usual(sent):
                    return response
                continue
            if isinstance(self._auth, OpenCodeAuth) and response.headers.get("www-authenticate") != REALM:
                raise CredentialsError(
                    "Something in front of it wants a password of its own, to which "
                    "OPENCODE_SERVER_PASSWORD is not sent; a plugin's auth hook can give one."
                )
            if not self._authenticating:
                self._authenticate()

    def _authenticate(self) -> None:
        """Send credentials from now on, and over new connections if it matters whom they lead to."""
        self._authenticating = True
        if self._looks:
            self._client = _client(self._route)
            self._clients.append(self._client)

    def _try_usual(self, refused: httpx2.Auth | None) -> bool:
        """Go on with the user name that OpenCode 2.x knows; return whether that has not been tried."""
        if self._auth is refused and isinstance(refused, OpenCodeAuth) and refused.usual is not None:
            self._auth = refused.usual
        return self._auth is not refused

    @property
    def _looks(self) -> bool:
        return self._authenticating and self._route.users is not None

    async def _look(self, event: str, info: Mapping[str, Any]) -> None:
        """Close a new connection to somebody else before anything is sent; httpcore2 calls this."""
        if event != "connection.connect_tcp.complete":
            return
        stream = info["return_value"]
        users = self._route.users or ()
        try:
            connection = stream.get_extra_info("socket")
            # Never abandoned, since the socket may be another one once it is closed. It is bounded.
            await anyio.to_thread.run_sync(refuse_stranger, connection, users, self._route.mend)
            await anyio.lowlevel.checkpoint()  # if it was given up meanwhile, nobody else closes it
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await stream.aclose()
            raise

    async def _answer(self, request: httpx2.Request, auth: httpx2.Auth | None) -> httpx2.Response:
        """Send a request, unless a monitor gave the connection up, which may be while someone else asks."""
        with anyio.CancelScope() as scope:
            if not self._given_up:
                self._under_way.add(scope)
                try:
                    return await self._client.send(request, stream=True, auth=auth)
                finally:
                    self._under_way.discard(scope)
        raise UnreachableError("The connection to it was given up.")

    async def _check(self, response: httpx2.Response, path: str) -> None:
        """Raise unless the answer is a success; the body of an error is read, bounded, for its message."""
        status = response.status_code
        if response.is_success:
            return
        if status == _UNAUTHORIZED:
            raise CredentialsError(
                "It refuses our user name and password: check OPENCODE_SERVER_USERNAME and "
                "OPENCODE_SERVER_PASSWORD."
                if self._authenticating
                else "It wants a password: set OPENCODE_SERVER_PASSWORD.",
                as_opencode=response.headers.get("www-authenticate") == REALM,
            )
        if status == _FORBIDDEN:
            raise CredentialsError(f"It refuses us: HTTP status {status}.")
        if response.is_redirect:
            raise ProtocolError(f"{path} was answered with a redirect ({status}), which is not followed.")
        message = _error_message(await self._read(response, path, 64 * 1024))
        raise RequestError(message or f"{path} was answered with HTTP status {status}.", status)

    async def _read(self, response: httpx2.Response, path: str, max_bytes: int) -> bytes:
        if "content-encoding" in response.headers:
            raise ProtocolError(f"{path} was answered compressed, though we asked for plain text.")
        bound = max_bytes if self._vouched else min(max_bytes, STRANGERS_BODY)
        announced = response.headers.get("content-length", "")
        content = bytearray()
        if announced.isdecimal() and float(announced) > bound:
            raise _too_large(f"{path} was answered with", bound, max_bytes)
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > bound:
                raise _too_large(f"{path} was answered with", bound, max_bytes)
        return bytes(content)


def _client(route: Route) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=route.base_url,
        headers={**route.headers, "accept-encoding": "identity"},
        transport=route.transport,
        verify=_tls() if route.base_url.lower().startswith("https:") else _no_tls(),
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # every request has one bound over all its steps instead
        limits=httpx2.Limits(max_connections=16, max_keepalive_connections=1, keepalive_expiry=2),
    )


def parsed(sent: httpx2.ServerSentEvent) -> Any:
    """Return the JSON of an event; None if it cannot be read."""
    try:
        return sent.json()
    except (ValueError, RecursionError):
        return None


class _Heard(httpx2.AsyncByteStream):
    """What a server sends, with a word to whoever waits for a sign of life."""

    def __init__(self, stream: httpx2.AsyncByteStream, heard: Callable[[], None]) -> None:
        self._stream = stream
        self._heard = heard

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._heard()
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _unreachable:  # noqa: N801 - reads as the statement that it is
    """Turn what httpx2 raises into our errors."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise UnreachableError("It did not answer in time.") from None
        if (number := _errno(error)) in _OURS:
            mend = " Raise the limit on open files (`ulimit -n`)." if number == errno.EMFILE else ""
            raise LocalError(f"This machine cannot connect: {os.strerror(number)}.{mend}") from None
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            raise NotListeningError("Nothing accepts connections at its address.") from None
        if isinstance(error, httpx2.InvalidURL):
            raise ProtocolError(f"{self._path}: {clean_line(str(error))}") from None
        # The words of these errors quote what was received.
        if isinstance(error, httpx2.RemoteProtocolError) and "disconnected" not in str(error):
            raise ProtocolError(f"{self._path} was answered with something that is not HTTP.") from None
        if isinstance(error, httpx2.DecodingError):
            raise ProtocolError(f"{self._path} was answered with text that cannot be decoded.") from None
        if isinstance(error, httpx2.HTTPError | OSError):
            raise UnreachableError("The connection to it broke.") from None


def _too_large(what: str, bound: int, usual: int) -> TooLargeError:
    why = "" if bound == usual else " It is not vouched for, so less is read of it than of others."
    return TooLargeError(f"{what} more than {bound} bytes, too much to be read.{why}")


def _errno(raised: BaseException | None) -> int:
    """Find the system's error number behind an error, or 0."""
    error: BaseException | None = raised
    for _ in range(16):
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if isinstance(error, BaseExceptionGroup):
            error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
        elif error is not None:
            error = error.__cause__ or error.__context__
    return 0


def _error_message(content: bytes) -> str:
    """Find the message in an OpenCode error body: `{"name":…,"data":{"message":…}}` or `{"message":…}`."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    return clean_line(text(body, "data", "message") or text(body, "message"), 500)


async def _close(response: httpx2.Response) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(2):
        await response.aclose()
