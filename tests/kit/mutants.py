"""Broken transports: each is the board with one thing wrong with it.

`MUTANTS` says of each which standard tests have to fail, and no others.
"""

import asyncio
import dataclasses
import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from pydantic import Field, ValidationError, field_validator

from kit.board import EXPIRES_SECONDS, LOOK_SECONDS, Board, BoardPlugin, BoardSettings, Plain, write
from opencode_mcp import (
    Announcing,
    Endpoint,
    Publish,
    Rejection,
    Route,
    Transport,
    TransportError,
    variable,
)

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

Endpoints = list[Endpoint]

SLOW = frozenset(
    {
        "test_importing_it_takes_under_150_ms",
        "test_hostile_values_are_contained",
        "test_what_is_announced_expires_when_its_process_is_killed",
    }
)
"""Those that take a second: they run only for the mutants that they are to find."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A broken transport.

    Attributes:
        fails: The standard tests that find it out, without `test_`.
        plugin: What its entry point names.
        alone: Run only the tests that find it out: the others would wait for it too long.
        claims: What its suite says, other than the board's.
    """

    fails: frozenset[str]
    plugin: object
    alone: bool = False
    claims: dict[str, object] = dataclasses.field(default_factory=dict[str, object])


MUTANTS: dict[str, Mutant] = {}


def mutant(
    *fails: str, alone: bool = False, claims: dict[str, object] | None = None, **changes: Any
) -> Callable[[type[Transport]], type[Transport]]:
    """Register a broken transport, which goes by its class's name."""

    def register(transport: type[Transport]) -> type[Transport]:
        name = transport.__name__
        MUTANTS[name] = Mutant(
            frozenset(f"test_{one}" for one in fails),
            BoardPlugin(name, transport, **changes),
            alone,
            claims or {},
        )
        return transport

    return register


# What a plugin says of itself


@mutant("the_plugin_describes_itself", summary="")
class WithoutSummary(Board): ...


@mutant("the_plugin_describes_itself", summary="Two\nlines")
class SummaryOfTwoLines(Board): ...


@mutant("the_plugin_describes_itself", claims={"announces": False})
class SecretAnnouncer(Board): ...


@mutant("the_plugin_describes_itself", claims={"able": False})
class PlainWithAnnouncing(Plain): ...


@mutant("the_plugin_describes_itself", announcing=None)
class AnnouncerWithoutAnnouncing(Board): ...


class UndocumentedSettings(BoardSettings):
    extra_setting: int = 3


@mutant("every_setting_is_documented", settings=UndocumentedSettings)
class Undocumented(Board): ...


class PlainFieldSettings(BoardSettings):
    extra_setting: int = Field(3, validation_alias="BOARD_EXTRA", description="It is extra.")


@mutant("every_setting_is_documented", settings=PlainFieldSettings)
class DocumentedWithoutTakes(Board): ...


class WithoutAboutSettings(BoardSettings):
    extra_setting: int = variable("BOARD_EXTRA", 3, takes="a number", about="")


@mutant("every_setting_is_documented", settings=WithoutAboutSettings)
class DocumentedWithoutAbout(Board): ...


class SentenceSettings(BoardSettings):
    extra_setting: int = variable("BOARD_EXTRA", 3, takes="It takes a number.", about="It is extra.")


@mutant("every_setting_is_documented", settings=SentenceSettings)
class TakesIsASentence(Board): ...


class CoresVariableSettings(BoardSettings):
    extra_setting: str = variable("TRANSPORT", "x", takes="a name", about="It is core's own.")


@mutant("every_setting_is_documented", settings=CoresVariableSettings)
class TakesCoresVariable(Board): ...


class OddVariableSettings(BoardSettings):
    extra_setting: int = variable("board.extra", 3, takes="a number", about="It is extra.")


@mutant("every_setting_is_documented", settings=OddVariableSettings)
class VariableNobodyCanSet(Board): ...


class RefusedDefaultSettings(BoardSettings):
    words: tuple[str, ...] = variable(
        "BOARD_WORDS", ("a", "b"), takes="words", about="They are read by nobody."
    )


@mutant("settings_are_read_from_the_environment", settings=RefusedDefaultSettings)
class RefusesItsDefault(Board): ...


