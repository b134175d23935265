"""One transport, whatever it publishes and however it fails: what counts, and what is said of it."""

import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from opencode_mcp import (
    Endpoint,
    Publish,
    Rejection,
    Settings,
    Transport,
    TransportError,
    TransportPlugin,
    packages,
)
from opencode_mcp.fleet import watched as module
from opencode_mcp.fleet.watched import Watched
from support.fleets import Listed, endpoint, running_fleet, until

pytestmark = pytest.mark.anyio

MEND = f"Update it: {packages.update('opencode-mcp-semaphore')}"
SOURCE = "transport semaphore (from opencode-mcp-semaphore 1.0)"
LONG = 30.0


class Played(Transport):
    """Does in its watch what the test says."""

    def __init__(self, *plays: Callable[[Publish], Any]) -> None:
        self._plays = list(plays)
        self.played = 0

    async def discover(self) -> Sequence[Endpoint]:
        raise NotImplementedError

    async def watch(self, publish: Publish) -> None:
        play = self._plays[min(self.played, len(self._plays) - 1)]
        self.played += 1
        play(publish)
        await anyio.sleep_forever()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRIES", (0.01,))


@asynccontextmanager
async def watching(
    transport: Transport,
    package: str = "opencode-mcp-semaphore 1.0",
    opening: Callable[[], Any] = lambda: None,
) -> AsyncGenerator[Watched]:
    @asynccontextmanager
    async def opened(_: Settings) -> AsyncGenerator[Transport]:
        if (wait := opening()) is not None:
            await wait
        yield transport

    plugin = TransportPlugin(
        name="semaphore", summary="For tests", settings=Settings, open=opened, package=package
    )
    one = Watched(plugin, Settings(), rescan_seconds=0.01, published=lambda: None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        yield one
        tasks.cancel_scope.cancel()


def one(name: str = "one", port: int = 1) -> Endpoint:
    return endpoint(f"http://127.0.0.1:{port}", name)


def publishing(what: object) -> Played:
    return Played(lambda publish: publish(what))  # pyright: ignore[reportArgumentType] - foreign code


def reasons(watched: Watched) -> Sequence[str]:
    assert {each.source for each in watched.problems} <= {SOURCE}
    return [each.reason for each in watched.problems]


def messages(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    return [record.getMessage() for record in caplog.records]


async def test_of_several_with_one_id_the_first_counts_and_that_is_told(caplog: pytest.LogCaptureFixture):
    twice = [one("same", 1), one("other", 2), one("same", 3), one("same", 1)]
    async with watching(publishing(twice)) as watched:
        await until(watched.looked.is_set)
        assert list(watched.endpoints.values()) == twice[:2]
        told = f"It publishes several endpoints with the same id; only the first of each counts. {MEND}"
        assert reasons(watched) == [told]
    assert messages(caplog) == [f"{SOURCE.capitalize()}: {told}"]


async def test_what_is_no_endpoint_does_not_count_and_that_is_told(caplog: pytest.LogCaptureFixture):
    odd = [None, one("one"), "http://127.0.0.1:1", {"id": "x"}, Endpoint, one("two", 2)]
    async with watching(publishing(odd)) as watched:
        await until(watched.looked.is_set)
        assert [each.name for each in watched.endpoints.values()] == ["one", "two"]
        told = f"It publishes something else than sound endpoints, which does not count. {MEND}"
        assert reasons(watched) == [told]
    assert messages(caplog) == [f"{SOURCE.capitalize()}: {told}"]


@pytest.mark.parametrize("kind", [tuple, iter, deque])
async def test_any_iterable_will_do(
    kind: Callable[[Sequence[Endpoint]], object], caplog: pytest.LogCaptureFixture
):
    async with watching(publishing(kind([one("one"), one("two", 2)]))) as watched:
        await until(watched.looked.is_set)
        assert len(watched.endpoints) == 2
        assert reasons(watched) == []
    assert caplog.text == ""


class Million(Sequence[Endpoint]):
    """A million endpoints, of which each is made as it is looked at."""

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: Any) -> Any:
        self.made += 1
        return Endpoint(id=f"{index}", name="x", url=f"http://10.0.0.1:{index % 65535 + 1}")


async def test_of_a_million_the_first_5000_count_and_the_others_are_not_even_looked_at():
    million = Million()
    async with watching(publishing(million)) as watched:
        await until(watched.looked.is_set, seconds=LONG)
        assert list(watched.endpoints) == [("semaphore", f"{number}") for number in range(5000)]
        assert reasons(watched) == [f"It publishes 1000000 endpoints; only the first 5000 count. {MEND}"]
    assert million.made == 5001


async def test_a_generator_without_end_is_cut_off_like_any_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("opencode_mcp.fleet.publication.MOST", 3)

    def endless() -> Generator[Endpoint]:
        number = 0
        while True:
            number += 1
            yield one(f"n{number}", number)

    async with watching(publishing(endless())) as watched:
        await until(watched.looked.is_set)
        assert len(watched.endpoints) == 3
        assert reasons(watched) == [f"It publishes more than 3 endpoints; only the first 3 count. {MEND}"]


async def test_exactly_as_many_as_count_are_no_reason_to_complain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("opencode_mcp.fleet.publication.MOST", 3)
    async with watching(publishing([one(f"n{port}", port) for port in (1, 2, 3)])) as watched:
        await until(watched.looked.is_set)
        assert (len(watched.endpoints), reasons(watched)) == (3, [])


async def test_several_flaws_are_told_together_and_gone_with_a_sound_publication(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("opencode_mcp.fleet.publication.MOST", 3)
    published = list[Publish]()
    async with watching(Played(published.append)) as watched:
        await until(lambda: published)
        (publish,) = published
        for _ in range(3):
            publish([one(), one(), None, None])  # pyright: ignore[reportArgumentType] - foreign code
            (told,) = reasons(watched)
            assert [part in told for part in ("4 endpoints", "something else", "the same id")] == [True] * 3
            assert len(messages(caplog)) == 1
            publish([one()])
            assert reasons(watched) == []
        monkeypatch.setattr(module, "_LOGGED_AGAIN_SECONDS", -1.0)
        publish([one(), one(), None, None])  # pyright: ignore[reportArgumentType] - foreign code
        assert len(messages(caplog)) == 2


class Restless(Transport):
    """Its look raises every second time."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.looks = 0

    async def discover(self) -> Sequence[Endpoint]:
        self.looks += 1
        if self.looks % 2 == 0:
            raise self._error
        return [one()]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TransportError("The directory is gone."), "The directory is gone."),
        (ValueError("s3cret"), f"It failed with ValueError; OPENCODE_MCP_LOG_LEVEL=DEBUG tells more. {MEND}"),
        (SystemExit(3), f"It failed with SystemExit; OPENCODE_MCP_LOG_LEVEL=DEBUG tells more. {MEND}"),
    ],
    ids=lambda case: type(case).__name__,
)
async def test_a_look_that_raises_every_second_time_is_logged_once_and_its_set_stays(
    error: BaseException, told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    transport = Restless(error)
    async with watching(transport) as watched:
        await until(lambda: reasons(watched) == [told])
        await until(lambda: reasons(watched) == [])  # it works again
        await until(lambda: transport.looks > 10)
        assert len(watched.endpoints) == 1
        why, mend = told.removesuffix(MEND).rstrip(), MEND if told.endswith(MEND) else ""
        logged = f"{SOURCE.capitalize()}: {why} It is tried again. {mend}".rstrip()
        assert messages(caplog) == [logged]
        assert "s3cret" not in caplog.text
        monkeypatch.setattr(module, "_LOGGED_AGAIN_SECONDS", -1.0)
        await until(lambda: len(messages(caplog)) > 1)


@pytest.mark.parametrize("what", [None, 7])
async def test_what_is_no_set_at_all_is_a_failure_and_the_last_set_stays(what: Any):
    class Forgets(Restless):
        async def discover(self) -> Sequence[Endpoint]:
            self.looks += 1
            return [one()] if self.looks == 1 else what

    async with watching(Forgets(ValueError())) as watched:
        told = f"It failed with TypeError; OPENCODE_MCP_LOG_LEVEL=DEBUG tells more. {MEND}"
        await until(lambda: reasons(watched) == [told])
        assert len(watched.endpoints) == 1


async def test_a_watch_that_ends_is_a_failure_that_is_told_and_it_is_tried_again():
    class Ends(Restless):
        async def watch(self, publish: Publish) -> None:
            self.looks += 1
            publish([one()])

    transport = Ends(ValueError())
    async with watching(transport) as watched:
        await until(lambda: reasons(watched) == [f"Its watch ended without an error. {MEND}"])
        await until(lambda: transport.looks > 3)
        assert len(watched.endpoints) == 1


async def test_a_look_of_the_default_watch_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("opencode_mcp.transport._LONGEST_LOOK", 0.05)

    class Hangs(Restless):
        async def discover(self) -> Sequence[Endpoint]:
            self.looks += 1
            await anyio.sleep_forever()
            return []

    transport = Hangs(ValueError())
    async with watching(transport) as watched:
        await until(lambda: reasons(watched) == ["Its discover() has not returned within 0.05 s."])
        await until(lambda: transport.looks > 2)


@pytest.mark.parametrize("where", ["open", "watch"])
async def test_one_that_takes_long_to_start_is_told_with_who_brings_it_and_the_mend(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "_SLOW_SECONDS", 0.05)
    published, go_on = list[Publish](), anyio.Event()

    async def wait() -> None:
        await go_on.wait()

    opening = wait if where == "open" else lambda: None
    async with watching(Played(published.append), opening=opening) as watched:
        await until(lambda: messages(caplog))
        (message,) = messages(caplog)
        assert message.startswith(f"{SOURCE.capitalize()}: It has been starting for ")
        assert message.endswith(f" s. {MEND}")
        assert not watched.looked.is_set()
        (reason,) = reasons(watched)
        assert reason.startswith("It has been starting for ")
        assert reason.endswith(f" s. {MEND}")
        go_on.set()
        await until(lambda: published)
        published[0]([one()])
        assert reasons(watched) == []
        assert len(messages(caplog)) == 1


async def test_one_that_has_only_just_begun_is_said_to_be_starting():
    published = list[Publish]()
    async with watching(Played(published.append)) as watched:
        await until(lambda: published)
        assert reasons(watched) == ["It is still starting."]
        published[0]([])
        assert reasons(watched) == []


async def test_a_transport_that_nobody_knows_the_package_of_is_named_alone():
    async with watching(publishing([one(), one()]), package="") as watched:
        await until(watched.looked.is_set)
        (problem,) = watched.problems
        assert problem.source == "transport semaphore"
        assert problem.reason.endswith("counts. Update the package that brings it.")


async def test_endpoints_that_were_never_checked_do_not_count(caplog: pytest.LogCaptureFixture):
    good = endpoint("http://127.0.0.1:1", "good")
    evil = [
        good.model_copy(update={"id": "renamed", "name": "x\x1b]0;owned\x07\nInstance: y"}),
        good.model_copy(update={"id": "elsewhere", "url": "http://me:hunter2@127.0.0.1:1"}),
        Endpoint.model_construct(id="bare"),
    ]
    listed = Listed()
    async with running_fleet(listed) as fleet:
        listed.publish(good, *evil)
        await until(lambda: fleet.problems)
        assert [one.name for one in fleet.monitors] == ["good"]
        assert fleet.problems[0].reason.startswith("It publishes something else than sound endpoints")
    assert "owned" not in caplog.text
    assert "hunter2" not in caplog.text


async def test_an_invitation_that_raises_and_very_many_rejections_hold_up_nobody():
    class Odd(Listed):
        invitation = property(lambda self: 1 / 0)  # pyright: ignore[reportAssignmentType]

        def rejected(self) -> Iterator[Rejection]:  # pyright: ignore[reportIncompatibleMethodOverride]
            return (Rejection(source="x", reason=str(number)) for number in itertools.count())

    odd = Odd()
    async with running_fleet(odd) as fleet:
        odd.publish()
        await until(lambda: len(fleet.problems) == 1_000)
        assert fleet.invitations == []
