"""An app on a port: served, killed and served again; knows nothing of OpenCode."""

import abc
import contextlib
from collections.abc import AsyncGenerator
from typing import Self

import anyio
from starlette.types import Receive, Scope, Send

from opencode_mcp.testing import _serve


class Served(abc.ABC):
    """An ASGI app with a life of its own.

    Attributes:
        port: The port it was served on last; 0 before.
        host: The address it was served on last.
    """

    host = "127.0.0.1"
    port = 0
    _server: _serve.Server | None = None

    @abc.abstractmethod
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End what runs, as a server does that stops."""

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def reset(self, scope: Scope) -> None:
        """Reset the connection on which a request came."""
        if self._server is not None:
            self._server.reset(_serve.client_of(scope))

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0, host: str = "127.0.0.1") -> AsyncGenerator[Self]:
        """Listen until the block ends.

        Args:
            port: The port; 0 takes any free one.
            host: The address to listen on.

        Raises:
            OSError: The port is taken.
        """
        sock = _serve.bind(host, port)
        server = _serve.Server(self, [sock])
        await server.start()
        self.attach(server, host, sock.getsockname()[1])
        try:
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave(abruptly=False)

    async def kill(self) -> None:
        """Die as a killed process does: reset every connection, listen no more; inside `serve` only."""
        await self._leave(abruptly=True)

    def attach(self, server: _serve.Server, host: str, port: int) -> None:
        """Note where this app is served; for whoever serves it other than by `serve`."""
        self._server, self.host, self.port = server, host, port

    async def detach(self) -> None:
        """End the streams and turns; for whoever serves it other than by `serve`."""
        self._server = None
        await self.close()

    async def _leave(self, *, abruptly: bool) -> None:
        server = self._server
        if server is None:
            return
        try:
            if abruptly:
                await server.stop(abruptly=True)
            await self.detach()
        finally:
            await server.stop()
