"""Many fake OpenCode servers at the price of one: one uvicorn, a socket for each."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.types import Receive, Scope, Send

from opencode_mcp.testing import _serve
from opencode_mcp.testing._faults import Fault
from opencode_mcp.testing.fake import FakeOpenCode


class FakeFleet:
    """A number of `FakeOpenCode` servers on ports of their own, in one event loop.

    Attributes:
        fakes: The servers; those that hang come last.
    """

    def __init__(self, count: int, *, hang: int = 0, **options: Any) -> None:
        """Prepare the servers; nothing listens yet.

        Args:
            count: How many there are.
            hang: How many of them accept connections and never answer.
            **options: For each `FakeOpenCode`; the directories are `/srv/project-000` and so on.
        """
        self.fakes = [FakeOpenCode(f"/srv/project-{number:03}", **options) for number in range(count)]
        for fake in self.fakes[count - hang :]:
            fake.fault = Fault.HANG
        self._by_port: dict[int, FakeOpenCode] = {}

    @contextlib.asynccontextmanager
    async def serve(self, host: str = "127.0.0.1") -> AsyncGenerator["FakeFleet"]:
        """Listen until the block ends; each server needs two file descriptors per client."""
        with contextlib.ExitStack() as opened:
            sockets = [opened.enter_context(_serve.bind(host)) for _ in self.fakes]
            server = _serve.Server(self, sockets)
            for fake, sock in zip(self.fakes, sockets, strict=True):
                fake.attach(server, host, sock.getsockname()[1])
                self._by_port[fake.port] = fake
            await server.start()
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    for fake in self.fakes:
                        await fake.detach()
                    await server.stop()
                self._by_port.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the server that owns the port, as an ASGI app."""
        await self._by_port[scope["server"][1]](scope, receive, send)
