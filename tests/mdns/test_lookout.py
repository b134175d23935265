"""Who may claim an address of this machine, what a service is worth, and when there is doubt."""

import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.from_thread
import pytest

from mdns.unit_parts import SECRET, goodbye, place, settings
from mdns.unit_parts import lan as network
from opencode_mcp import Endpoint, Publish, Recognised, TransportError
from opencode_mcp_mdns.advert import Advert, Place
from opencode_mcp_mdns.composing import public_id
from opencode_mcp_mdns.lookout import Lookout
from opencode_mcp_mdns.network import Address, Network
from opencode_mcp_mdns.places import Outlook, Visit
from opencode_mcp_mdns.service import Service, Worth
from opencode_mcp_mdns.transport import MDns
from opencode_mcp_mdns.vouching import Vouching

OURS = "_opencode._tcp.local."
HTTP = "_http._tcp.local."
DESK = place("192.168.1.20")
MOVED = place("192.168.1.20", 5000)
EVIL = place("192.168.1.66")
NAS = place("192.168.1.30")


class Settled:
    """Places by hand: where somebody answers, where nobody does, and what is known of addresses."""

    settled = True

    def __init__(self) -> None:
        self.visits: dict[Place, Visit] = {}
        self.outlooks: dict[Place, Outlook] = {}
        self.kept: set[Place] = set()

    def keep(self, wanted: set[Place]) -> None:
        self.kept = wanted

    def get(self, where: Place) -> Visit | None:
        return self.visits.get(where)

    def outlook(self, address: Address) -> Outlook:
        return next((it for one, it in self.outlooks.items() if one.address == address), Outlook.OPEN)

    def asked(self, where: Place, answer: Recognised | None) -> Visit:
        visit = self.visits[where] = Visit(where)
        visit.asked, visit.answer = True, answer
        visit.problem = "" if answer else "Nobody listens."
        return visit


class Looking:
    """A look-out that hears only what a test tells it."""

    def __init__(self, **given: Any) -> None:
        session: Any = SimpleNamespace(network=network(), zeroconf=None, look_at_clock=lambda: None)
        self.out = Lookout(session, settings(**given))
        self.places = Settled()
        self.out._places = cast("Any", self.places)

    def says(self, name: str, *places: Place, **told: Any) -> Service:
        bare = name.startswith("opencode-")
        type_ = HTTP if bare else OURS
        facts: dict[str, Any] = told if bare else {"id": name, "name": name, **told}
        service = Service(type_, f"{name}.{type_}", Advert(**facts, places=places), resolved=True)
        return self.out._services.known.setdefault(service.key, service)

    async def claims(self, service: Service) -> Sequence[Place]:
        await self.out._review()
        return self.out._allowed[service.key]


