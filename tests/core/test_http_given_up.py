"""A connection is given up while somebody else still asks over it: nothing of it stays open."""

import gc
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, SocketStream

from opencode_mcp import Route
from opencode_mcp.errors import UnreachableError
from opencode_mcp.opencode.http import Http, warm_up

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    warm_up()


@pytest.fixture(autouse=True)
def uncollected() -> Generator[None]:
    """What is left open stays so: otherwise Python may close it first."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("checkpoints", [*range(16), 40])
async def test_a_request_under_way_ends_at_once_and_its_connection_is_closed(checkpoints: int) -> None:
    """It is given up in all the states that the first turns of the event loop bring it to."""
    server = Server()
    async with server.serving() as port, anyio.create_task_group() as asking:
        async with Http(Route(base_url=f"http://127.0.0.1:{port}"), seconds=60, vouched=True) as client:
            asking.start_soon(refused, client)
            for _ in range(checkpoints):
                await anyio.lowlevel.checkpoint()
        async with await anyio.connect_tcp("127.0.0.1", port) as last:
            await last.send(b"last")
        with anyio.fail_after(5):
            while not server.heard_last or server.open:
                await anyio.sleep(0.005)


async def test_a_request_that_comes_later_is_refused() -> None:
    async with Http(Route(base_url="http://127.0.0.1:9"), seconds=60, vouched=True) as client:
        pass
    await refused(client)


async def refused(client: Http) -> None:
    with pytest.raises(UnreachableError, match="given up"):
        await client.get("/x")


class Server:
    """Accepts connections and answers nothing."""

    def __init__(self) -> None:
        self.open = 0
        self.heard_last = False

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[int]:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, self._serve)
            yield listener.extra(SocketAttribute.local_port)
            group.cancel_scope.cancel()

    async def _serve(self, stream: SocketStream) -> None:
        self.open += 1
        async with stream:
            with suppress(anyio.BrokenResourceError):
                async for sent in stream:
                    self.heard_last |= sent == b"last"
        self.open -= 1
