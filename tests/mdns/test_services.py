"""What is heard of services: who is followed when there are too many, and what is learnt of them."""

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from zeroconf import ServiceStateChange
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
        self.services._heard(self.services._zeroconf, OURS, f"{name}.{OURS}", event)

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
    if displaced is None:
        assert hearing.known == before
        assert hearing.services._overlooked
    else:
        assert hearing.known == (before - {displaced}) | {"new"}
        assert f"{displaced}.{OURS}" not in hearing.services._queue


def test_which_one_of_those_worth_the_same_is_displaced_cannot_be_foreseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices: list[set[str]] = []

    def choose(found: list[Service]) -> Service:
        choices.append({one.label for one in found})
        return found[-1]

    monkeypatch.setattr("opencode_mcp_mdns.services.random.choice", choose)
    hearing = full(Worth.NOTHING, Worth.UNKNOWN, Worth.NOTHING)
    hearing.hears("new", Worth.UNKNOWN)
    assert choices == [{"old0", "old2"}]
    assert hearing.known == {"old0", "old1", "new"}


def test_a_flood_of_unknown_ones_leaves_those_alone_that_are_listed_or_likely() -> None:
    hearing = full(*[Worth.LISTED, Worth.LIKELY] * 4, *[Worth.NOTHING] * 8)
    for number in range(500):
        hearing.hears(f"evil{number}", Worth.UNKNOWN)
        hearing.worths[f"evil{number}"] = Worth.NOTHING
    assert len(hearing.known) == 16
    assert {f"old{number}" for number in range(8)} < hearing.known
    hearing.hears("honest", Worth.UNKNOWN)
    assert "honest" in hearing.known


def test_a_newcomer_is_judged_by_what_is_known_of_it_already() -> None:
    hearing = full(Worth.UNKNOWN)
    seen: list[Service] = []

    def worth(service: Service) -> Worth:
        seen.append(service)
        return Worth.LIKELY if service.advert is not None else Worth.UNKNOWN

    hearing.services._worth = worth
    hearing.hears("silent")
    assert hearing.known == {"old0"}
    hearing.caches("new")
    hearing.hears("new")
    assert hearing.known == {"new"}


def test_a_name_that_is_none_displaces_nothing() -> None:
    hearing = full(Worth.UNKNOWN)
    hearing.services._worth = lambda one: Worth.NOTHING if one.problem else Worth.UNKNOWN
    hearing.services._heard(hearing.services._zeroconf, OURS, f"a\x00b.{OURS}", ServiceStateChange.Added)
    assert hearing.known == {"old0"}


def test_a_flood_is_told_of_once_until_it_has_ebbed(caplog: pytest.LogCaptureFixture) -> None:
    hearing = full(*[Worth.UNKNOWN] * 4)
    assert caplog.messages == []
    for number in range(50):
        hearing.hears(f"evil{number}")
    told = "More than MDNS_MAX_SERVICES (4) services are advertised: some are left out."
    assert caplog.messages == [told]
    for service in list(hearing.services.known.values())[1:]:
        hearing.services.drop(service)
    for number in range(50):
        hearing.hears(f"evil{number}")
    assert caplog.messages == [told, told]


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
