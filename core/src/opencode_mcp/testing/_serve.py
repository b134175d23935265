"""Uvicorn inside the event loop of the test, with a quick and silent end; knows nothing of OpenCode."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import uvicorn
from starlette.types import ASGIApp, Receive, Scope

_GRACE_SECONDS = 0.05
_CANCEL_SECONDS = 1.0
_TURNS = 5
"""Of the event loop, until it has told uvicorn of a connection that was accepted last."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def bind(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a TCP socket bound to `host` and `port`; 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio then sets TCP_NODELAY
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class Server:
    """One uvicorn server on any number of sockets, without signal handlers, ticks or log lines."""

    def __init__(self, app: ASGIApp, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
        )
        config.load()
        self._uvicorn = uvicorn.Server(config)
        self._uvicorn.lifespan = config.lifespan_class(config)
        self._state = self._uvicorn.server_state

    async def start(self) -> None:
        """Accept connections from now on."""
        await self._uvicorn.startup(sockets=list(self._sockets))

    async def stop(self, *, abruptly: bool = False) -> None:
        """Accept no more, end what runs, and wait until all of it has ended.

        Args:
            abruptly: Reset every connection at once, as a killed machine's kernel would.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows
            for sock in self._sockets:
                if sock.fileno() >= 0:  # not stopped before
                    loop.remove_reader(sock)
        # A connection that is accepted as its listener is closed would be left open by asyncio.
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
        for listener in self._uvicorn.servers:
            listener.close()
        for sock in self._sockets:
            sock.close()
        if not abruptly:
            for connection in tuple(self._state.connections):
                connection.shutdown()
            await self._settle(_GRACE_SECONDS)
        self.reset()
        await self._settle(_CANCEL_SECONDS)
        for task in tuple(self._state.tasks):
            task.cancel()
        await self._settle(_CANCEL_SECONDS)

    def reset(self, client: tuple[str, int] | None = None) -> None:
        """Reset the connection of `client`, or all of them."""
        for connection in tuple(self._state.connections):
            transport: asyncio.Transport = connection.transport
            if client is None or tuple(transport.get_extra_info("peername")[:2]) == client:
                with contextlib.suppress(OSError):  # the peer was faster
                    transport.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
                    )
                transport.abort()

    async def _settle(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while self._state.connections or self._state.tasks:  # noqa: ASYNC110 -- uvicorn has no event for it
                await anyio.sleep(0.002)


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, *sockets: socket.socket) -> AsyncGenerator[Server]:
    """Serve `app` on `sockets` until the block ends."""
    server = Server(app, sockets)
    await server.start()
    try:
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop()


async def until_disconnect(receive: Receive, work: Callable[[], Awaitable[Any]]) -> None:
    """Run `work`, but no longer than the client stays."""
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await work()
        group.cancel_scope.cancel()


def client_of(scope: Scope) -> tuple[str, int]:
    """Return the address and port of the client of a request."""
    host, port = scope["client"]
    return host, port