class LooseBoolSettings(BoardSettings):
    loud: bool = variable("BOARD_LOUD", False, takes="1 or 0", about="Whether it is loud.")

    @field_validator("loud", mode="before")
    @classmethod
    def _any_word(cls, value: object) -> bool:
        return bool(value)


@mutant("settings_are_read_from_the_environment", settings=LooseBoolSettings)
class TakesZeroForYes(Board): ...


class RaisingSettings(BoardSettings):
    extra_setting: int = variable("BOARD_EXTRA", 3, takes="a number", about="It is extra.")

    @field_validator("extra_setting", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        return {"3": 3}[str(value)]


@mutant("a_wrong_value_is_refused_by_the_name_of_its_variable", settings=RaisingSettings)
class ValidatorRaisesKeyError(Board): ...


class LateSettings(BoardSettings):
    extra_setting: str = variable("BOARD_EXTRA", "3", takes="a number", about="It is extra.")


@mutant("a_wrong_value_is_refused_by_the_name_of_its_variable", settings=LateSettings)
class ParsesWhenOpened(Board):
    def __init__(self, settings: LateSettings) -> None:
        super().__init__(settings)
        self.number = int(settings.extra_setting)


# Finding


@mutant("nothing_to_find_is_an_empty_set")
class SilentAboutNothing(Board):
    def publish(self, publish: Publish, before: Endpoints | None, now: Endpoints) -> None:
        if before or now:
            publish(now)


@mutant("the_first_set_is_complete")
class OneAfterTheOther(Board):
    def publish(self, publish: Publish, before: Endpoints | None, now: Endpoints) -> None:
        if before is None:
            for count in range(1, len(now)):
                publish(now[:count])
        publish(now)


@mutant("discover_returns_what_watch_publishes")
class DiscoversOtherNames(Board):
    async def discover(self) -> Sequence[Endpoint]:
        return [one.model_copy(update={"name": one.name.upper()}) for one in self.look()]


@mutant("discover_returns_what_watch_publishes", "ids_are_unique_and_stable")
class DiscoversOnlyOne(Board):
    async def discover(self) -> Sequence[Endpoint]:
        return self.look()[:1]


@mutant(
    "what_appears_is_added",
    "what_is_withdrawn_goes_and_stays_away",
    "two_watchers_see_the_same",
    "changes_are_noticed_without_looking_again",
    "an_endpoint_that_is_gone_is_not_reached",
    alone=True,
)
class PublishesOnlyWhatIsNew(Board):
    def publish(self, publish: Publish, before: Endpoints | None, now: Endpoints) -> None:
        publish([one for one in now if one not in (before or [])])


@mutant("what_changes_keeps_its_id", "changes_come_in_order")
class IdIsThePort(Board):
    def endpoint(self, path: Path, written: Any) -> Endpoint:
        found = super().endpoint(path, written)
        return (
            found if "expires" in written else found.model_copy(update={"id": found.url.rpartition(":")[2]})
        )

    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        found = next((one for one in self.look() if one.id == endpoint.id), None)
        if found is None:
            raise TransportError("It is not on the board.")
        yield Route(base_url=found.url)


@mutant("what_changes_keeps_its_id", "changes_come_in_order")
class KeepsTheOldName(Board):
    """Nobody is told of a change: what was there stays as it was."""

    def __init__(self, settings: BoardSettings) -> None:
        super().__init__(settings)
        self.known: dict[str, Endpoint] = {}

    def look(self) -> Endpoints:
        found = super().look()
        self.known = {one.id: self.known.get(one.id, one) for one in found}
        return [*self.known.values()]

    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        async with Board(self.settings).connected(endpoint) as route:
            yield route


@mutant("what_is_withdrawn_goes_and_stays_away")
class BringsBackWhatIsGone(Board):
    def __init__(self, settings: BoardSettings) -> None:
        super().__init__(settings)
        self.gone: Endpoints = []

    def publish(self, publish: Publish, before: Endpoints | None, now: Endpoints) -> None:
        ids = {one.id for one in now}
        publish([*now, *(one for one in self.gone if one.id not in ids)])
        publish(now)
        self.gone = [one for one in before or [] if one.id not in ids]


@mutant("changes_come_in_order")
class RepeatsTheStateBefore(Board):
    def publish(self, publish: Publish, before: Endpoints | None, now: Endpoints) -> None:
        publish(now)
        if before is not None and {one.id for one in before} == {one.id for one in now}:
            publish(before)
            publish(now)


@mutant("ids_are_unique_and_stable")
class PublishesTwice(Board):
    def publish(self, publish: Publish, before: Endpoints | None, now: Endpoints) -> None:
        publish([*now, *now])


@mutant("ids_are_unique_and_stable")
class DiscoversTwice(Board):
    async def discover(self) -> Sequence[Endpoint]:
        return [*self.look(), *self.look()]


@mutant("ids_are_unique_and_stable", "discover_returns_what_watch_publishes", alone=True)
class RandomIds(Board):
    def __init__(self, settings: BoardSettings) -> None:
        super().__init__(settings)
        self.salt = secrets.token_hex(4)

    def endpoint(self, path: Path, written: Any) -> Endpoint:
        found = super().endpoint(path, written)
        return found.model_copy(update={"id": f"{self.salt}-{found.id}"})


@mutant("ids_are_unique_and_stable")
class IdsOfSameNamesClash(Board):
    def look(self) -> Endpoints:
        found = super().look()
        names = [one.name for one in found]
        return [
            one if names.count(one.name) == 1 else one.model_copy(update={"id": one.name}) for one in found
        ]


@mutant("two_watchers_see_the_same")
class WatchersShareWhatTheyKnow(Board):
    """Whoever looks first takes the news from the others."""

    known: dict[Path, Endpoints] = {}  # noqa: RUF012 - the mistake that is made here

    async def watch(self, publish: Publish) -> None:
        publish(self.look())
        self.known[self.settings.directory] = self.look()
        while True:
            await anyio.sleep(LOOK_SECONDS)
            found = self.look()
            if found != self.known[self.settings.directory]:
                publish(found)
                self.known[self.settings.directory] = found


LEFT: list[object] = []
"""Keeps what is left open from being closed by the garbage collector."""


@mutant("a_cancelled_watch_ends_and_leaves_nothing_behind")
class LeavesATask(Board):
    async def watch(self, publish: Publish) -> None:
        LEFT.append(asyncio.create_task(asyncio.sleep(3600)))
        await super().watch(publish)


@mutant("a_cancelled_watch_ends_and_leaves_nothing_behind")
class LeavesASocket(Board):
    async def watch(self, publish: Publish) -> None:
        LEFT.append(socket.socket())
        await super().watch(publish)


@mutant("a_cancelled_watch_ends_and_leaves_nothing_behind")
class LeavesAFile(Board):
    async def watch(self, publish: Publish) -> None:
        LEFT.append(os.open(__file__, os.O_RDONLY))
        await super().watch(publish)


@mutant("a_cancelled_watch_ends_and_leaves_nothing_behind")
class PublishesWhenCancelled(Board):
    async def watch(self, publish: Publish) -> None:
        loop = asyncio.get_running_loop()
        known = self.look()

        def look(again: int) -> None:
            try:
                found = self.look()
            except TransportError:
                return
            if found != known:
                publish(found)
            elif again:
                loop.call_later(LOOK_SECONDS, look, again - 1)

        try:
            await super().watch(publish)
        finally:
            known = self.look() if self.settings.directory.exists() else []
            look(50)


@mutant("a_cancelled_watch_ends_and_leaves_nothing_behind", alone=True)
class IsSlowToEnd(Board):
    async def watch(self, publish: Publish) -> None:
        try:
            await super().watch(publish)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5.5)


