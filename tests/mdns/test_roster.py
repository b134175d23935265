"""What is listed: who answers stays, whatever is advertised, and nobody takes the place or id of another."""

import re
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from mdns.unit_parts import ESCAPES, goodbye, place
from opencode_mcp import Endpoint, Recognised, Rejection, clean_line
from opencode_mcp_mdns.advert import Advert, Place
from opencode_mcp_mdns.listing import Listed, Listing
from opencode_mcp_mdns.rejections import rejections
from opencode_mcp_mdns.roster import Roster
from opencode_mcp_mdns.service import Service

OURS = "_opencode._tcp.local."
HTTP = "_http._tcp.local."
DESK = place("192.168.1.20")
MOVED = place("192.168.1.20", 5000)
EVIL = place("192.168.1.66")
NAS = place("192.168.1.30")


class Lan:
    """A network by hand: services that are advertised, places that answer, and the roster of them."""

    def __init__(self, limit: int = 256, *, identify: bool = True, mark: bool = False) -> None:
        self.services: dict[str, Service] = {}
        self.answers: dict[Place, Recognised] = {}
        self.vouched: set[Place] = set()
        self.undecided: set[Place] = set()
        self.barred: set[Place] = set()
        self.roster = Roster(
            self.services,
            self._places_of,
            self.answers.get,
            lambda one: one not in self.undecided,
            lambda one: one in self.vouched,
            limit=limit,
            identify=identify,
            mark=mark,
        )

    def says(self, name: str, /, *places: Place, **told: Any) -> Service:
        """Advertise a service, or something else of it."""
        bare = name.startswith("opencode-")
        type_ = HTTP if bare else OURS
        service = Service(type_, f"{name}.{type_}")
        service = self.services.setdefault(service.key, service)
        if told.pop("proven", False):
            told["proven_until"] = time.time() + 3600
        facts: dict[str, Any] = told if bare else {"id": name, "name": name, **told}
        service.advert = Advert(**facts, places=places)
        service.resolved, service.gone_at, service.stale = True, None, False
        return service

    def _places_of(self, service: Service) -> Sequence[Place]:
        places = () if service.advert is None else service.advert.places
        return [one for one in places if one not in self.barred]

    def answer(self, *places: Place, **told: Any) -> None:
        for one in places:
            self.answers[one] = Recognised(**told)

    def silent(self, *places: Place) -> None:
        for one in places:
            self.answers.pop(one, None)

    def list(self) -> Sequence[Endpoint]:
        self.roster.review()
        return self.roster.endpoints

    def listed(self) -> dict[str, str]:
        """What is listed now, as URLs by id."""
        return {one.id: one.url for one in self.list()}

    def only(self) -> Endpoint:
        (one,) = self.list()
        return one


@pytest.fixture
def lan() -> Lan:
    return Lan()


# Instances with an id


def test_an_instance_that_answers_is_listed_with_what_it_says(lan: Lan) -> None:
    lan.says("desk", DESK, host="desktop", version="1.0", directory="project")
    assert lan.list() == []
    lan.answer(DESK)
    assert lan.only() == Endpoint(
        id="desk",
        name="desk",
        url="http://192.168.1.20:4096",
        hostname="desktop",
        directory="project",
        labels={"identity": "not verified", "version": "1.0"},
    )


def test_what_it_says_itself_counts_more_than_what_is_advertised(lan: Lan) -> None:
    lan.says("desk", DESK, version="1.0", directory="project")
    lan.answer(DESK, version="2.0", directory="/home/me/project")
    one = lan.only()
    assert one.directory == "/home/me/project"
    assert one.labels["version"] == "2.0"
    assert one.hostname == "192.168.1.20"


def test_one_id_is_one_instance_however_many_addresses_answer(lan: Lan) -> None:
    lan.says("desk", DESK, NAS, place("fd00:1::20"))
    lan.answer(place("fd00:1::20"), NAS)
    assert lan.listed() == {"desk": NAS.url}
    lan.answer(DESK)
    assert lan.listed() == {"desk": NAS.url}


