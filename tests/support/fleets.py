"""Fleets for tests: a transport that publishes what the test says, and paces that do not waste time."""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import anyio

from opencode_mcp import Endpoint, Settings, Transport, TransportPlugin
from opencode_mcp.fleet import Fleet, Monitor
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings
from opencode_mcp.testing import FakeOpenCode

FAST = Pace(
    probe=0.5,
    route=1.0,
    silence=0.3,
    mute=1.5,
    poll=0.05,
    restream=60.0,
    retries=(0.02, 0.05, 0.1),
    stable=0.5,
)
"""All waits short; a probe may still take half a second on a busy machine."""


class NoSettings(Settings):
    """A transport without settings."""


class Listed(Transport):
    """Publishes the endpoints that a test puts in."""

    invitation = "Put one on the list."

    def __init__(self, name: str = "listed") -> None:
        self.name = name
        self.endpoints: list[Endpoint] = []
        self.forgotten: list[Endpoint] = []
        self.error: Exception | None = None
        self._changed = anyio.Event()

    async def discover(self) -> Sequence[Endpoint]:
        if self.error is not None:
            raise self.error
        return list(self.endpoints)

    async def watch(self, publish: Callable[[Sequence[Endpoint]], None]) -> None:
        while True:
            publish(await self.discover())
            await self._changed.wait()
            self._changed = anyio.Event()

    async def forget(self, endpoint: Endpoint) -> None:
        self.forgotten.append(endpoint)

    def publish(self, *endpoints: Endpoint) -> None:
        """Replace the set."""
        self.endpoints = list(endpoints)
        self._changed.set()

    def fail(self, error: Exception | None) -> None:
        """Fail at the next look, and at all that follow; None mends it."""
        self.error = error
        self._changed.set()

    @property
    def plugin(self) -> TransportPlugin[Any]:
        @contextlib.asynccontextmanager
        async def opened(_: Settings) -> AsyncGenerator[Transport]:
            yield self

        return TransportPlugin(name=self.name, summary="For tests", settings=NoSettings, open=opened)


def endpoint(fake: FakeOpenCode | str, name: str = "laptop", **fields: Any) -> Endpoint:
    """Describe a fake server, or a URL, as a transport would."""
    url = fake if isinstance(fake, str) else fake.url
    return Endpoint.model_validate({"id": name, "name": name, "url": url, "vouched": True, **fields})


@contextlib.asynccontextmanager
async def running_fleet(
    *transports: Listed, pace: Pace = FAST, hooks: Sequence[object] = (), **settings: Any
) -> AsyncGenerator[Fleet]:
    """Run a fleet over `transports`; `settings` are fields of `CoreSettings`."""
    plugins = Plugins()
    for number, hook in enumerate(hooks):
        plugins.register(hook, name=f"test-hook-{number}")
    fleet = Fleet(
        [(one.plugin, NoSettings()) for one in transports], plugins.hook, CoreSettings(**settings), pace
    )
    async with fleet.running():
        yield fleet


@dataclasses.dataclass
class until:  # noqa: N801 - reads as a word of the test: await until(lambda: ...)
    """Wait until a condition holds, bounded; the error shows what was seen last."""

    condition: Callable[[], Any]
    seconds: float = 5.0
    show: Callable[[], Any] = lambda: ""

    def __await__(self) -> Any:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        with anyio.move_on_after(self.seconds):
            while not (found := self.condition()):
                await anyio.sleep(0.005)
            return found
        raise AssertionError(f"It did not come true within {self.seconds} s. {self.show()}")


def status(fleet: Fleet, name: str = "laptop") -> str:
    """The status of an instance, or an empty string if there is none."""
    return next((one.instance.status.value for one in fleet.monitors if one.name == name), "")


def only(fleet: Fleet) -> Monitor:
    """The one monitor of a fleet."""
    (monitor,) = fleet.monitors
    return monitor