@mutant("changes_are_noticed_without_looking_again")
class OnlySaysThatItWatches(Board):
    async def watch(self, publish: Publish) -> None:
        await Transport.watch(self, publish)


@mutant("changes_are_noticed_without_looking_again")
class NoticesOnlyWhatAppears(Board):
    async def watch(self, publish: Publish) -> None:
        published: Endpoints | None = None
        slept = 0.0
        while True:
            found = self.look()
            grown = published is None or len(found) >= len(published)
            if found != published and (grown or slept >= self.rescan_seconds):
                publish(found)
                published, slept = found, 0.0
            await anyio.sleep(LOOK_SECONDS)
            slept += LOOK_SECONDS


@mutant("an_error_is_raised_and_never_an_empty_set")
class TakesAnErrorForNothing(Board):
    def files(self) -> list[Path]:
        try:
            return super().files()
        except TransportError:
            return []


@mutant("an_error_is_raised_and_never_an_empty_set")
class DiscoversNothingOnError(Board):
    async def discover(self) -> Sequence[Endpoint]:
        try:
            return self.look()
        except TransportError:
            return []


@mutant("an_error_is_raised_and_never_an_empty_set")
class PublishesNothingOnError(Board):
    async def watch(self, publish: Publish) -> None:
        try:
            await super().watch(publish)
        except TransportError:
            publish([])
            raise


