"""Tells the index only to those who may know: an HTTP server on loopback, to which tailscaled forwards."""

import hmac
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import anyio
import h11
from anyio.abc import SocketStream, TaskGroup, TaskStatus

from opencode_mcp import TransportError
from opencode_mcp_tailscale.index import write_index
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.serving import Member
from opencode_mcp_tailscale.status import Who, login_key

_SECONDS = 5.0
_ANSWER_SECONDS = 1.0
_PAUSE_SECONDS = 0.1
_READ_BYTES = 16_384
_AT_ONCE = 32
_WAITING = 1024
_METHODS = (b"GET", b"HEAD")
_GONE = (h11.ProtocolError, anyio.BrokenResourceError, anyio.EndOfStream, OSError)


class Telling:
    """The server.

    Whoever reaches its port could say to come from anywhere, so it answers only at a path that nobody but
    tailscaled and the users of this machine know.

    Args:
        api: The tailscaled, which knows who has an address.

    Attributes:
        members: What is announced, and who may know.
        url: Where it is asked, once it runs.
    """

    def __init__(self, api: LocalApi) -> None:
        self._api = api
        self._free = anyio.Semaphore(_AT_ONCE)
        self._path = f"/{secrets.token_urlsafe(32)}"
        self.members: Sequence[Member] = ()
        self.url = ""

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled.

        Raises:
            TransportError: This machine lets it listen nowhere.
        """
        try:
            listening = socket.create_server(("127.0.0.1", 0), backlog=_WAITING)
        except OSError as error:
            raise TransportError(f"The index cannot be told only to some: {error}.") from None
        with listening:
            listening.setblocking(False)
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}{self._path}"
            task_status.started()
            async with anyio.create_task_group() as group:
                await self._accept(listening, group)

    async def _accept(self, listening: socket.socket, group: TaskGroup) -> None:
        """Take in no more at a time than can be answered: the others wait outside, and cost nothing."""
        while True:
            await self._free.acquire()
            await anyio.wait_readable(listening)
            try:
                connection, _ = listening.accept()
            except OSError:  # no file descriptors left, perhaps
                self._free.release()
                await anyio.sleep(_PAUSE_SECONDS)
                continue
            try:
                group.start_soon(self._serve, await SocketStream.from_socket(connection))
            except (OSError, ValueError):  # hung up already
                self._free.release()
                connection.close()

    async def _serve(self, stream: SocketStream) -> None:
        """Answer one request; whoever is slow, or speaks no HTTP, gets no answer."""
        try:
            with anyio.move_on_after(_SECONDS), suppress(*_GONE):
                async with stream:
                    await self._answer(stream)
        finally:
            self._free.release()

    async def _answer(self, stream: SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive(_READ_BYTES))
        if not isinstance(event, h11.Request):
            return
        if not hmac.compare_digest(event.target.removesuffix(b"/"), self._path.encode()):
            status, body = 404, b""
        else:
            status, body = await self._told(event) if event.method in _METHODS else (405, b"")
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        await stream.send(connection.send(h11.Response(status_code=status, headers=headers)) or b"")
        if event.method == b"HEAD":
            return
        await stream.send(
            (connection.send(h11.Data(data=body)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        )

    async def _told(self, request: h11.Request) -> tuple[int, bytes]:
        forwarded = [value.decode("latin-1") for name, value in request.headers if name == b"x-forwarded-for"]
        try:
            who = await self._api.whois(forwarded[0]) if len(forwarded) == 1 else None
        except TransportError:
            return 503, b""
        visible = [one.entry for one in self.members if may_know(who, one)]
        if not visible:
            return 403, b""
        return 200, write_index(visible).encode()


class Teller:
    """Starts telling once not everybody may know of everything, and goes on until the group ends.

    Args:
        api: The tailscaled.
        group: In which it runs.
    """

    def __init__(self, api: LocalApi, group: TaskGroup) -> None:
        self._api = api
        self._group = group
        self._telling: Telling | None = None

    async def told_by(self, everybody: Sequence[Member]) -> str:
        """Return the URL at which this process tells who may know of what; none if everybody may."""
        if self._telling is None and any(one.allowed for one in everybody):
            telling = Telling(self._api)
            await self._group.start(telling.run)
            self._telling = telling
        if self._telling is None:
            return ""
        self._telling.members = everybody
        return self._telling.url


async def answers(url: str) -> bool:
    """Whether whoever tells at a URL answers at once, with whatever it is."""
    with anyio.move_on_after(_ANSWER_SECONDS), suppress(*_GONE, ValueError):
        parts = urlsplit(url)
        request = f"HEAD {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        async with await anyio.connect_tcp(parts.hostname or "", parts.port or 80) as stream:
            await stream.send(request.encode())
            return bool(await stream.receive(_READ_BYTES))
    return False


def may_know(who: Who | None, member: Member) -> bool:
    """Whether somebody may be told of an instance."""
    if not member.allowed:
        return True
    return who is not None and any(_is_named(who, word) for word in member.allowed)


def _is_named(who: Who, word: str) -> bool:
    """Whether a word of `TAILSCALE_ALLOW_USERS` means somebody; each is compared with its kind alone."""
    if word.startswith("tag:"):
        return word in who.tags
    if "/" in word:
        return word in who.capabilities
    return bool(who.user) and login_key(who.user) == login_key(word)
