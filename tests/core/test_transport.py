"""The contract for a transport: what the smallest one gets for nothing, and how it is described."""

import dataclasses
from collections.abc import Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import TaskStatus

import opencode_mcp
from opencode_mcp import (
    CONTRACT_VERSION,
    Announcer,
    Endpoint,
    Route,
    Settings,
    Transport,
    TransportError,
    TransportPlugin,
)

pytestmark = pytest.mark.anyio

ENDPOINT = Endpoint(id="1", name="laptop", url="http://127.0.0.1:4096")


class Smallest(Transport):
    """One method is enough. It finds one server more at each look, and nothing at all at the last."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.looked = 0

    async def discover(self) -> Sequence[Endpoint]:
        if self.looked == self.looks:
            raise TransportError("the directory is gone")
        self.looked += 1
        return [ENDPOINT.model_copy(update={"id": str(number)}) for number in range(self.looked)]


def test_a_transport_without_discover_cannot_be_made():
    class Incomplete(Transport):
        pass

    with pytest.raises(TypeError, match="discover"):
        Incomplete()  # pyright: ignore[reportAbstractUsage] - that is the question


async def test_the_default_watch_publishes_the_whole_set_at_each_look_and_an_error_ends_it():
    transport = Smallest(looks=3)
    transport.rescan_seconds = 0
    published: list[Sequence[Endpoint]] = []
    with anyio.fail_after(5), pytest.raises(TransportError, match="the directory is gone"):
        await transport.watch(published.append)
    assert [[one.id for one in each] for each in published] == [["0"], ["0", "1"], ["0", "1", "2"]]


async def test_the_default_watch_publishes_at_once_and_then_waits_for_its_turn():
    transport = Smallest(looks=5)
    published: list[Sequence[Endpoint]] = []
    arrived = anyio.Event()

    def publish(endpoints: Sequence[Endpoint]) -> None:
        published.append(endpoints)
        arrived.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transport.watch, publish)
        with anyio.fail_after(5):
            await arrived.wait()
            await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert len(published) == 1
    assert transport.rescan_seconds == 30.0


async def test_a_look_of_the_default_watch_that_hangs_ends_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("opencode_mcp.transport._LONGEST_LOOK", 0.05)

    class Hangs(Smallest):
        async def discover(self) -> Sequence[Endpoint]:
            await anyio.sleep_forever()
            raise NotImplementedError

    published: list[Sequence[Endpoint]] = []
    told = r"Its discover\(\) has not returned within 0\.05 s\."
    with anyio.fail_after(30), pytest.raises(TransportError, match=told):
        await Hangs(looks=1).watch(published.append)
    assert published == []


async def test_a_time_out_of_the_looks_own_is_not_taken_for_one_that_hangs():
    class TimesOut(Smallest):
        async def discover(self) -> Sequence[Endpoint]:
            raise TimeoutError("the directory does not answer")

    with pytest.raises(TimeoutError, match="the directory does not answer"):
        await TimesOut(looks=1).watch(lambda _: None)


async def test_a_look_that_forgets_to_return_is_not_taken_for_one_that_hangs():
    class Forgets(Smallest):
        async def discover(self) -> Sequence[Endpoint]:  # pyright: ignore[reportReturnType] - that is the point
            pass

    published: list[Sequence[Endpoint]] = []

    def publish(endpoints: Sequence[Endpoint]) -> None:
        published.append(endpoints)
        raise RuntimeError("published")

    with pytest.raises(RuntimeError, match="published"):
        await Forgets(looks=1).watch(publish)
    assert published == [None]


async def test_the_default_route_goes_straight_to_the_endpoint():
    async with Smallest(looks=1).connect(ENDPOINT) as route:
        assert route == Route(base_url="http://127.0.0.1:4096", headers={}, transport=None)


async def test_by_default_nothing_is_forgotten_left_out_or_suggested():
    transport = Smallest(looks=1)
    await transport.forget(ENDPOINT)
    assert (transport.rejected(), transport.forget_after_seconds, transport.invitation) == ((), None, "")
    assert transport.looked == 0


def test_who_can_announce_is_known_by_its_method():
    class Speaking(Smallest):
        async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
            raise NotImplementedError

    assert isinstance(Speaking(looks=1), Announcer)
    assert not isinstance(Smallest(looks=1), Announcer)


def test_a_descriptor_is_for_the_present_contract_unless_it_says_so():
    @asynccontextmanager
    async def opened(_: Settings):
        yield Smallest(looks=1)

    plugin = TransportPlugin(name="smallest", summary="…", settings=Settings, open=opened)
    assert plugin.contract == CONTRACT_VERSION == 1
    assert plugin.package == ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugin.name = "other"  # pyright: ignore[reportAttributeAccessIssue] - that is the question


def test_everything_public_is_there_and_nothing_twice():
    assert len(set(opencode_mcp.__all__)) == len(opencode_mcp.__all__)
    assert [name for name in opencode_mcp.__all__ if not hasattr(opencode_mcp, name)] == []