@mutant("an_error_is_raised_and_never_an_empty_set")
class BeginsWithNothingOnError(Board):
    async def watch(self, publish: Publish) -> None:
        try:
            self.look()
        except TransportError:
            publish([])
            await anyio.sleep_forever()
        await super().watch(publish)


@mutant("an_error_is_raised_and_never_an_empty_set", claims={"breaks": False})
class CannotFail(Board): ...


# Connecting


@mutant("connect_reaches_the_server")
class MixesUpTwo(Board):
    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        found = self.look()
        if endpoint.id not in {one.id for one in found}:
            raise TransportError("It is not on the board.")
        yield Route(base_url=found[0].url)


@mutant("connect_follows_a_server_that_moved")
class GoesWhereItWas(Board):
    def __init__(self, settings: BoardSettings) -> None:
        super().__init__(settings)
        self.first: dict[str, str] = {}

    def look(self) -> Endpoints:
        found = super().look()
        for one in found:
            self.first.setdefault(one.id, one.url)
        return found

    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        async with super().connected(endpoint):
            yield Route(base_url=self.first[endpoint.id])


class Wrapped(httpx2.AsyncBaseTransport):
    """A way of its own, as a tunnel would be."""

    def __init__(self) -> None:
        self.inner = httpx2.AsyncHTTPTransport()
        self.closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.closed:
            raise RuntimeError("the tunnel is closed")
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        self.closed = True
        await self.inner.aclose()


class Buffering(Wrapped):
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await super().handle_async_request(request)
        content = await answer.aread()
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=httpx2.ByteStream(content))


class Through(Board):
    """Goes another way."""

    def way(self, endpoint: Endpoint) -> httpx2.AsyncBaseTransport:
        return Wrapped()

    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        async with super().connected(endpoint) as route:
            yield Route(base_url=route.base_url, headers=route.headers, transport=self.way(endpoint))


@mutant("a_route_carries_a_stream")
class WaitsForTheWholeAnswer(Through):
    def way(self, endpoint: Endpoint) -> httpx2.AsyncBaseTransport:
        return Buffering()


@mutant("routes_do_not_depend_on_each_other")
class SharesItsTunnel(Through):
    """As long as a tunnel is open, it serves all; who leaves closes it."""

    def __init__(self, settings: BoardSettings) -> None:
        super().__init__(settings)
        self.tunnel = Wrapped()

    def way(self, endpoint: Endpoint) -> httpx2.AsyncBaseTransport:
        if self.tunnel.closed:
            self.tunnel = Wrapped()
        return self.tunnel


@mutant("a_route_closes_what_it_opened")
class RouteLeavesASocket(Board):
    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        LEFT.append(socket.socket())
        async with super().connected(endpoint) as route:
            yield route


@mutant("an_unknown_endpoint_is_not_reached")
class UnknownRaisesKeyError(Board):
    seen: set[str] = set()  # noqa: RUF012 - of all

    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        self.seen |= {one.id for one in self.look()}
        if endpoint.id == "never-published":
            raise KeyError(endpoint.id)
        async with super().connected(endpoint) as route:
            yield route


@mutant("an_unknown_endpoint_is_not_reached")
class UnknownLeadsToAnother(Board):
    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        if endpoint.id == "never-published":
            [endpoint] = self.look()
        async with super().connected(endpoint) as route:
            yield route


