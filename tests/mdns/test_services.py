"""What is heard of services: who is followed when there are too many, and what is learnt of them."""

import dataclasses
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from zeroconf import (
    DNSPointer,  # pyright: ignore[reportPrivateImportUsage] - but not in __all__
    ServiceStateChange,
)
from zeroconf._cache import DNSCache
from zeroconf.asyncio import AsyncServiceInfo

from mdns.unit_parts import lan as network
from mdns.unit_parts import place, settings
from opencode_mcp_mdns.service import Service, Worth
from opencode_mcp_mdns.services import Services

OURS = "_opencode._tcp.local."
HTTP = "_http._tcp.local."
DESK = place("192.168.1.20")
MOVED = place("192.168.1.20", 5000)
EVIL = place("192.168.1.66")
NAS = place("192.168.1.30")


class Hearing:
    """Services that hear what a test tells them, with a cache of zeroconf and no network."""

    def __init__(self, most: int) -> None:
        self.cache = DNSCache()
        session: Any = SimpleNamespace(
            network=network(), zeroconf=SimpleNamespace(zeroconf=SimpleNamespace(cache=self.cache))
        )
        self.worths: dict[str, Worth] = {}
        self.changed: list[str] = []
        self.services = Services(
            session,
            settings(max_services=most),
            changed=lambda one: self.changed.append(one.label),
            worth=lambda one: self.worths.get(one.label, Worth.UNKNOWN),
        )

    def hears(
        self, name: str, worth: Worth | None = None, *, event: ServiceStateChange = ServiceStateChange.Added
    ) -> None:
        if worth is not None:
            self.worths[name] = worth
        if event is not ServiceStateChange.Removed:
            self.points(f"{name}.{OURS}", OURS)
        self.services._heard(self.services._zeroconf, OURS, f"{name}.{OURS}", event)

    def points(self, name: str, type_: str) -> None:
        """Let zeroconf know that there is a service of a type."""
        self.cache.async_add_records([DNSPointer(type_, 12, 1, 4500, name)])

    def reconsiders(self) -> None:
        """Do what is done every two seconds."""
        self.services._overlooked = False
        self.services._compare(self.services._unknown())

    def caches(self, name: str, *, port: int = 4096) -> None:
        info = AsyncServiceInfo(
            OURS,
            f"{name}.{OURS}",
            port=port,
            properties={"id": name},
            server=f"{name}.local.",
            parsed_addresses=["192.168.1.20"],
        )
        stale = [*self.cache.entries_with_name(info.name)]
        self.cache.async_remove_records(stale)
        self.cache.async_add_records([info.dns_service(), info.dns_text(), *info.dns_addresses()])

    async def resolves(self) -> None:
        """Read what was heard of."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.services._resolve, group)
            while self.services._queue or self.services._in_doubt:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

    @property
    def known(self) -> set[str]:
        return {one.label for one in self.services.known.values()}


def full(*worths: Worth) -> Hearing:
    hearing = Hearing(len(worths))
    for number, worth in enumerate(worths):
        hearing.hears(f"old{number}", worth)
    return hearing


@pytest.mark.parametrize(
    ("worths", "newcomer", "displaced"),
    [
        ([Worth.NOTHING, Worth.UNKNOWN], Worth.UNKNOWN, "old0"),
        ([Worth.UNKNOWN, Worth.NOTHING], Worth.LIKELY, "old1"),
        ([Worth.LISTED, Worth.UNKNOWN, Worth.LIKELY], Worth.LIKELY, "old1"),
        ([Worth.LISTED, Worth.LIKELY], Worth.LISTED, "old1"),
        ([Worth.UNKNOWN, Worth.UNKNOWN], Worth.UNKNOWN, None),
        ([Worth.LIKELY, Worth.LIKELY], Worth.LIKELY, None),
        ([Worth.LIKELY, Worth.LISTED], Worth.UNKNOWN, None),
        ([Worth.LISTED, Worth.LISTED], Worth.LISTED, None),
        ([Worth.NOTHING, Worth.NOTHING], Worth.NOTHING, None),
        ([Worth.NOTHING, Worth.UNKNOWN], Worth.NOTHING, None),
    ],
)
def test_a_newcomer_displaces_one_that_is_worth_less_and_no_other(
    worths: list[Worth], newcomer: Worth, displaced: str | None
) -> None:
    hearing = full(*worths)
    before = hearing.known
    hearing.hears("new", newcomer)
    assert hearing.known == before  # it is noted only
    assert hearing.services._overlooked
    hearing.reconsiders()
    if displaced is None:
        assert hearing.known == before
        assert hearing.services._overlooked
    else:
        assert hearing.known == (before - {displaced}) | {"new"}
        assert f"{displaced}.{OURS}" not in hearing.services._queue
        assert f"new.{OURS}" in hearing.services._queue


def test_which_one_of_those_worth_the_same_is_displaced_cannot_be_foreseen() -> None:
    displaced: set[str] = set()
    for _ in range(60):
        hearing = full(Worth.NOTHING, Worth.UNKNOWN, Worth.NOTHING)
        hearing.hears("new", Worth.UNKNOWN)
        hearing.reconsiders()
        displaced |= {"old0", "old1", "old2"} - hearing.known
    assert displaced == {"old0", "old2"}


def test_which_newcomer_comes_first_cannot_be_foreseen() -> None:
    lucky: set[str] = set()
    for _ in range(60):
        hearing = full(Worth.NOTHING)
        for name in ("one", "two", "three"):
            hearing.hears(name, Worth.UNKNOWN)
        hearing.reconsiders()
        assert len(hearing.known) == 1
        lucky |= hearing.known
    assert lucky == {"one", "two", "three"}


def test_a_flood_of_unknown_ones_leaves_those_alone_that_are_listed_or_likely() -> None:
    hearing = full(*[Worth.LISTED, Worth.LIKELY] * 4, *[Worth.NOTHING] * 8)
    for number in range(500):
        hearing.hears(f"evil{number}", Worth.UNKNOWN)
    hearing.reconsiders()
    assert len(hearing.known) == 16
    assert {f"old{number}" for number in range(8)} < hearing.known
    for number in range(500):
        hearing.worths[f"evil{number}"] = Worth.NOTHING
    hearing.hears("honest", Worth.UNKNOWN)
    for _ in range(100):
        hearing.reconsiders()
    assert "honest" in hearing.known
    assert {f"old{number}" for number in range(8)} < hearing.known


def test_of_a_flood_only_so_many_are_looked_at_at_once_and_each_of_the_known_once() -> None:
    hearing = full(*[Worth.UNKNOWN] * 16)
    for number in range(500):
        hearing.hears(f"evil{number}", Worth.UNKNOWN)
    asked: list[str] = []

    def worth(service: Service) -> Worth:
        asked.append(service.label)
        return Worth.UNKNOWN

    hearing.services._worth = worth
    hearing.reconsiders()
    assert len(asked) == 16 + 128
    assert {f"old{number}" for number in range(16)} < set(asked)
    assert len(set(asked)) == len(asked)


def test_to_hear_of_a_flood_costs_nothing_but_a_note() -> None:
    hearing = full(Worth.NOTHING)

    def worth(service: Service) -> Worth:
        raise AssertionError("nothing is compared while zeroconf waits")

    hearing.services._worth = worth
    for number in range(500):
        hearing.hears(f"evil{number}")
    assert hearing.known == {"old0"}


def test_newcomers_have_the_room_that_has_become_free() -> None:
    hearing = full(Worth.LISTED, Worth.LISTED)
    for name in ("one", "two", "three"):
        hearing.hears(name)
    hearing.services.drop(hearing.services.known[f"old0.{OURS}"])
    hearing.reconsiders()
    assert len(hearing.known) == 2
    assert "old1" in hearing.known
    assert hearing.services._overlooked  # for the others


def test_one_that_zeroconf_does_not_know_any_more_is_not_reconsidered() -> None:
    hearing = full(Worth.NOTHING)
    hearing.hears("new")
    hearing.cache.async_remove_records(hearing.services._pointers(OURS))
    hearing.reconsiders()
    assert hearing.known == {"old0"}


def test_what_cannot_be_an_instance_is_not_reconsidered() -> None:
    hearing = full(Worth.NOTHING)
    hearing.points(f"printer.{HTTP}", HTTP)
    hearing.points(f"opencode-4096.{HTTP}", HTTP)
    assert [one.label for one in hearing.services._unknown()] == ["opencode-4096"]


def test_a_newcomer_is_judged_by_what_is_known_of_it_already() -> None:
    hearing = full(Worth.UNKNOWN)
    hearing.services._worth = lambda one: Worth.LIKELY if one.advert is not None else Worth.UNKNOWN
    hearing.hears("silent")
    hearing.reconsiders()
    assert hearing.known == {"old0"}
    hearing.caches("new")
    hearing.hears("new")
    hearing.reconsiders()
    assert hearing.known == {"new"}


def test_a_name_that_is_none_displaces_nothing() -> None:
    hearing = full(Worth.UNKNOWN)
    hearing.services._worth = lambda one: Worth.NOTHING if one.problem else Worth.UNKNOWN
    hearing.hears("a\x00b")
    hearing.reconsiders()
    assert hearing.known == {"old0"}


def test_a_flood_is_told_of_once_until_it_has_ebbed_for_an_hour(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("opencode_mcp_mdns.services.time", SimpleNamespace(monotonic=lambda: now[0]))
    services = Hearing(4).services
    for _ in range(50):
        services._tell_of_flood()
        now[0] += 2
    told = "More than MDNS_MAX_SERVICES (4) services are advertised: some are left out."
    assert caplog.messages == [told]
    now[0] += 3000
    services._tell_of_flood()
    assert caplog.messages == [told]
    now[0] += 3601
    services._tell_of_flood()
    assert caplog.messages == [told, told]


@pytest.mark.anyio
async def test_it_is_reconsidered_again_and_again_but_only_if_somebody_was_overlooked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_mdns.services._RECONSIDER_SECONDS", 0.001)
    hearing = full(Worth.UNKNOWN)
    batches: list[int] = []
    compare = hearing.services._compare

    def compared(newcomers: Sequence[Service]) -> None:
        batches.append(len(newcomers))
        compare(newcomers)

    monkeypatch.setattr(hearing.services, "_compare", compared)
    async with anyio.create_task_group() as group:
        group.start_soon(hearing.services._reconsider)
        await anyio.sleep(0.02)
        assert batches == []
        assert caplog.messages == []
        hearing.hears("new")
        with anyio.fail_after(5):
            while len(batches) < 3:
                await anyio.sleep(0.001)
            hearing.worths["old0"] = Worth.NOTHING
            while hearing.known != {"new"}:
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    assert set(batches) == {1}
    assert len(caplog.messages) == 1


LONG_NAMES = ["\ufffd" * 22, "x" * 64, "é" * 32]


@pytest.mark.parametrize("name", LONG_NAMES)
@pytest.mark.parametrize("full_up", [False, True])
def test_a_name_that_cannot_be_sent_is_removed_from_zeroconfs_cache(name: str, full_up: bool) -> None:
    """It would be sent as a known answer, whereupon zeroconf sends nothing at all."""
    hearing = full(Worth.NOTHING) if full_up else Hearing(4)
    before = hearing.known
    hearing.points(f"desk.{OURS}", OURS)
    hearing.hears(name)
    assert hearing.known == before
    assert not hearing.services._overlooked
    left = {str(getattr(one, "alias", "")) for one in hearing.services._pointers(OURS)}
    assert f"desk.{OURS}" in left
    assert f"{name}.{OURS}" not in left


@pytest.mark.anyio
async def test_after_sleep_zeroconf_knows_nothing_and_everything_is_asked_for() -> None:
    hearing = Hearing(4)
    hearing.caches("desk")
    hearing.hears("desk")
    await hearing.resolves()
    hearing.services.slept()
    assert hearing.cache.names() == []
    assert list(hearing.services._queue) == [f"desk.{OURS}"]
    assert hearing.services._asking._due
    (service,) = hearing.services.known.values()
    assert service.advert is not None  # until something else is said


@pytest.mark.anyio
async def test_all_that_is_known_is_read_again_at_each_regular_question() -> None:
    hearing = Hearing(4)
    hearing.caches("desk")
    hearing.hears("desk")
    await hearing.resolves()
    assert hearing.services.settled
    hearing.caches("desk", port=5000)
    hearing.services._asking._asked()
    assert not hearing.services.settled
    await hearing.resolves()
    (service,) = hearing.services.known.values()
    assert service.advert is not None
    assert [one.port for one in service.advert.places] == [5000]


def test_one_that_is_known_is_heard_of_again_whatever_the_flood() -> None:
    hearing = full(Worth.NOTHING)
    hearing.services._queue.clear()
    hearing.hears("OLD0", event=ServiceStateChange.Updated)
    assert hearing.known == {"old0"}
    assert not hearing.services._overlooked
    assert list(hearing.services._queue) == [f"old0.{OURS}"]


def test_a_goodbye_of_one_that_is_not_known_is_nothing() -> None:
    hearing = Hearing(4)
    hearing.hears("desk", event=ServiceStateChange.Removed)
    assert hearing.known == set()
    assert hearing.changed == []


def test_what_cannot_be_an_instance_is_not_followed() -> None:
    hearing = Hearing(4)
    hearing.services._heard(hearing.services._zeroconf, HTTP, f"printer.{HTTP}", ServiceStateChange.Added)
    assert hearing.services.known == {}
    assert hearing.services.settled


@pytest.mark.anyio
async def test_a_goodbye_is_noted_once_and_taken_back_when_the_service_is_heard_of_again() -> None:
    hearing = Hearing(4)
    hearing.hears("desk")
    (service,) = hearing.services.known.values()
    hearing.hears("desk", event=ServiceStateChange.Removed)
    first = service.gone_at
    hearing.hears("Desk", event=ServiceStateChange.Removed)
    assert first is not None
    assert service.gone_at == first
    assert hearing.changed == ["desk"]
    assert hearing.services._asking._due  # it is asked again, for it may be somebody else's goodbye
    hearing.hears("desk")
    assert not service.gone


@pytest.mark.anyio
async def test_what_a_service_said_is_kept_when_it_is_overwritten_with_nonsense() -> None:
    hearing = Hearing(4)
    hearing.caches("desk")
    hearing.hears("desk")
    await hearing.resolves()
    (service,) = hearing.services.known.values()
    before = service.advert
    assert before is not None
    assert (service.resolved, service.problem) == (True, "")
    hearing.caches("desk", port=22)
    hearing.hears("desk", event=ServiceStateChange.Updated)
    await hearing.resolves()
    assert service.problem == "its port 22 is none of MDNS_PORTS"
    assert service.advert is before
    service.advert = dataclasses.replace(before, proven_until=time.time() - 1)
    hearing.hears("desk", event=ServiceStateChange.Updated)
    await hearing.resolves()
    assert service.advert is None


@pytest.mark.anyio
async def test_one_that_nobody_answers_for_is_stale_until_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def request(*_: object) -> bool:
        return False

    monkeypatch.setattr(AsyncServiceInfo, "async_request", request)
    hearing = Hearing(4)
    hearing.hears("desk")
    await hearing.resolves()
    (service,) = hearing.services.known.values()
    assert service.stale
    assert service.abandoned
    assert service.problem == "nobody answers for it: its address cannot be learnt"
    hearing.caches("desk")
    hearing.hears("desk", event=ServiceStateChange.Updated)
    await hearing.resolves()
    assert (service.stale, service.problem) == (False, "")


@pytest.mark.anyio
async def test_one_that_was_dropped_and_is_heard_of_again_meanwhile_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = anyio.Event()

    async def request(*_: object) -> bool:
        await answered.wait()
        return False

    monkeypatch.setattr(AsyncServiceInfo, "async_request", request)
    hearing = Hearing(4)
    hearing.hears("desk")
    async with anyio.create_task_group() as group:
        group.start_soon(hearing.services._resolve, group)
        await anyio.wait_all_tasks_blocked()
        (before,) = hearing.services.known.values()
        hearing.services.drop(before)
        hearing.hears("desk")
        await anyio.wait_all_tasks_blocked()
        answered.set()
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    (service,) = hearing.services.known.values()
    assert service is not before
    assert service.resolved
