"""Which machines count, which of them may have the password, and what is said of the others."""

import ipaddress
from typing import Any

import pytest

from opencode_mcp_tailscale.choosing import Choice, choose
from opencode_mcp_tailscale.status import Machine, Status
from tailscale.tailscale_parts import machine, settings

ANN, BOB, EVE = "ann@example.com", "bob@example.com", "eve@other.org"


def own(**fields: Any) -> Machine:
    return machine("nself", "100.64.0.1", **{"name": "desk.tail1a2b.ts.net", **fields})


def chosen(*peers: Machine, me: Machine | None = None, malformed: int = 0, **given: Any) -> Choice:
    status = Status(state="Running", own=me or own(), peers=peers, malformed=malformed)
    return choose(status, settings(**given))


def candidates(choice: Choice) -> dict[str, bool]:
    """Who counts besides this machine, and whether the user vouches for it."""
    return {known: one.vouched for known, one in choice.candidates.items() if not one.own}


def reasons(choice: Choice) -> list[tuple[str, str]]:
    return [(one.source, one.reason) for one in choice.left_out]


MINE = machine("nmine")
BOBS = machine("nbobs", user="Bob@Example.COM", user_id=12)
TAGGED = machine("ntagged", user="", user_id=99, tags=("tag:ci", "tag:opencode"))
SHARED = machine("nshared", name="box.other.ts.net", user=EVE, user_id=13, shared=True)
SHARED_TAGGED = machine("nsharedtagged", user="", user_id=99, tags=("tag:opencode",), shared=True)
ALL = (MINE, BOBS, TAGGED, SHARED, SHARED_TAGGED)


@pytest.mark.parametrize(
    ("here", "there", "first"),
    [
        (("100.64.0.1", "fd7a::1"), ("100.64.0.7", "fd7a::7"), "100.64.0.7"),
        (("100.64.0.1",), ("100.64.0.7", "fd7a::7"), "100.64.0.7"),
        (("fd7a::1",), ("100.64.0.7", "fd7a::7"), "fd7a::7"),  # where the tailnet's rules say disable-ipv4
        (("100.64.0.1", "fd7a::1"), ("fd7a::7",), "fd7a::7"),
        (("100.64.0.1",), ("fd7a::7",), "fd7a::7"),
        ((), ("100.64.0.7", "fd7a::7"), "100.64.0.7"),
    ],
)
def test_the_first_address_is_one_that_this_machine_can_reach(
    here: tuple[str, ...], there: tuple[str, ...], first: str
) -> None:
    me = own(addresses=tuple(map(ipaddress.ip_address, here)))
    box = chosen(machine("nbox", *there), me=me).candidates["nbox"].machine
    assert str(box.addresses[0]) == first
    assert sorted(map(str, box.addresses)) == sorted(there)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"nmine": True}),
        ({"users": (BOB,)}, {"nbobs": True}),
        ({"users": ("BOB@example.com", ANN)}, {"nmine": True, "nbobs": True}),
        ({"tags": ("tag:opencode",)}, {"nmine": True, "ntagged": True}),
        ({"tags": ("tag:open",)}, {"nmine": True}),
        ({"users": (BOB,), "tags": ("tag:ci",)}, {"nbobs": True, "ntagged": True}),
        ({"allow_shared": True}, {"nmine": True, "nshared": False, "nsharedtagged": False}),
        ({"users": (EVE,)}, {}),  # shared, so it takes both
        ({"allow_shared": True, "users": (EVE,)}, {"nshared": True}),
        ({"allow_shared": True, "users": (ANN,)}, {"nmine": True}),
        (
            {"allow_shared": True, "tags": ("tag:opencode",)},
            {"nmine": True, "ntagged": True, "nshared": False, "nsharedtagged": False},
        ),
    ],
)
def test_who_counts_and_who_is_vouched_for(given: dict[str, Any], expected: dict[str, bool]) -> None:
    assert candidates(chosen(*ALL, **given)) == expected


def test_this_machine_always_counts() -> None:
    [only] = chosen(users=(BOB,), peers=("nothing",)).candidates.values()
    assert (only.own, only.vouched, only.machine.id) == (True, True, "nself")


def test_without_this_machine_nobody_counts() -> None:
    assert choose(Status(state="Running", peers=[MINE]), settings()).candidates == {}


