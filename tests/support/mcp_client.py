"""Our MCP server as a client sees it: in process, over a fleet of the test's own, in both protocol eras."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client
from mcp.client._memory import InMemoryTransport
from mcp_types import CallToolResult, Implementation, TextContent

from opencode_mcp import Endpoint, Rejection, Settings, Transport, TransportPlugin
from opencode_mcp.fleet import Fleet
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.mcp.server import create_server
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings
from opencode_mcp.testing import FakeOpenCode
from support.generations import PASSWORD

in_both_eras = pytest.mark.parametrize("mode", ["auto", "legacy"], ids=["modern", "legacy"])
"""Runs a test as a client of protocol 2026-07-28, and as one that does the `initialize` handshake."""

QUICK = Pace(probe=5, deaf=0, silence=5, mute=10, poll=0.05, retries=(0.05,), failures_to_offline=2)
"""A fleet that notices within moments; a probe has time enough for a busy machine."""


class Listed(Transport):
    """A transport that finds what the test puts into its list."""

    invitation = "Start OpenCode and it shows here."

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self.left_out: list[Rejection] = []

    async def discover(self) -> Sequence[Endpoint]:
        return tuple(self.endpoints)

    def rejected(self) -> Sequence[Rejection]:
        return self.left_out

    def add(self, url: str, name: str, **more: Any) -> None:
        self.endpoints.append(Endpoint(id=name, name=name, url=url, **more))


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a tool call came to: readable text, structured content, and the progress before it."""

    text: str
    data: Any
    is_error: bool
    progress: list[str]

    @property
    def streamed(self) -> str:
        return "".join(self.progress)


class Later:
    """A call that goes on meanwhile.

    Attributes:
        heard: Its progress so far.
    """

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._answer: Answer | None = None
        self._scope = anyio.CancelScope()

    @property
    def streamed(self) -> str:
        return "".join(self.heard)

    @property
    def is_over(self) -> bool:
        return self._answer is not None

    @property
    def answer(self) -> Answer:
        """The answer, once there is one."""
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        """Do as a client does whose user wants to wait no longer."""
        self._scope.cancel()

    async def run(self, client: Client, tool: str, arguments: dict[str, Any], *, listen: bool) -> None:
        with self._scope:
            heard = self.heard if listen else None
            self._answer = await call(client, tool, heard=heard, **arguments)


class Connection:
    """A client of our server, and what the server lives on."""

    def __init__(self, client: Client, fleet: Fleet, transport: Listed) -> None:
        self.client = client
        self.fleet = fleet
        self.transport = transport

    async def call(self, tool: str, /, *, listen: bool = False, **arguments: Any) -> Answer:
        """Call a tool; with `listen`, ask for progress."""
        return await call(self.client, tool, heard=[] if listen else None, **arguments)

    @asynccontextmanager
    async def meanwhile(
        self, tool: str, /, *, listen: bool = True, **arguments: Any
    ) -> AsyncGenerator[Later]:
        """Call a tool while the block runs; leaving the block waits for its answer."""
        later = Later()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: later.run(self.client, tool, arguments, listen=listen))
            yield later

    async def until(self, name: str, status: str = "online", **fields: Any) -> dict[str, Any]:
        """Wait until `instances` shows an instance like this, and return its row."""
        return await until_shown(self.client, name, status=status, **fields)


async def call(client: Client, tool: str, /, *, heard: list[str] | None = None, **arguments: Any) -> Answer:
    """Call a tool, asking for progress if there is a list to put it in; the answer must fit its schema.

    The official client checks that itself, except for errors.
    """

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        assert heard is not None
        heard.append(message or "")

    callback = None if heard is None else hear
    result = await client.call_tool(tool, arguments, progress_callback=callback)
    if result.is_error and result.structured_content is not None:
        jsonschema.validate(result.structured_content, await output_schema(client, tool))
    return Answer(text_of(result), result.structured_content, bool(result.is_error), heard or [])