@mutant("an_unknown_endpoint_is_not_reached", alone=True)
class UnknownHangs(Board):
    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        if endpoint.id == "never-published":
            await anyio.sleep_forever()
        async with super().connected(endpoint) as route:
            yield route


@mutant("an_endpoint_that_is_gone_is_not_reached")
class GoneLeadsToAnother(Board):
    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        found = self.look()
        if endpoint.id != "never-published" and endpoint.id not in {one.id for one in found}:
            endpoint = found[0]
        async with super().connected(endpoint) as route:
            yield route


@mutant("an_endpoint_that_is_gone_is_not_reached")
class GoneRaisesValueError(Board):
    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        if endpoint.id != "never-published" and endpoint.id not in {one.id for one in self.look()}:
            raise ValueError(endpoint.id)
        async with super().connected(endpoint) as route:
            yield route


# Secrets


class PlainSecretSettings(BoardSettings):
    password: str = variable("BOARD_PASSWORD", "", takes="a password", about="It is asked for.")


@mutant("no_secret_is_shown", settings=PlainSecretSettings)
class PasswordIsAString(Board): ...


class Telling(Board):
    """Knows what its token is."""

    @property
    def told(self) -> str:
        token = self.settings.token
        return "" if token is None else token.get_secret_value()


@mutant("no_secret_is_shown")
class ReprShowsIt(Telling):
    def __repr__(self) -> str:
        return f"Board({self.told})"


@mutant("no_secret_is_shown")
class LogShowsIt(Telling):
    def look(self) -> Endpoints:
        logging.getLogger("kit").debug("I look with %s.", self.told)
        return super().look()


@mutant("no_secret_is_shown")
class LabelShowsIt(Telling):
    def look(self) -> Endpoints:
        return [one.model_copy(update={"labels": {"token": self.told}}) for one in super().look()]


@mutant("no_secret_is_shown")
class ErrorShowsIt(Telling):
    def files(self) -> list[Path]:
        try:
            return super().files()
        except TransportError as error:
            raise TransportError(f"{error} The token is {self.told}.") from None


@mutant("no_secret_is_shown")
class RouteShowsIt(Telling):
    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        async with super().connected(endpoint) as route:
            me = f"me:{self.told}@" if self.told else ""
            yield Route(base_url=route.base_url.replace("http://", f"http://{me}"))


@mutant("no_secret_is_shown")
class InvitationShowsIt(Telling):
    def __init__(self, settings: BoardSettings) -> None:
        super().__init__(settings)
        self.invitation = f"Use {self.told}."


@mutant(
    "no_secret_is_shown",
    announcing=lambda settings: Announcing(
        facts={"Token": settings.token.get_secret_value() if settings.token else ""}
    ),
)
class BannerShowsIt(Board): ...


@mutant("no_secret_is_shown")
class AnnouncingShowsIt(Telling):
    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        if self.told:
            raise TransportError(f"{self.told} is not accepted.")
        await super().announce(endpoint, task_status=task_status)


# Strangers


@mutant("hostile_values_are_contained")
class PassesOnAnything(Board):
    def endpoint(self, path: Path, written: Any) -> Endpoint:
        return Endpoint.model_construct(id=path.stem, name=written["name"], url=written["url"])


@mutant("hostile_values_are_contained")
class DiesOfStrangers(Board):
    def leave_out(self, path: Path, written: Any, error: ValidationError) -> None:
        raise error


@mutant("hostile_values_are_contained")
class LeavesOutInSilence(Board):
    def leave_out(self, path: Path, written: Any, error: ValidationError) -> None: ...


@mutant("hostile_values_are_contained")
class QuotesStrangers(Board):
    def leave_out(self, path: Path, written: Any, error: ValidationError) -> None:
        self.left_out.append(Rejection(source=path.name, reason=f"The name is {written['name'][:100]}"))


@mutant("hostile_values_are_contained")
class QuotesUrls(Board):
    def leave_out(self, path: Path, written: Any, error: ValidationError) -> None:
        url = written["url"][:100].encode("unicode-escape").decode()
        self.left_out.append(Rejection(source=path.name, reason=f"The url is {url}"))


@mutant("hostile_values_are_contained")
class QuotesWithoutEnd(Board):
    def leave_out(self, path: Path, written: Any, error: ValidationError) -> None:
        name = written["name"].encode("unicode-escape").decode()
        self.left_out.append(Rejection(source=path.name, reason=f"The name is {name}"))