def test_a_tagged_machine_owns_nothing_so_that_users_must_be_named() -> None:
    me = own(user="", user_id=99, tags=("tag:opencode",))
    choice = chosen(MINE, TAGGED, me=me)
    assert candidates(choice) == {}
    owned, tagged = (reason for _, reason in reasons(choice))
    said = "Left out: it belongs to ann@example.com, and this machine, which is tagged, to nobody: "
    assert owned == f"{said}see TAILSCALE_USERS."
    assert tagged == "Left out: it is tagged tag:ci, tag:opencode: see TAILSCALE_TAGS."
    same = machine("nsame", user="", user_id=99)
    assert candidates(chosen(same, me=me)) == {}
    assert candidates(chosen(MINE, TAGGED, me=me, users=(ANN,))) == {"nmine": True}
    assert candidates(chosen(MINE, TAGGED, me=me, tags=("tag:ci",))) == {"ntagged": True}


def test_machines_whose_owner_nobody_tells_are_not_those_of_the_same_nobody() -> None:
    nobodys = machine("nnobodys", user="", user_id=0)
    assert candidates(chosen(nobodys, me=own(user="", user_id=0))) == {}


@pytest.mark.parametrize("fields", [{"mullvad": True}, {"sharee": True}])
def test_those_that_cannot_have_an_instance_are_left_out_without_a_word(fields: dict[str, Any]) -> None:
    choice = chosen(machine("nx", **fields), allow_shared=True)
    assert (candidates(choice), reasons(choice)) == ({}, [])


def test_those_that_are_offline_count_since_they_may_come_back() -> None:
    assert candidates(chosen(machine("naway", online=False))) == {"naway": True}


@pytest.mark.parametrize(
    ("fields", "given", "said"),
    [
        ({"expired": True}, {}, "its key has expired: it has to log in again"),
        ({"addresses": ()}, {}, "it has no address on the tailnet"),
        ({"user": BOB, "user_id": 12}, {}, f"it belongs to {BOB}: see TAILSCALE_USERS"),
        ({"user": "", "user_id": 12}, {}, "it belongs to user 12: see TAILSCALE_USERS"),
        ({"tags": ("tag:ci",)}, {"tags": ("tag:x",)}, "it is tagged tag:ci: see TAILSCALE_TAGS"),
        ({"shared": True}, {}, "it is shared with you by others: see TAILSCALE_ALLOW_SHARED"),
        (
            {"shared": True, "user": EVE},
            {"users": (EVE,)},
            "it is shared with you by others: see TAILSCALE_ALLOW_SHARED",
        ),
        (
            {"shared": True, "user": EVE},
            {"users": (BOB,), "allow_shared": True},
            f"it belongs to {EVE}, whom TAILSCALE_USERS does not name",
        ),
    ],
)
def test_who_is_left_out_is_told_with_what_to_do(
    fields: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    choice = chosen(machine("nx", **fields), **given)
    assert candidates(choice) == {}
    assert reasons(choice) == [("1 machine of the tailnet", f"Left out: {said}.")]


def test_machines_left_out_for_one_reason_are_counted() -> None:
    choice = chosen(*(machine(f"n{number}", expired=True) for number in range(3)), malformed=2)
    assert reasons(choice) == [
        ("3 machines of the tailnet", "Left out: its key has expired: it has to log in again."),
        ("tailscaled", "It tells of 2 machines in words not understood."),
    ]


@pytest.mark.parametrize(
    "word",
    ["box", "BOX", "box.tail1a2b.ts.net", "Box.tail1a2b.ts.net.", "100.64.0.7", "fd7a::7", "nMine", "nmine"],
)
def test_machines_are_named_by_name_address_or_id(word: str) -> None:
    mine = machine("nMine", "100.64.0.7", "fd7a::7")
    other = machine("nother", "100.64.0.8", name="boxes.tail1a2b.ts.net")
    choice = chosen(mine, other, peers=(word,))
    assert (candidates(choice), reasons(choice)) == ({"nMine": True}, [])


def test_naming_a_machine_does_not_make_it_count() -> None:
    choice = chosen(BOBS, peers=("box",))
    assert candidates(choice) == {}
    assert reasons(choice)[0][1] == "Left out: it belongs to Bob@Example.COM: see TAILSCALE_USERS."


def test_a_name_that_no_machine_has_is_told() -> None:
    choice = chosen(MINE, peers=("box", "bx", "desk"))
    assert reasons(choice) == [("TAILSCALE_PEERS=bx", "No machine of the tailnet is called so.")]