OWN = place("192.168.1.10")
OWN_ID = "0a1b2c3d"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is announced from this machine."""
    here = {OWN_ID: "http://127.0.0.1:4096", "not usual": "http://127.0.0.1:4097"}
    monkeypatch.setattr("opencode_mcp_mdns.lookout.announced_here", lambda: here)
    return here


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
async def test_an_address_of_this_machine_is_claimed_by_what_it_announces_with_its_port_and_id() -> None:
    looking = Looking()
    mine = looking.says("mine", OWN, DESK, id=OWN_ID)
    unusual = looking.says("unusual", place("192.168.1.10", 4097), id=public_id("not usual"))
    assert await looking.claims(mine) == [OWN, DESK]
    assert await looking.claims(unusual) == [place("192.168.1.10", 4097)]
    assert looking.places.kept == {OWN, DESK, place("192.168.1.10", 4097)}


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "told", "where"),
    [
        ("other-id", {"id": "other"}, OWN),
        ("other-port", {"id": OWN_ID}, place("192.168.1.10", 5000)),
        ("ids-mixed", {"id": public_id("not usual")}, OWN),
        ("other-address", {"id": "other"}, place("fe80::10%eth0")),
        ("opencode-4096", {}, OWN),
    ],
)
async def test_nothing_else_has_a_place_at_this_machine(
    name: str, told: dict[str, str], where: Place
) -> None:
    looking = Looking()
    service = looking.says(name, where, **told)
    assert await looking.claims(service) == []
    assert looking.places.kept == set()
    assert [one.reason for one in looking.out.rejections] == [
        f"{where}: This is an address of this machine, where nothing of yours is announced."
    ]


@pytest.mark.anyio
async def test_what_is_elsewhere_as_well_is_asked_for_there_only(here: dict[str, str]) -> None:
    here.clear()
    looking = Looking()
    service = looking.says("desk", OWN, DESK)
    assert await looking.claims(service) == [DESK]
    assert looking.places.kept == {DESK}


@pytest.mark.anyio
async def test_what_this_machine_announces_is_read_once_a_second_and_only_if_need_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[None] = []

    def announced() -> dict[str, str]:
        reads.append(None)
        return {}

    monkeypatch.setattr("opencode_mcp_mdns.lookout.announced_here", announced)
    looking = Looking()
    looking.says("desk", DESK)
    await looking.out._review()
    assert reads == []
    looking.says("mine", OWN)
    for _ in range(3):
        await looking.out._review()
    assert len(reads) == 1
    monkeypatch.setattr("opencode_mcp_mdns.lookout._OWN_SECONDS", 0.0)
    await looking.out._review()
    assert len(reads) == 2


@pytest.mark.anyio
async def test_a_service_that_is_heard_of_during_a_review_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking = Looking()
    looking.says("mine", OWN)
    looking.says("desk", DESK)

    def announced() -> dict[str, str]:
        anyio.from_thread.run_sync(looking.says, "new", NAS)
        return {}

    monkeypatch.setattr("opencode_mcp_mdns.lookout.announced_here", announced)
    await looking.out._review()


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
async def test_one_that_said_goodbye_and_is_not_listed_is_dropped_by_a_review() -> None:
    looking = Looking()
    listed, other = looking.says("desk", DESK), looking.says("other", NAS)
    looking.places.asked(DESK, Recognised())
    await looking.out._review()
    goodbye(listed)
    goodbye(other)
    await looking.out._review()
    assert list(looking.out._services.known.values()) == [listed]
    assert looking.places.kept == {DESK}


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
async def test_what_a_service_is_worth() -> None:
    looking = Looking()
    answering = looking.says("desk", DESK)
    looking.places.asked(DESK, Recognised())
    await looking.out._review()
    worth = looking.out._worth
    assert worth(answering) is Worth.LISTED
    answering.problem = "its TXT record has 8096 bytes"
    assert worth(answering) is Worth.LISTED

    assert worth(Service(OURS, f"new.{OURS}")) is Worth.UNKNOWN
    assert worth(looking.says("nas", NAS)) is Worth.UNKNOWN
    assert worth(looking.says("nowhere")) is Worth.NOTHING
    proven = looking.says("proven", NAS, proven_until=time.time() + 60)
    assert worth(proven) is Worth.LIKELY
    proven.problem = "its id is none"
    assert worth(proven) is Worth.NOTHING

    looking.places.outlooks |= {DESK: Outlook.GOOD, EVIL: Outlook.BAD}
    assert worth(looking.says("beside", MOVED)) is Worth.LIKELY
    assert worth(looking.says("evil", EVIL)) is Worth.NOTHING
    assert worth(looking.says("evil-too", EVIL, NAS)) is Worth.UNKNOWN
    looking.places.visits[NAS] = Visit(NAS)  # about to be asked
    assert worth(looking.says("nas", NAS)) is Worth.UNKNOWN
    looking.places.asked(NAS, None)
    assert worth(looking.says("evil-three", EVIL, NAS)) is Worth.NOTHING
    looking.places.asked(MOVED, None)
    assert worth(looking.says("beside", MOVED)) is Worth.NOTHING


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
async def test_one_that_is_forgotten_is_given_up_where_it_was() -> None:
    looking = Looking()
    looking.says("desk", DESK)
    visit = looking.places.asked(DESK, Recognised())
    await looking.out._review()
    (one,) = looking.out._roster.endpoints
    looking.out.forget(one.model_copy(update={"id": "stranger"}))
    assert visit.answer is not None
    looking.out.forget(one)
    assert visit.answer is None
    assert list(looking.out._roster.endpoints) == []
    looking.out.forget(one)


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
async def test_what_is_advertised_otherwise_casts_doubt_on_the_place_where_one_is_listed() -> None:
    looking = Looking()
    service = looking.says("desk", DESK)
    visit = looking.places.asked(DESK, Recognised())

    def doubted() -> bool:
        """Whether there is doubt, which is then dispelled."""
        looking.out._service_changed(service)
        was, visit._doubted = visit._doubted.is_set(), anyio.Event()
        return was

    assert not doubted()  # it is not listed yet
    await looking.out._review()
    assert not doubted()
    goodbye(service)
    assert doubted()
    assert not doubted()  # a second one says nothing new
    service.gone_at = None
    assert doubted()
    service.advert = Advert(id="desk", name="desk", places=[DESK, MOVED])
    assert doubted()
    service.advert = Advert(id="desk", name="renamed", places=[DESK, MOVED])
    assert not doubted()
    service.advert = None
    assert doubted()


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
async def test_what_was_claimed_is_remembered_only_of_services_that_there_are() -> None:
    looking = Looking()
    for number in range(20):
        looking.out._service_changed(looking.says(f"evil{number}", EVIL))
    assert len(looking.out._told) == 20
    looking.out._services.known.clear()
    await looking.out._review()
    assert looking.out._told == {}


@pytest.mark.anyio
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "desk"),
        ({"secret": SECRET}, "desk@192.168.1.20"),
        ({"credentials_for": ("192.168.1.30",)}, "desk@192.168.1.20"),
        ({"credentials_for": ("192.168.1.20",)}, "desk"),
    ],
)
async def test_strangers_are_told_from_friends_if_there_can_be_any(given: dict[str, Any], name: str) -> None:
    looking = Looking(**given)
    looking.says("desk", DESK)
    looking.places.asked(DESK, Recognised())
    await looking.out._review()
    assert [one.name for one in looking.out._roster.endpoints] == [name]


@pytest.mark.anyio
async def test_after_sleep_everything_is_asked_for_anew_and_old_proofs_have_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking = Looking()
    done: list[str] = []
    monkeypatch.setattr(looking.out._roster, "slept", lambda: done.append("roster"))
    monkeypatch.setattr(looking.out._services, "slept", lambda: done.append("services"))
    looking.out._slept()
    assert sorted(done) == ["roster", "services"]


# For whom the user vouches


class NamesError(Exception):
    """It is time to look the names up again."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Which addresses this machine's resolver knows."""
    names: dict[str, list[str]] = {}

    def getaddrinfo(name: str, port: None, **kind: int) -> list[Any]:
        if name not in names:
            raise OSError(-2, "Name or service not known")
        return [(None, kind["type"], 6, "", (one, 0)) for one in names[name]]

    resolver = SimpleNamespace(getaddrinfo=getaddrinfo, SOCK_STREAM=1)
    monkeypatch.setattr("opencode_mcp_mdns.vouching.socket", resolver)
    return names


