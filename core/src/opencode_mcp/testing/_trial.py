"""One run of a transport under test: servers that are published, watchers that write down what is found."""

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from typing import Any, NamedTuple, NoReturn, Self, cast

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup

from opencode_mcp.errors import PluginError
from opencode_mcp.model import Endpoint
from opencode_mcp.opencode.http import warm_up
from opencode_mcp.testing._announced import Announcement, endpoint_at, recorded
from opencode_mcp.testing._under_test import Publisher, TransportUnderTest
from opencode_mcp.testing.fake import FakeOpenCode
from opencode_mcp.transport import LOOPBACK, Announcer, Transport, TransportPlugin

STEP_SECONDS = 0.01
"""Between two looks at a condition of which nobody tells."""
MOST_SECONDS = 5.0
"""How long what is cancelled may take to end before the suite says that it does not."""


def fail(sentence: str) -> NoReturn:
    """Fail a test with a sentence for the author of the transport, without a traceback of the suite."""
    raise pytest.fail.Exception(sentence, pytrace=False) from None


def require(condition: object, sentence: str) -> None:
    """Fail with `sentence` unless `condition` holds."""
    if not condition:
        fail(sentence)


class Watching:
    """A transport that is watched, and every set that it has published.

    Attributes:
        transport: The transport.
        sets: What it published, oldest first.
        failure: What its watch raised; None while it runs.
        ended: Set once the watch is over.
    """

    def __init__(self, transport: Transport, patience: float) -> None:
        self.transport = transport
        self.sets: list[Sequence[Endpoint]] = []
        self.failure: Exception | None = None
        self.ended = anyio.Event()
        self._patience = patience
        self._scope = anyio.CancelScope()
        self._news = anyio.Event()

    async def run(self) -> None:
        """Watch until cancelled; what is raised is kept."""
        try:
            with self._scope:
                await self.transport.watch(self._publish)
        except Exception as error:  # the author's code: its test says what is wrong about it
            self.failure = error
        finally:
            self.ended.set()
            self._tell()

    async def stop(self) -> None:
        """Cancel the watch, and wait until it is over."""
        self._scope.cancel()
        await self.ended.wait()

    @property
    def now(self) -> dict[str, Endpoint]:
        """What is published now, by id."""
        return {one.id: one for one in self.sets[-1]} if self.sets else {}

    def states(self, known: str) -> list[Endpoint | None]:
        """What the endpoint with an id was in each set; None where it was not."""
        return [next((one for one in found if one.id == known), None) for found in self.sets]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until `condition` holds; fail with `what` was to be published if it does not in time."""
        with anyio.move_on_after(self._patience):
            while not condition():
                if self.ended.is_set():
                    fail(f"{what} Instead, its watch ended: {describe(self.failure)}")
                await self._news.wait()
            return
        fail(f"{what} Within {self._patience:g} s it was not. Now published: {self.shown}.")

    async def gone(self, known: str) -> None:
        """Wait, without bounds, until the endpoint with an id is published no more."""
        while known in self.now and not self.ended.is_set():
            await self._news.wait()

    @property
    def shown(self) -> str:
        """What is published now, and left out, in words."""
        if not self.sets:
            return "nothing, not even an empty set"
        shown = [f"{one.id!r} ({one.name!r}, {one.url!r})" for one in self.sets[-1][:10]]
        left_out = [f"{one.source}: {one.reason}" for one in self.transport.rejected()[:5]]
        return f"{', '.join(shown) or 'an empty set'}; left out: {'; '.join(left_out) or 'nothing'}"

    def _publish(self, endpoints: Sequence[Endpoint]) -> None:
        self.sets.append(tuple(endpoints))
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


def describe(error: BaseException | None) -> str:
    """Say an error in words; None means that there was none."""
    if error is None:
        return "without an error."
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(describe, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return f"{type(error).__name__}: {str(error).rstrip('.')}."


class Instance(NamedTuple):
    """An instance to be announced: what core says of it, and its server."""

    endpoint: Endpoint
    fake: FakeOpenCode


class Trial:
    """One run of the transport under test, with a world of its own; what it started ends with it.

    Args:
        under_test: The transport.
        publisher: Makes it find something.
        patience: How long to wait, in seconds, for what is to happen.
        rescan_seconds: How often the transport is told to look again.
    """

    def __init__(
        self, under_test: TransportUnderTest, publisher: Publisher, *, patience: float, rescan_seconds: float
    ) -> None:
        self.under_test = under_test
        self.publisher = publisher
        self.patience = patience
        self.rescan_seconds = rescan_seconds
        self._stack = AsyncExitStack()
        self._published: dict[str, AsyncExitStack] = {}
        self._group: TaskGroup

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(warm_up)
        self._group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(self._group.cancel_scope.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        for key in tuple(self._published):
            await self.withdraw(key)
        await self._stack.aclose()

    @property
    def plugin(self) -> TransportPlugin[Any]:
        """The transport's descriptor."""
        try:
            return self.under_test.plugin
        except PluginError as error:
            fail(
                f"The transport cannot be loaded: {error} The tests load it by its entry point in the group "
                "opencode_mcp.transports, so the package has to be installed where they run: "
                "`uv sync`, or `pip install -e .`."
            )

    async def publish(self, *, key: str = "one", name: str = "") -> FakeOpenCode:
        """Publish a new server, or let the one that is published with `key` move to a new one."""
        after = AsyncExitStack()
        fake = await after.enter_async_context(FakeOpenCode().serve(host=self.publisher.host))
        before = self._published.get(key)
        self._published[key] = after
        if before is not None:
            await before.aclose()
        await self.publisher.publish(fake.url, key=key, name=name or f"{key}-instance")
        return fake

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[FakeOpenCode]:
        """Serve another one, of which nobody is told."""
        async with FakeOpenCode().serve(host=self.publisher.host) as fake:
            yield fake

    async def withdraw(self, key: str = "one") -> None:
        """Let a published server end, and withdraw it."""
        await self._published.pop(key).aclose()
        await self.publisher.withdraw(key)

    @asynccontextmanager
    async def opened(self, **more_environment: str) -> AsyncGenerator[Transport]:
        """Open the transport as core does."""
        _ = self.plugin
        async with self.under_test.open(**more_environment) as transport:
            transport.rescan_seconds = self.rescan_seconds
            yield transport

    @asynccontextmanager
    async def watching(self, **more_environment: str) -> AsyncGenerator[Watching]:
        """Open the transport and watch it until the block ends."""
        async with self.opened(**more_environment) as transport:
            watching = Watching(transport, self.patience)
            self._group.start_soon(watching.run)
            try:
                yield watching
            finally:
                await watching.stop()

    @asynccontextmanager
    async def instance(self, **more_environment: str) -> AsyncGenerator[Instance]:
        """Serve an instance that wants a password where announcing asks for it, until the block ends."""
        settings = await self.under_test.read_settings(**{**self.under_test.announcing, **more_environment})
        announcing = self.plugin.announcing
        listen = LOOPBACK if announcing is None else announcing(settings).listen
        async with FakeOpenCode(password=secrets.token_hex(16)).serve(host=listen) as fake:
            host = LOOPBACK if ip_address(listen).is_unspecified else listen
            endpoint = endpoint_at(fake.url.replace(fake.host, host))
            async with recorded(endpoint):
                yield Instance(endpoint, fake)

    @asynccontextmanager
    async def announced(self, instance: Instance, **more_environment: str) -> AsyncGenerator[Announcement]:
        """Announce an instance until the block ends; begin once it is visible, or has failed."""
        async with self.opened(**{**self.under_test.announcing, **more_environment}) as transport:
            if not isinstance(transport, Announcer):
                fail("`announces` of the suite is True, but the transport has no method `announce`.")
            announcement = Announcement(transport, instance.endpoint)
            with anyio.move_on_after(self.patience):
                await announcement.begin(self._group)
            try:
                yield announcement
            finally:
                await announcement.stop()

    async def until(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        """Wait for something that gives no notice; fail with what `what` returns if it does not come."""
        with anyio.move_on_after(self.patience):
            while not condition():  # noqa: ASYNC110
                await anyio.sleep(STEP_SECONDS)
            return
        fail(what())