@mutant("hostile_values_are_contained")
class LogsUrls(Board):
    def leave_out(self, path: Path, written: Any, error: ValidationError) -> None:
        super().leave_out(path, written, error)
        logging.getLogger("kit").warning("I refuse %r.", written["url"][:200])


@mutant("hostile_values_are_contained")
class PunishesTheHonest(Board):
    def publish(self, publish: Publish, before: Endpoints | None, now: Endpoints) -> None:
        publish([] if self.left_out else now)

    async def watch(self, publish: Publish) -> None:
        said: object = None
        while True:
            found = self.look()
            if (found, self.left_out) != said:
                self.publish(publish, None, found)
                said = (found, self.left_out)
            await anyio.sleep(LOOK_SECONDS)


@mutant("hostile_values_are_contained")
class NeverForgetsAStranger(Board):
    def __init__(self, settings: BoardSettings) -> None:
        super().__init__(settings)
        self.all: list[Rejection] = []

    def rejected(self) -> Sequence[Rejection]:
        self.all += [one for one in self.left_out if one not in self.all]
        return tuple(self.all)


# Announcing


@mutant("what_is_announced_is_found", alone=True)
class NeverSaysThatItIsVisible(Board):
    def began(self, started: Callable[[], None]) -> None: ...


@mutant("what_is_announced_is_found", alone=True)
class OnlySaysThatItIsVisible(Board):
    def put(self, path: Path, endpoint: Endpoint) -> None: ...


@mutant("what_is_announced_is_found", alone=True)
class CannotAnnounce(Board):
    def put(self, path: Path, endpoint: Endpoint) -> None:
        raise TransportError("There is no chalk.")


@mutant("what_is_announced_is_found")
class AnnouncesAnotherAddress(Board):
    def put(self, path: Path, endpoint: Endpoint) -> None:
        other = "http://127.0.0.1:1"
        write(path, {"name": endpoint.name, "url": other, "expires": EXPIRES_SECONDS})


@mutant("what_is_announced_is_found")
class AnnouncesAnotherName(Board):
    def put(self, path: Path, endpoint: Endpoint) -> None:
        write(path, {"name": "laptop", "url": endpoint.url, "expires": EXPIRES_SECONDS})


@mutant("what_is_announced_goes_when_cancelled", claims={"gone_within_seconds": 1.0})
class LeavesItToExpire(Board):
    async def withdrawn(self, path: Path) -> None: ...


@mutant("what_is_announced_goes_when_cancelled", alone=True)
class WithdrawsSlowly(Board):
    async def withdrawn(self, path: Path) -> None:
        path.unlink()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3.5)


@mutant("what_is_announced_goes_when_cancelled")
class RaisesWhenItWithdraws(Board):
    async def withdrawn(self, path: Path) -> None:
        path.unlink()
        raise TransportError("The chalk is broken.")


@mutant("what_is_announced_again_has_the_same_id")
class AnnouncesByChance(Board):
    def announced_id(self, endpoint: Endpoint) -> str:
        return secrets.token_hex(4)


@mutant("an_announcement_leaves_nothing_behind")
class AnnouncingLeavesATask(Board):
    def began(self, started: Callable[[], None]) -> None:
        LEFT.append(asyncio.create_task(asyncio.sleep(3600)))
        started()


@mutant("an_announcement_leaves_nothing_behind")
class AnnouncingLeavesASocket(Board):
    def began(self, started: Callable[[], None]) -> None:
        LEFT.append(socket.socket())
        started()


@mutant(
    "what_is_announced_expires_when_its_process_is_killed", claims={"expires_within_seconds": 2.0}, alone=True
)
class NeverExpires(Board):
    def put(self, path: Path, endpoint: Endpoint) -> None:
        write(path, {"name": endpoint.name, "url": endpoint.url})


MUTANTS["ImportsHeavily"] = Mutant(
    frozenset({"test_importing_it_takes_under_150_ms"}), None, alone=True
)  # see `heavy`

plugins = SimpleNamespace(**{name: one.plugin for name, one in MUTANTS.items()})
"""By their names, for entry points."""