@pytest.mark.anyio
async def test_a_name_is_vouched_for_at_the_addresses_that_the_resolver_knows(
    names: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[None] = []
    vouching = Vouching(settings(credentials_for=("desk.example",)), changed=lambda: changes.append(None))
    for _ in range(2):
        await vouching._look_up("desk.example")
    assert caplog.messages == [
        "desk.example of MDNS_CREDENTIALS_FOR cannot be found: Name or service not known."
    ]
    assert changes == []
    names["desk.example"] = ["192.168.1.20", "fe80::20%eth0"]
    for _ in range(2):
        await vouching._look_up("desk.example")
    assert len(changes) == 1
    assert vouching.vouched(DESK)
    assert vouching.vouched(place("fe80::20%eth0"))
    assert not vouching.vouched(EVIL)
    names.clear()
    await vouching._look_up("desk.example")
    assert vouching.vouched(DESK)  # as before
    assert len(caplog.messages) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(("every", "seconds"), [(0.1, 30), (5, 30), (300, 300)])
async def test_names_are_not_looked_up_more_than_twice_a_minute(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, every: float, seconds: float
) -> None:
    names["desk.example"] = ["192.168.1.20"]
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)
        raise NamesError

    vouching = Vouching(settings(credentials_for=("desk.example",)), changed=lambda: None)
    monkeypatch.setattr("opencode_mcp_mdns.vouching.anyio.sleep", sleep)
    with pytest.raises(NamesError):
        await vouching.run(every)
    assert slept == [seconds]