def test_it_moves_once_the_old_place_is_silent_and_not_before(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    before = lan.only()
    lan.says("desk", MOVED)
    lan.answer(MOVED)
    assert lan.only() == before
    lan.silent(DESK)
    assert lan.listed() == {"desk": MOVED.url}


def test_it_does_not_move_to_where_nobody_answers(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    before = lan.only()
    lan.silent(DESK)
    lan.says("desk", MOVED)
    assert lan.only() == before


def test_it_stays_listed_while_it_is_advertised_even_if_it_is_silent(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    before = lan.only()
    lan.silent(DESK)
    assert lan.only() == before
    lan.services["desk._opencode._tcp.local."].stale = True
    assert lan.only() == before


def test_a_goodbye_of_one_that_answers_changes_nothing(lan: Lan) -> None:
    service = lan.says("desk", DESK)
    lan.answer(DESK)
    before = lan.only()
    goodbye(service, ago=60)
    assert lan.only() == before
    del lan.services[service.key]
    assert lan.only() == before


@pytest.mark.parametrize("dropped", [False, True])
def test_a_goodbye_of_one_that_is_silent_ends_it(lan: Lan, dropped: bool) -> None:
    service = lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    goodbye(service)
    if dropped:
        del lan.services[service.key]
    lan.silent(DESK)
    assert lan.list() == []


def test_a_false_address_for_a_service_changes_nothing_while_the_true_one_answers(lan: Lan) -> None:
    lan.says("desk", DESK, host="desktop")
    lan.answer(DESK, EVIL)
    before = lan.only()
    lan.says("desk", EVIL, host="evil", name="evil")
    assert lan.only() == before


def test_a_copied_id_under_another_service_is_listed_beside_the_first(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK, EVIL)
    before = lan.only()
    lan.says("copy", EVIL, id="desk")
    first, second = lan.list()
    assert first == before
    assert re.fullmatch("desk~[0-9a-f]{16}", second.id)
    assert (second.url, second.name) == (EVIL.url, "copy")
    assert lan.list() == [first, second]


def test_a_copy_of_the_id_and_of_the_place_is_not_listed(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK, EVIL)
    before = lan.only()
    lan.says("copy", DESK, EVIL, id="desk", name="evil")
    assert lan.only() == before


def test_a_service_that_was_renamed_keeps_its_id(lan: Lan) -> None:
    old = lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    goodbye(old)
    lan.says("desk-2", DESK, id="desk", name="desk-2")
    assert lan.only().name == "desk"
    goodbye(old, ago=5)
    assert lan.only().name == "desk-2"
    assert lan.listed() == {"desk": DESK.url}
    assert lan.roster.lists(lan.services["desk-2._opencode._tcp.local."])
    assert not lan.roster.lists(old)


@pytest.mark.parametrize("proven", [False, True])
def test_a_service_that_shows_another_id_does_not_move_the_listed_one(lan: Lan, proven: bool) -> None:
    lan.says("desk", DESK, proven=proven)
    lan.answer(DESK)
    (before,) = lan.list()
    lan.says("desk", EVIL, id="evil", name="desk")  # SRV, A and TXT of somebody else
    lan.answer(EVIL)
    assert lan.listed() == {"desk": DESK.url, "evil": EVIL.url}
    lan.silent(DESK)
    assert lan.list()[0] == before
    assert not lan.list()[1].vouched


def test_a_service_that_tells_its_id_later_is_listed_by_it(lan: Lan) -> None:
    lan.says("desk", DESK, id="")
    lan.answer(DESK)
    assert lan.listed() == {str(DESK): DESK.url}
    lan.says("desk", DESK)
    assert lan.listed() == {"desk": DESK.url}
    assert lan.listed() == {"desk": DESK.url}


def test_what_may_not_be_asked_is_not_claimed_either(lan: Lan) -> None:
    lan.barred.add(DESK)
    lan.says("desk", DESK, NAS)
    lan.answer(DESK, NAS)
    assert lan.listed() == {"desk": NAS.url}


# One place, two claims


def test_of_two_that_claim_a_place_the_first_stays(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    before = lan.only()
    lan.says("evil", DESK, host="evil", directory="evil", version="6.6.6")
    assert lan.only() == before
    assert lan.only() == before


def test_the_second_is_listed_at_another_of_its_places(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK, NAS)
    lan.list()
    lan.says("nas", DESK, NAS)
    assert lan.listed() == {"desk": DESK.url, "nas": NAS.url}


@pytest.mark.parametrize("how", ["stale", "gone", "dropped"])
def test_the_first_yields_when_nobody_stands_for_it_any_more(lan: Lan, how: str) -> None:
    service = lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    if how == "dropped":
        del lan.services[service.key]
    elif how == "gone":
        goodbye(service, ago=4.1)
    else:
        service.stale = True
    lan.says("new", DESK)
    assert lan.listed() == {"new": DESK.url}


@pytest.mark.parametrize("ago", [0, 1.2, 3.9])
def test_the_first_does_not_yield_while_there_is_time_to_contradict_a_goodbye(lan: Lan, ago: float) -> None:
    service = lan.says("desk", DESK)
    lan.answer(DESK)
    before = lan.only()
    goodbye(service, ago=ago)
    lan.says("evil", DESK)
    assert lan.only() == before
    lan.says("desk", DESK)  # it was false
    assert lan.only() == before
    assert not service.gone


def test_a_service_is_abandoned_when_its_goodbye_stands_or_nobody_answers_for_it() -> None:
    service = Service(OURS, f"desk.{OURS}")
    assert not service.gone
    assert not service.abandoned
    goodbye(service)
    assert service.gone
    assert not service.abandoned
    goodbye(service, ago=4.1)
    assert service.abandoned
    service.gone_at = None
    assert not service.abandoned
    service.stale = True
    assert service.abandoned
    assert not service.gone


def test_who_proved_the_secret_takes_a_place_over(lan: Lan) -> None:
    lan.says("evil", DESK)
    lan.answer(DESK)
    lan.list()
    lan.says("desk", DESK, proven=True)
    assert lan.listed() == {"desk": DESK.url}
    assert lan.only().labels["identity"] == "verified"


def test_who_proved_the_secret_yields_to_nobody_who_did_not(lan: Lan) -> None:
    service = lan.says("desk", DESK, proven=True)
    lan.answer(DESK)
    before = lan.only()
    service.stale = True
    goodbye(service, ago=60)
    lan.says("evil", DESK)
    assert lan.only() == before
    del lan.services[service.key]
    assert lan.only() == before


def test_the_first_review_prefers_the_proven_then_those_with_an_id(lan: Lan) -> None:
    lan.says("opencode-4096", DESK)
    lan.says("other", DESK)
    lan.says("desk", DESK, proven=True)
    lan.answer(DESK)
    assert lan.listed() == {"desk": DESK.url}


def test_the_proven_then_those_with_an_id_are_listed_when_there_is_no_room_for_all() -> None:
    lan = Lan(limit=1)
    lan.says("opencode-4096", EVIL)
    lan.says("nas", NAS)
    lan.says("desk", DESK, proven=True)
    lan.answer(EVIL, NAS, DESK)
    assert lan.listed() == {"desk": DESK.url}
    lan = Lan(limit=1)
    lan.says("opencode-4096", EVIL)
    lan.says("nas", NAS)
    lan.answer(EVIL, NAS)
    assert lan.listed() == {"nas": NAS.url}


def test_a_silent_instance_that_is_announced_by_another_service_is_no_second_one(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    lan.silent(DESK)
    lan.says("desk-2", MOVED, id="desk")  # started anew while the old name was still taken
    lan.answer(MOVED)
    assert lan.listed() == {"desk": MOVED.url}


def test_who_proved_the_secret_takes_its_id_over(lan: Lan) -> None:
    lan.says("evil", EVIL, id="desk")
    lan.answer(EVIL, DESK)
    lan.list()
    lan.says("desk", DESK, proven=True)
    assert lan.listed() == {"desk": DESK.url}


def test_an_id_that_was_proven_once_is_not_listed_without_proof(lan: Lan) -> None:
    service = lan.says("desk", DESK, proven=True)
    lan.answer(DESK, EVIL)
    before = lan.only()
    lan.says("evil", EVIL, id="desk")
    assert lan.only() == before
    lan.silent(DESK)
    assert lan.only() == before
    goodbye(service)
    assert lan.list() == []
    assert lan.list() == []
    lan.answer(DESK)
    lan.says("desk", DESK, proven=True)
    assert lan.listed() == {"desk": DESK.url}


def test_a_service_that_proves_nothing_any_more_keeps_what_was_proven(lan: Lan) -> None:
    lan.says("desk", DESK, proven=True, host="desktop")
    lan.answer(DESK, EVIL)
    before = lan.only()
    lan.says("desk", DESK, host="evil", name="evil")
    assert lan.only() == before
    lan.says("desk", EVIL)
    lan.silent(DESK)
    assert lan.only() == before


@pytest.mark.anyio
@pytest.mark.parametrize("answers", [False, True])
async def test_one_whose_proof_is_no_more_is_listed_no_more_until_it_proves_itself_again(
    lan: Lan, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    lan.says("desk", DESK, proven_until=time.time() + 60)
    lan.answer(DESK)
    assert lan.only().vouched
    later = time.time() + 61
    monkeypatch.setattr("opencode_mcp_mdns.advert.time", SimpleNamespace(time=lambda: later))
    if not answers:
        lan.silent(DESK)
    assert lan.list() == []
    lan.says("desk", DESK, proven_until=later + 60)
    lan.answer(DESK)
    assert lan.only().vouched


def test_a_copy_of_an_id_takes_nobody_elses_place_away(lan: Lan) -> None:
    victim = lan.says("nas", NAS)
    lan.says("desk", DESK)
    lan.answer(NAS, DESK)
    assert set(lan.listed()) == {"nas", "desk"}
    goodbye(victim, ago=60)  # a false one, though nobody contradicts it
    lan.says("evil", DESK, NAS, id="desk")
    assert lan.listed() == {"nas": NAS.url, "desk": DESK.url}


@pytest.mark.anyio
async def test_after_sleep_a_proof_that_grew_old_is_held_to_be_good_for_a_while(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("opencode_mcp_mdns.roster.anyio", SimpleNamespace(current_time=lambda: now[0]))
    lan.says("desk", DESK, proven_until=time.time() + 60)
    lan.answer(DESK)
    before = lan.only()
    later = time.time() + 8 * 3600
    monkeypatch.setattr("opencode_mcp_mdns.advert.time", SimpleNamespace(time=lambda: later))
    lan.roster.slept()
    assert lan.only() == before
    now[0] += 19
    assert lan.only() == before
    now[0] += 2
    assert lan.list() == []
    lan.says("desk", DESK, proven_until=later + 60)
    assert lan.only() == before


def test_copies_of_an_id_are_told_apart_by_more_than_anybody_can_try(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK, EVIL, NAS)
    lan.list()
    lan.says("copy", EVIL, id="desk")
    lan.says("copy-2", NAS, id="desk")
    clones = [one.id for one in lan.list() if one.id != "desk"]
    assert len(set(clones)) == 2
    assert all(re.fullmatch("desk~[0-9a-f]{16}", one) for one in clones)


# Bare ones


def test_a_bare_one_is_listed_by_its_place_and_named_after_it(lan: Lan) -> None:
    lan.says("opencode-4096", DESK)
    lan.answer(DESK, version="1.0", directory="/home/me/project")
    assert lan.only() == Endpoint(
        id="192.168.1.20:4096",
        name="192.168.1.20-project",
        url="http://192.168.1.20:4096",
        hostname="192.168.1.20",
        directory="/home/me/project",
        labels={"identity": "not verified", "version": "1.0"},
    )


@pytest.mark.parametrize(
    ("directory", "name"),
    [("", "192.168.1.20-4096"), ("/", "192.168.1.20-4096"), (r"C:\Users\me\project", "192.168.1.20-project")],
)
def test_a_bare_one_without_a_folder_is_named_after_its_port(lan: Lan, directory: str, name: str) -> None:
    lan.says("opencode-4096", DESK)
    lan.answer(DESK, directory=directory)
    assert lan.only().name == name


def test_a_bare_one_gets_its_name_when_it_tells_its_folder(lan: Lan) -> None:
    lan.says("opencode-4096", DESK)
    lan.answer(DESK, guarded=True)
    assert lan.only().name == "192.168.1.20-4096"
    lan.answer(DESK, directory="/home/me/project")
    assert lan.only().name == "192.168.1.20-project"


def test_a_name_has_room_in_an_endpoint_whatever_the_folder(lan: Lan) -> None:
    lan.says("opencode-4096", DESK)
    lan.answer(DESK, directory="/" + "x" * 4000)
    assert len(lan.only().name) == 200


def test_two_addresses_that_answer_are_two_bare_instances(lan: Lan) -> None:
    lan.says("opencode-4096", DESK, NAS, EVIL)
    lan.answer(DESK, NAS)
    assert lan.listed() == {str(DESK): DESK.url, str(NAS): NAS.url}


def test_ipv6_of_a_bare_one_counts_only_without_ipv4(lan: Lan) -> None:
    six = place("fd00:1::20")
    lan.says("opencode-4096", DESK, six)
    lan.answer(DESK, six)
    assert lan.listed() == {str(DESK): DESK.url}
    lan.services.clear()
    lan.silent(DESK)
    assert lan.list() == []
    lan.says("opencode-4096", DESK, six)
    assert lan.listed() == {"[fd00:1::20]:4096": "http://[fd00:1::20]:4096"}


def test_ipv6_of_a_bare_one_waits_until_it_is_clear_about_ipv4(lan: Lan) -> None:
    six = place("fe80::20%eth0")
    lan.says("opencode-4096", DESK, NAS, six)
    lan.undecided |= {DESK, NAS}
    lan.answer(six)
    assert lan.list() == []
    lan.undecided.remove(NAS)  # and nobody answers there
    assert lan.list() == []
    lan.undecided.clear()
    lan.answer(DESK)
    assert lan.listed() == {str(DESK): DESK.url}


def test_ipv6_of_a_bare_one_that_may_not_be_asked_over_ipv4_waits_for_nothing(lan: Lan) -> None:
    six = place("fd00:1::20")
    lan.says("opencode-4096", DESK, six)
    lan.barred.add(DESK)
    lan.undecided.add(DESK)
    lan.answer(six)
    assert lan.listed() == {str(six): six.url}


def test_a_bare_one_that_is_silent_stays_while_it_is_advertised_there(lan: Lan) -> None:
    service = lan.says("opencode-4096", DESK)
    lan.answer(DESK)
    before = lan.only()
    lan.silent(DESK)
    assert lan.only() == before
    goodbye(service)
    assert lan.list() == []


def test_a_bare_one_that_is_silent_and_advertised_elsewhere_goes(lan: Lan) -> None:
    lan.says("opencode-4096", DESK)
    lan.answer(DESK)
    lan.list()
    lan.says("opencode-4096", NAS)
    assert list(lan.listed()) == [str(DESK)]
    lan.silent(DESK)
    lan.answer(NAS)
    assert lan.listed() == {str(NAS): NAS.url}


def test_a_goodbye_of_a_bare_one_that_answers_changes_nothing(lan: Lan) -> None:
    service = lan.says("opencode-4096", DESK)
    lan.answer(DESK)
    before = lan.only()
    goodbye(service, ago=60)
    assert lan.only() == before


def test_a_bare_one_gives_way_to_one_with_an_id_at_the_same_place(lan: Lan) -> None:
    lan.says("opencode-4096", DESK)
    lan.answer(DESK)
    lan.list()
    lan.says("desk", DESK)
    assert lan.listed() == {"desk": DESK.url}
    assert lan.listed() == {"desk": DESK.url}


def test_a_bare_one_at_a_place_that_is_listed_adds_nothing(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    before = lan.only()
    lan.says("opencode-4096", DESK)
    assert lan.only() == before


def test_a_bare_one_that_the_user_vouches_for_gives_way_to_a_proof_only(lan: Lan) -> None:
    """Or else anybody could give it their own name, and get its password."""
    lan.vouched.add(DESK)
    lan.says("opencode-4096", DESK)
    lan.answer(DESK)
    before = lan.only()
    lan.says("evil", DESK)
    assert lan.only() == before
    lan.says("desk", DESK, proven=True)
    assert lan.listed() == {"desk": DESK.url}


@pytest.mark.parametrize("how", ["stale", "gone"])
def test_a_vouched_bare_one_gives_way_when_nobody_stands_for_it_any_more(lan: Lan, how: str) -> None:
    lan.vouched.add(DESK)
    service = lan.says("opencode-4096", DESK)
    lan.answer(DESK)
    lan.list()
    if how == "gone":
        goodbye(service, ago=5)
    else:
        service.stale = True
    lan.says("desk", DESK)
    assert lan.listed() == {"desk": DESK.url}


# Names of strangers


def test_strangers_have_their_address_in_their_name_and_those_vouched_for_have_not() -> None:
    lan = Lan(mark=True)
    lan.vouched.add(NAS)
    lan.says("evil", EVIL, name="desk")
    lan.says("desk", DESK, proven=True)
    lan.says("nas", NAS)
    lan.answer(EVIL, DESK, NAS)
    assert {one.id: one.name for one in lan.list()} == {
        "evil": "desk@192.168.1.66",
        "desk": "desk",
        "nas": "nas",
    }


def test_a_bare_stranger_is_named_after_its_address_anyway() -> None:
    lan = Lan(mark=True)
    lan.says("opencode-4096", DESK)
    lan.answer(DESK, directory="/home/me/project")
    assert lan.only().name == "192.168.1.20-project"


def test_a_stranger_that_is_vouched_for_later_gets_its_own_name() -> None:
    lan = Lan(mark=True)
    lan.says("desk", DESK)
    lan.answer(DESK)
    assert lan.only().name == "desk@192.168.1.20"
    lan.vouched.add(DESK)
    assert lan.only().name == "desk"
    lan.vouched.clear()
    assert lan.only().name == "desk@192.168.1.20"


def test_a_stranger_with_the_longest_name_does_not_get_that_for_itself() -> None:
    lan = Lan(mark=True)
    lan.says("desk", place("192.168.1.20"), name="x" * 190)
    lan.answer(DESK)
    name = lan.only().name
    assert len(name) <= 200
    assert name.startswith("x" * 100)
    assert name != "x" * 190


# Limits


def test_no_more_than_the_limit_are_listed(lan: Lan) -> None:
    lan = Lan(limit=8)
    for number in range(20):
        one = place(f"192.168.1.{number + 20}")
        lan.says(f"desk{number}", one)
        lan.answer(one)
    assert list(lan.listed()) == [f"desk{number}" for number in range(8)]


def test_no_more_than_a_quarter_are_listed_at_one_address() -> None:
    lan = Lan(limit=8)
    for number in range(20):
        one = place("192.168.1.66", 4000 + number)
        lan.says(f"evil{number}", one)
        lan.answer(one)
    lan.says("opencode-4096", *[place("192.168.1.66", 5000 + number) for number in range(4)])
    lan.answer(*[place("192.168.1.66", 5000 + number) for number in range(4)])
    lan.says("desk", DESK)
    lan.answer(DESK)
    assert list(lan.listed()) == ["evil0", "evil1", "desk"]


def test_one_is_always_allowed_at_an_address() -> None:
    lan = Lan(limit=2)
    lan.says("desk", DESK)
    lan.says("nas", NAS)
    lan.answer(DESK, NAS)
    assert set(lan.listed()) == {"desk", "nas"}


def test_a_full_list_keeps_up_with_those_on_it() -> None:
    lan = Lan(limit=1)
    lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    lan.silent(DESK)
    lan.says("desk", MOVED)
    lan.says("nas", NAS)
    lan.answer(MOVED, NAS)
    assert lan.listed() == {"desk": MOVED.url}


def test_one_that_proved_the_secret_displaces_one_that_did_not_when_it_is_full() -> None:
    lan = Lan(limit=2)
    lan.vouched.add(DESK)
    lan.says("desk", DESK)
    lan.says("evil", EVIL)
    lan.answer(DESK, EVIL, NAS)
    assert set(lan.listed()) == {"desk", "evil"}
    lan.says("nas", NAS, proven=True)
    assert lan.listed() == {"desk": DESK.url, "nas": NAS.url}
    assert lan.listed() == {"desk": DESK.url, "nas": NAS.url}
    (one,) = refused(lan)
    assert one == Rejection(source="service evil", reason="MDNS_MAX_SERVICES leaves no room for it.")


def test_nobody_who_is_vouched_for_is_displaced() -> None:
    lan = Lan(limit=2)
    lan.vouched.add(DESK)
    lan.says("desk", DESK)
    lan.says("nas", NAS, proven=True)
    lan.answer(DESK, NAS, EVIL)
    lan.list()
    lan.says("third", EVIL, proven=True)
    assert set(lan.listed()) == {"desk", "nas"}


def test_at_an_address_with_too_many_a_proven_one_displaces_one_there_and_no_other() -> None:
    lan = Lan(limit=8)
    crowd = [place("192.168.1.20", 5000 + number) for number in range(3)]
    lan.says("nas", NAS)
    for number, one in enumerate(crowd):
        lan.says(f"evil{number}", one)
    lan.answer(DESK, NAS, *crowd)
    assert list(lan.listed()) == ["nas", "evil0", "evil1"]
    lan.says("desk", DESK, proven=True)
    assert list(lan.listed()) == ["nas", "evil1", "desk"]


# Whom to trust


def test_only_a_place_that_the_user_vouches_for_is_vouched_for(lan: Lan) -> None:
    lan.vouched.add(NAS)
    lan.says("desk", DESK)
    lan.says("nas", NAS)
    lan.says("opencode-4096", EVIL)
    lan.answer(DESK, NAS, EVIL)
    assert {one.id: one.vouched for one in lan.list()} == {"desk": False, "nas": True, str(EVIL): False}
    assert {one.labels["identity"] for one in lan.list()} == {"not verified"}


def test_who_proved_the_secret_is_vouched_for(lan: Lan) -> None:
    lan.says("desk", DESK, proven=True)
    lan.answer(DESK)
    assert lan.only().vouched
    assert lan.only().labels["identity"] == "verified"


def test_without_a_secret_nothing_is_said_of_proofs() -> None:
    lan = Lan(identify=False)
    lan.says("desk", DESK)
    lan.answer(DESK)
    assert lan.only().labels == {}


def test_trust_follows_the_place_and_not_the_id(lan: Lan) -> None:
    lan.vouched.add(DESK)
    lan.says("desk", DESK)
    lan.answer(DESK)
    assert lan.only().vouched
    lan.silent(DESK)
    lan.says("desk", EVIL)
    lan.answer(EVIL)
    one = lan.only()
    assert (one.url, one.vouched) == (EVIL.url, False)


def test_trust_that_is_given_or_taken_away_later_counts(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    assert not lan.only().vouched
    lan.vouched.add(DESK)
    assert lan.only().vouched
    lan.vouched.clear()
    assert not lan.only().vouched


def test_a_proof_for_another_place_does_not_vouch_for_this_one(lan: Lan) -> None:
    lan.says("desk", EVIL)
    lan.answer(EVIL, DESK)
    lan.list()
    lan.says("desk", DESK, proven=True)
    assert {one.url: one.vouched for one in lan.list()}[EVIL.url] is False


# Keeping up to date


def test_what_is_advertised_anew_is_told(lan: Lan) -> None:
    lan.says("desk", DESK, host="a", name="old")
    lan.answer(DESK)
    lan.list()
    lan.says("desk", DESK, host="b", name="new", version="2", directory="there")
    one = lan.only()
    assert (one.hostname, one.name, one.directory) == ("b", "new", "there")
    assert one.labels == {"identity": "not verified", "version": "2"}


def test_a_proof_that_comes_later_counts(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    lan.says("desk", DESK, proven=True)
    assert lan.only().vouched


def test_what_an_instance_said_last_is_kept_while_it_is_silent(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK, version="1.0", directory="/one")
    lan.list()
    lan.answer(DESK, version="2.0", directory="/two")
    lan.list()
    lan.silent(DESK)
    one = lan.only()
    assert (one.directory, one.labels["version"]) == ("/two", "2.0")


def test_the_order_stays(lan: Lan) -> None:
    lan.says("b", DESK)
    lan.answer(DESK, NAS)
    lan.list()
    lan.says("a", NAS)
    lan.says("b", DESK, name="renamed")
    assert list(lan.listed()) == ["b", "a"]


# Doubts


def test_a_place_is_doubtful_when_its_service_says_so_no_more(lan: Lan) -> None:
    service = lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    assert list(lan.roster.places_of(service)) == [DESK]
    assert not lan.roster.is_doubtful(DESK)
    changes: list[dict[str, Any]] = [{"gone_at": time.monotonic()}, {"advert": None}]
    for change in changes:
        kept = {name: getattr(service, name) for name in change}
        for name, value in change.items():
            setattr(service, name, value)
        assert list(lan.roster.places_of(service)) == [DESK]
        assert lan.roster.is_doubtful(DESK)
        for name, value in kept.items():
            setattr(service, name, value)
    lan.barred.add(DESK)
    assert lan.roster.is_doubtful(DESK)
    lan.barred.clear()
    lan.says("desk", MOVED)
    assert lan.roster.is_doubtful(DESK)
    lan.says("desk", DESK, id="other")
    assert lan.roster.is_doubtful(DESK)
    del lan.services[service.key]
    assert lan.roster.is_doubtful(DESK)


def test_a_place_of_nobody_is_not_doubtful(lan: Lan) -> None:
    service = lan.says("desk", DESK)
    assert not lan.roster.is_doubtful(DESK)
    assert list(lan.roster.places_of(service)) == []
    assert set(lan.roster.places) == set()
    lan.answer(DESK)
    lan.list()
    assert set(lan.roster.places) == {DESK}


# Forgetting


def test_one_is_forgotten_until_it_answers_again(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    one = lan.only()
    lan.silent(DESK)
    assert lan.roster.forget(one) == DESK
    assert lan.list() == []
    lan.answer(DESK)
    assert lan.only() == one


def test_one_that_has_changed_meanwhile_is_not_forgotten(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    old = lan.only()
    lan.silent(DESK)
    lan.says("desk", MOVED)
    lan.answer(MOVED)
    now = lan.only()
    assert lan.roster.forget(old) is None
    assert lan.roster.forget(now.model_copy(update={"id": "stranger"})) is None
    assert lan.only() == now


# What is said of the others


def refused(lan: Lan, problems: dict[Place, str] | None = None) -> Sequence[Rejection]:
    lan.list()
    return rejections(lan.services.values(), lan.roster, lambda one: (problems or {}).get(one, ""))


def test_the_reason_is_the_services_own_problem(lan: Lan) -> None:
    service = lan.says("desk", DESK)
    service.problem = "its port 22 is none of MDNS_PORTS"
    (one,) = refused(lan, {DESK: "Not told."})
    assert one == Rejection(source="service desk", reason="Its port 22 is none of MDNS_PORTS.")


def test_or_what_was_found_at_its_places(lan: Lan) -> None:
    lan.says("desk", DESK, NAS, left_out="not told")
    (one,) = refused(lan, {DESK: "Nobody listens.", NAS: "It is a printer."})
    assert one.reason == "192.168.1.20:4096: Nobody listens. 192.168.1.30:4096: It is a printer."


def test_or_why_it_has_none(lan: Lan) -> None:
    lan.says("desk", left_out="its address 127.0.0.1 is a loopback address")
    (one,) = refused(lan)
    assert one.reason == "Its address 127.0.0.1 is a loopback address."


def test_nothing_is_said_of_those_that_are_listed_nor_of_those_not_looked_at_yet(lan: Lan) -> None:
    lan.says("desk", DESK, left_out="its address 127.0.0.1 is a loopback address")
    lan.answer(DESK)
    lan.says("new", NAS, left_out="not yet").resolved = False
    lan.says("asked", EVIL)
    assert refused(lan) == []


def test_a_hundred_reasons_are_enough(lan: Lan) -> None:
    for number in range(300):
        lan.says(f"evil{number}").problem = "its id is none"
    assert len(refused(lan)) == 100


@pytest.mark.parametrize("escape", ESCAPES)
def test_the_name_of_a_service_is_told_as_safe_text(lan: Lan, escape: str) -> None:
    lan.says(f"a{escape}b" + "x" * 5000).problem = "its id is none"
    (one,) = refused(lan)
    assert clean_line(one.source, 10_000) == one.source
    assert len(one.source) < 120


def test_nothing_is_said_of_a_bare_one_that_is_listed_under_its_id(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.says("opencode-4096", DESK, left_out="its address fe80::20 does not say on which link it is")
    lan.answer(DESK)
    assert refused(lan, {place("fe80::20%eth0"): "Nobody listens."}) == []
    lan.says("opencode-4096", DESK, NAS)
    assert refused(lan, {NAS: "Nobody listens."}) == []


def test_what_is_wrong_with_a_bare_one_elsewhere_is_told(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.says("opencode-4096", NAS)
    lan.answer(DESK)
    (one,) = refused(lan, {NAS: "Nobody listens."})
    assert one == Rejection(source="service opencode-4096", reason="192.168.1.30:4096: Nobody listens.")


def test_of_two_that_claim_a_place_the_second_is_told_who_is_there(lan: Lan) -> None:
    lan.says("desk", DESK, name="my desk")
    lan.answer(DESK)
    lan.list()
    lan.says("evil", DESK)
    (one,) = refused(lan, {DESK: "Not told."})
    assert one == Rejection(source="service evil", reason="Who answers there is listed already, as my desk.")


def test_who_does_not_prove_what_its_id_proved_is_told_so(lan: Lan) -> None:
    lan.says("desk", DESK, proven=True)
    lan.answer(DESK, EVIL)
    lan.list()
    lan.says("evil", EVIL, id="desk")
    (one,) = refused(lan)
    assert one == Rejection(
        source="service evil",
        reason="It does not prove MDNS_SECRET, which the one with its id did before.",
    )


@pytest.mark.parametrize("bare", [False, True])
def test_who_finds_no_room_is_told_so(bare: bool) -> None:
    lan = Lan(limit=1)
    lan.says("desk", DESK)
    lan.answer(DESK, EVIL)
    lan.list()
    name = "opencode-4096" if bare else "evil"
    lan.says(name, EVIL)
    (one,) = refused(lan)
    assert one == Rejection(source=f"service {name}", reason="MDNS_MAX_SERVICES leaves no room for it.")


def test_a_reason_of_the_roster_holds_no_longer_than_its_cause(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    other = lan.says("other", DESK)
    assert len(refused(lan)) == 1
    lan.says("other", NAS)
    lan.answer(NAS)
    assert refused(lan) == []
    assert lan.roster.refusal(other) == ""


def test_who_is_listed_at_another_of_its_places_is_not_refused(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK, NAS)
    lan.list()
    lan.says("nas", DESK, NAS)
    assert refused(lan) == []


def test_nothing_is_said_of_a_second_service_of_one_that_is_listed(lan: Lan) -> None:
    lan.says("desk", DESK)
    lan.answer(DESK)
    lan.list()
    lan.says("desk-2", DESK, id="desk")
    assert refused(lan) == []


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("élan vital", "Élan vital."),
        ("its id is none.", "Its id is none."),
        ("x", "X."),
        ("5 of it", "5 of it."),
    ],
)
def test_a_reason_is_a_sentence(lan: Lan, problem: str, reason: str) -> None:
    lan.says("desk").problem = problem
    assert [one.reason for one in refused(lan)] == [reason]


# The listing


def entry(endpoint_id: str, where: Place, service: str = "desk") -> Listed:
    endpoint = Endpoint(id=endpoint_id, name=endpoint_id, url=where.url)
    return Listed(service=service, place=where, advert=Advert(), answer=Recognised(), endpoint=endpoint)


def test_a_listing_finds_each_by_id_place_and_service() -> None:
    listing = Listing()
    one, other, third = entry("a", DESK), entry("b", MOVED), entry("c", NAS, "nas")
    for it in (one, other, third):
        listing.put(it)
    assert list(listing) == [one, other, third]
    assert len(listing) == 3
    assert (listing.get("a"), listing.get("z")) == (one, None)
    assert (listing.at(NAS), listing.at(EVIL)) == (third, None)
    assert list(listing.of("desk")) == [one, other]
    assert list(listing.of("evil")) == []
    assert listing.places == {DESK, MOVED, NAS}
    assert [listing.number_at(it.address) for it in (DESK, NAS, EVIL)] == [2, 1, 0]


def test_a_listing_forgets_where_one_was_and_whose() -> None:
    listing = Listing()
    listing.put(entry("a", DESK))
    listing.put(entry("b", NAS))
    moved = entry("a", EVIL, "other")
    listing.put(moved)
    assert [it.id for it in listing] == ["a", "b"]  # in its old place
    assert listing.at(DESK) is None
    assert listing.at(EVIL) == moved
    assert [it.id for it in listing.of("desk")] == ["b"]
    assert list(listing.of("other")) == [moved]
    assert listing.number_at(DESK.address) == 0
    for it in listing:  # which may change meanwhile
        listing.remove(it)
    assert len(listing) == 0
    assert listing.places == set()
    assert not listing._by_service
    assert not listing._at
