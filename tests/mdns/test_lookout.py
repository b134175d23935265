"""Who may claim an address of this machine, what a service is worth, and when there is doubt."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.from_thread
import pytest

from mdns.unit_parts import goodbye, place, settings
from mdns.unit_parts import lan as network
from opencode_mcp import Recognised
from opencode_mcp_mdns.advert import Advert, Place
from opencode_mcp_mdns.composing import public_id
from opencode_mcp_mdns.lookout import Lookout
from opencode_mcp_mdns.network import Address
from opencode_mcp_mdns.places import Outlook, Visit
from opencode_mcp_mdns.service import Service, Worth

OURS = "_opencode._tcp.local."
HTTP = "_http._tcp.local."
DESK = place("192.168.1.20")
MOVED = place("192.168.1.20", 5000)
EVIL = place("192.168.1.66")
NAS = place("192.168.1.30")


class Settled:
    """Places by hand: where somebody answers, where nobody does, and what is known of addresses."""

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
        session: Any = SimpleNamespace(network=network(), zeroconf=None)
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
        return self.out._places_of(service)


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
        f"{where}: It is this machine itself, which does not announce it."
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
    await looking.out._review()
    looking.out._service_changed(service)
    assert not visit._doubted.is_set()
    goodbye(service)
    looking.out._service_changed(service)
    assert visit._doubted.is_set()