@pytest.mark.anyio
async def test_a_resolver_that_hangs_keeps_nobody_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        answered.wait(10)
        return []

    resolver = SimpleNamespace(getaddrinfo=getaddrinfo, SOCK_STREAM=1)
    monkeypatch.setattr("opencode_mcp_mdns.vouching.socket", resolver)
    vouching = Vouching(settings(credentials_for=("desk.example",)), changed=lambda: None)
    began = time.monotonic()
    try:
        with anyio.move_on_after(0.05):
            await vouching.run(1)
        assert time.monotonic() - began < 5
    finally:
        answered.set()


# The transport


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """On which networks zeroconf runs: the last one; without a socket."""
    networks = [network()]

    @asynccontextmanager
    async def opened(*_: object) -> AsyncGenerator[Any]:
        yield SimpleNamespace(network=networks[-1], zeroconf=None, look_at_clock=lambda: None)

    monkeypatch.setattr("opencode_mcp_mdns.transport.opened", opened)
    monkeypatch.setattr("opencode_mcp_mdns.transport._LOOK_SECONDS", 0.05)
    return networks


@pytest.mark.anyio
async def test_to_discover_without_a_network_is_an_error(opened: list[Network]) -> None:
    opened.append(Network([]))
    with pytest.raises(TransportError, match=r"^This machine is on no network at present\.$"):
        await MDns(settings()).discover()


@pytest.mark.anyio
@pytest.mark.usefixtures("opened")
async def test_to_discover_leaves_the_lookout_that_watches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Endpoint(id="desk", name="desk", url=DESK.url)]

    async def run(self: Lookout, publish: Publish, rescan_seconds: float) -> None:
        publish(found)
        await anyio.sleep_forever()

    monkeypatch.setattr(Lookout, "run", run)
    transport = MDns(settings())
    async with anyio.create_task_group() as group:
        group.start_soon(transport.watch, lambda _: None)
        await anyio.wait_all_tasks_blocked()
        watching = transport._lookout
        assert watching is not None
        assert await transport.discover() == found
        assert transport._lookout is watching
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_it_is_reviewed_now_and_then_though_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opencode_mcp_mdns.lookout._FIRST_SECONDS", 0.0)
    monkeypatch.setattr("opencode_mcp_mdns.lookout._REVIEW_SECONDS", 0.01)
    looking = Looking()
    reviews = anyio.Semaphore(0)

    async def review() -> None:
        reviews.release()

    monkeypatch.setattr(looking.out, "_review", review)
    async with anyio.create_task_group() as group:
        group.start_soon(looking.out._publish_changes, lambda _: None)
        with anyio.fail_after(5):
            for _ in range(3):
                await reviews.acquire()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_what_is_read_again_and_says_the_same_wakes_nobody() -> None:
    looking = Looking()
    service = looking.says("desk", DESK)
    looking.out._service_changed(service)
    looking.out._dirty = anyio.Event()
    looking.out._service_changed(service)
    assert not looking.out._dirty.is_set()
    service.stale = True
    looking.out._service_changed(service)
    assert looking.out._dirty.is_set()
