"""Tells the index only to those who may know: an HTTP server on loopback, to which tailscaled forwards."""

from collections.abc import Sequence

import anyio
import h11
from anyio.abc import SocketAttribute, SocketStream, TaskStatus

from opencode_mcp import TransportError
from opencode_mcp_tailscale.index import write_index
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.serving import Member
from opencode_mcp_tailscale.status import Who

_SECONDS = 5.0
_READ_BYTES = 16_384
_AT_ONCE = 32
_METHODS = (b"GET", b"HEAD")


class Telling:
    """The server.

    Args:
        api: The tailscaled, which knows who has an address.

    Attributes:
        members: What is announced, and who may know.
        url: Where it listens, once it runs.
    """

    def __init__(self, api: LocalApi) -> None:
        self._api = api
        self._limit = anyio.CapacityLimiter(_AT_ONCE)
        self.members: Sequence[Member] = ()
        self.url = ""

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled."""
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - this is not Django
            self.url = f"http://127.0.0.1:{port}"
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, stream: SocketStream) -> None:
        """Answer one request; whoever is slow, or speaks no HTTP, gets no answer."""
        async with stream, self._limit:
            with anyio.move_on_after(_SECONDS):
                try:
                    await self._answer(stream)
                except (h11.ProtocolError, anyio.BrokenResourceError, anyio.EndOfStream):
                    return

    async def _answer(self, stream: SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive(_READ_BYTES))
        if not isinstance(event, h11.Request):
            return
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


def may_know(who: Who | None, member: Member) -> bool:
    """Whether somebody may be told of an instance."""
    if not member.allowed:
        return True
    return who is not None and not {who.user.lower(), *who.tags}.isdisjoint(member.allowed)