async def output_schema(client: Client, tool: str) -> dict[str, Any]:
    """The schema that the server advertises for the structured content of a tool."""
    for one in (await client.list_tools()).tools:
        if one.name == tool and one.output_schema is not None:
            return one.output_schema
    raise AssertionError(f"no output schema for {tool}")


def text_of(result: CallToolResult) -> str:
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))


async def until_shown(client: Client, name: str, *, seconds: float = 10, **fields: Any) -> dict[str, Any]:
    """Wait until `instances` shows a row with these fields."""
    found: list[Any] = []
    with anyio.move_on_after(seconds):
        while True:
            listing = await call(client, "instances")
            found = listing.data["instances"]
            for row in found:
                if row["name"] == name and fields.items() <= row.items():
                    return row
            await anyio.sleep(0.01)
    raise AssertionError(f"no {name} with {fields} within {seconds} s, only {found}")


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for something that gives no notice."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)


def prompts(fake: FakeOpenCode) -> list[tuple[str, str]]:
    """Session and text of every prompt that came in."""
    found: list[tuple[str, str]] = []
    for request in fake.requests:
        if request.path.endswith("/prompt_async"):
            found.append((request.path.split("/")[2], request.body["parts"][0]["text"]))
        elif request.path.endswith("/prompt"):
            found.append((request.path.split("/")[3], request.body["text"]))
    return found


def aborts(fake: FakeOpenCode) -> list[str]:
    """The sessions that were to be aborted."""
    stopped = [one.path for one in fake.requests if one.path.endswith(("/abort", "/interrupt"))]
    return [path.split("/")[-2] for path in stopped]


def hold_back_turns(fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """Let prompts be taken and nothing happen until the event is set, as OpenCode does for up to a second."""
    return fake.hold_turns()


@asynccontextmanager
async def plain_errors() -> AsyncGenerator[None]:
    """Let the one error out of the groups that task groups wrap it in."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            [error] = error.exceptions
        raise error  # noqa: B904 - the groups are noise


@asynccontextmanager
async def connected(
    *fakes: FakeOpenCode,
    mode: str,
    names: Sequence[str] = ("alpha", "beta", "gamma"),
    pace: Pace = QUICK,
    online: bool = True,
    hooks: Sequence[object] = (),
    client_info: Implementation | None = None,
    **settings: Any,
) -> AsyncGenerator[Connection]:
    """Serve the fakes and connect a client to a server that finds them.

    Args:
        *fakes: Servers that are not served yet.
        mode: `auto` for the modern protocol, `legacy` for the handshake.
        names: What the fakes are called, in order.
        pace: The fleet's waits.
        online: Wait until all of them are online.
        hooks: Plugins with instance hooks.
        client_info: What the client says it is.
        **settings: Of core.
    """
    transport = Listed()

    @asynccontextmanager
    async def opened(_: Settings) -> AsyncGenerator[Listed]:
        yield transport

    plugin = TransportPlugin(name="listed", summary="What the test says", settings=Settings, open=opened)
    given: dict[str, Any] = {"server_password": PASSWORD, "discovery_interval_ms": 100, **settings}
    core = CoreSettings(**given)
    plugins = Plugins()
    for number, hook in enumerate(hooks):
        plugins.register(hook, f"test-hook-{number}")
    fleet = Fleet([(plugin, Settings())], plugins.hook, core, pace)
    async with plain_errors(), AsyncExitStack() as stack:
        for fake, name in zip(fakes, names, strict=False):
            await stack.enter_async_context(fake.serve())
            transport.add(fake.url, name, hostname="laptop", vouched=True)
        wire = InMemoryTransport(create_server(fleet.running, core))  # the messages that stdio would carry
        client = await stack.enter_async_context(Client(wire, mode=mode, client_info=client_info))
        connection = Connection(client, fleet, transport)
        if online:
            for endpoint in transport.endpoints:
                await connection.until(endpoint.name)
        with anyio.fail_after(30):
            yield connection
