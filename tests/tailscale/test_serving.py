"""The serve config, which is shared with others: what is read from it and what is changed in it."""

import copy
import dataclasses
import json
from typing import Any

import pytest

from opencode_mcp_tailscale import serving
from opencode_mcp_tailscale.index import MOST_BYTES, MOST_INSTANCES, PATH, Entry, read_index, write_index
from opencode_mcp_tailscale.serving import Member
from tailscale.announcing_parts import MARK, PORT, Row

NAME = "desk.tail1a2b.ts.net"


def entry(known: str = "k1", **fields: Any) -> Entry:
    usual = Entry(id=known, path=f"/i/{known}/", name=f"shop {known}", url="http://127.0.0.1:4096")
    return dataclasses.replace(usual, **fields)


def member(known: str = "k1", session: str = "", allowed: tuple[str, ...] = (), **fields: Any) -> Member:
    return Member(session=session or f"s-{known}", entry=entry(known, **fields), allowed=allowed)


def part(known: str = "k1", allowed: tuple[str, ...] = (), **fields: Any) -> Row:
    return serving.part_of(member(known, allowed=allowed, **fields), PORT)


def holding(known: str = "k1", *others: Member, name: str = NAME, index: str = "") -> Row:
    one = member(known)
    return serving.part_of_holder(one, [one, *others], port=PORT, name=name, index=index)


def config(**parts: Row) -> Row:
    return {"Foreground": {session.replace("_", "-"): one for session, one in parts.items()}}


FOREIGN: Row = {
    "TCP": {"443": {"HTTPS": True}, "2222": {"TCPForward": "127.0.0.1:22", "ProxyProtocol": 2}},
    "Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:3000", "AcceptAppCaps": ["x/y"]}}}},
    "Services": {"svc:web": {"TCP": {"80": {"HTTP": True}}, "Tun": True, "New": [1, 2.5, None]}},
    "AllowFunnel": {f"{NAME}:443": True},
    "Foreground": {
        "theirs": {"TCP": {"8080": {"HTTP": True, "Unheard": {"of": []}}}, "Web": {}, "FutureField": "x"},
        "odd": None,
    },
    "Version2": {"nested": {"deep": [{"é": "\ud800", "n": 12345678901234567890}]}},
    "Nothing": None,
}


# What is changed


def test_only_ones_own_part_is_changed() -> None:
    before = copy.deepcopy(FOREIGN)
    new = serving.changed(FOREIGN, "ours", holding())

    assert before == FOREIGN
    assert list(new) == list(FOREIGN)
    assert new["Foreground"].pop("ours") == holding()
    assert json.dumps(new) == json.dumps(FOREIGN)


def test_what_one_added_can_be_taken_away_without_a_trace() -> None:
    new = serving.changed(FOREIGN, "ours", part())

    assert json.dumps(serving.changed(new, "ours", None)) == json.dumps(FOREIGN)
    assert serving.changed(FOREIGN, "unknown", None) == FOREIGN


@pytest.mark.parametrize("sessions", [None, [], "text", 7])
def test_sessions_that_are_none_are_replaced(sessions: object) -> None:
    given = {"TCP": {}, "Foreground": sessions}

    assert serving.changed(given, "ours", part()) == {"TCP": {}, "Foreground": {"ours": part()}}
    assert serving.changed({}, "ours", part()) == config(ours=part())


def test_nothing_is_shared_between_the_new_config_and_the_old_one() -> None:
    new = serving.changed(FOREIGN, "ours", part())
    new["Services"]["svc:web"]["TCP"]["80"]["HTTP"] = False
    new["Foreground"]["theirs"].clear()

    assert FOREIGN["Services"]["svc:web"]["TCP"]["80"] == {"HTTP": True}
    assert FOREIGN["Foreground"]["theirs"]


# Who is announced


def test_all_that_is_announced_is_found_again() -> None:
    others = [
        member("k2", allowed=("ann@example.com", "tag:x"), version="1.18.33", guarded=True),
        member("k3", guarded=False, url="http://[::1]:5000"),
    ]
    found = config(s_k1=holding("k1", *others), s_k2=serving.part_of(others[0], PORT))
    found["Foreground"]["s-k3"] = serving.part_of(others[1], PORT)

    assert serving.members(found, PORT) == [member("k1"), *others]
    assert serving.members(found, PORT + 1) == []


@pytest.mark.parametrize("found", [{}, {"Foreground": None}, {"Foreground": []}, FOREIGN])
def test_where_nobody_announces_nobody_is_found(found: Row) -> None:
    assert serving.members(found, PORT) == []
    assert serving.holder(found, PORT) == ""
    assert not serving.serves(found, PORT, "", entry())


def told(**changes: Any) -> Row:
    """The part of an announcer whose words are changed; None takes one away."""
    one = part()
    handlers = one["Web"][MARK]["Handlers"]
    words = {**json.loads(handlers["/"]["Text"]), **changes}
    handlers["/"]["Text"] = json.dumps({key: value for key, value in words.items() if value is not None})
    return one


def at(path: str, value: object) -> Row:
    """The part of an announcer in which something else stands at a path."""
    one = part()
    where: Any = one
    *keys, last = path.split("|")
    for key in keys:
        where = where[key]
    where[last] = value
    return one


@pytest.mark.parametrize(
    "malformed",
    [
        None,
        [],
        "text",
        {"Web": None},
        {"Web": [MARK]},
        {"Web": {MARK: None}},
        {"Web": {MARK: {"Handlers": None}}},
        {"Web": {MARK: {"Handlers": []}}},
        at(f"Web|{MARK}|Handlers|/", None),
        at(f"Web|{MARK}|Handlers|/", {"Proxy": "http://127.0.0.1:1"}),
        at(f"Web|{MARK}|Handlers|/", {"Text": 7}),
        at(f"Web|{MARK}|Handlers|/", {"Text": "no JSON"}),
        at(f"Web|{MARK}|Handlers|/", {"Text": "[" * 100_000}),
        at(f"Web|{MARK}|Handlers|/", {"Text": "[]"}),
        at(f"Web|{MARK}|Handlers|/i/k1/", None),
        at(f"Web|{MARK}|Handlers|/i/k1/", {"Text": "hi"}),
        at(f"Web|{MARK}|Handlers|/i/k1/", {"Proxy": ["http://127.0.0.1:4096"]}),
        told(id=None),
        told(id=7),
        told(id=""),
        told(id="a/b"),
        told(id="x" * 65),
        told(path=None),
        told(path="/"),
        told(path="/i/../"),
        told(path="/elsewhere/"),
        told(id="k9"),  # the handler of another one
    ],
)
def test_a_malformed_part_is_ignored_and_the_others_are_not(malformed: object) -> None:
    found = {"Foreground": {"a": malformed, "s-k2": part("k2"), "z": malformed}}

    assert serving.members(found, PORT) == [member("k2")]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "4096",
        "127.0.0.1:4096",
        "https://127.0.0.1:4096",
        "https+insecure://127.0.0.1:4096",
        "unix:/run/x",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:4096/",
        "http://127.0.0.1:4096/path",
        "http://127.0.0.1:4096?q",
        "http://127.0.0.1:4096#f",
        "http://u:p@127.0.0.1:4096",
        "http://localhost:4096",
        "http://evil.example:80",
        "http://[::1:4096",
        "http://[::1]x:4096",
    ],
)
def test_who_is_elsewhere_than_at_an_address_and_port_is_ignored(url: str) -> None:
    assert serving.members(config(a=part(url=url)), PORT) == []


@pytest.mark.parametrize(
    "allowed",
    [
        [],
        ["ann@example.com", 7],
        [None],
        [["ann@example.com"]],
        [""],
        "ann@example.com",
        {"ann@example.com": True},
        True,
        0,
        "",
    ],
)
def test_if_it_is_not_understood_who_may_know_nobody_is_told(allowed: object) -> None:
    assert serving.members(config(a=told(allow=allowed)), PORT) == []


def test_that_nobody_may_know_is_not_taken_for_everybody() -> None:
    one = part()
    handlers = one["Web"][MARK]["Handlers"]
    handlers["/"]["Text"] = json.dumps({**json.loads(handlers["/"]["Text"]), "allow": None})

    assert serving.members(config(a=one), PORT) == []


def test_of_two_with_one_id_only_one_counts() -> None:
    found = config(b=part("k1", name="second"), a=part("k1", name="first"))

    assert [one.entry.name for one in serving.members(found, PORT)] == ["first"]


def test_of_two_with_one_id_that_counts_which_is_served_already() -> None:
    first, second = part("k1", url="http://127.0.0.1:1"), part("k1", url="http://127.0.0.1:2")
    found = config(a=second, b=first, c=holding("k2", member("k1", url="http://127.0.0.1:1")))

    assert [one.session for one in serving.members(found, PORT)] == ["b", "c"]


def test_what_others_say_of_themselves_is_made_safe() -> None:
    [one] = serving.members(config(a=told(name="a\x1b[31m\nb" + "x" * 500, version="1\u202e" * 99)), PORT)

    assert one.entry.name.isprintable()
    assert len(one.entry.name) <= 200
    assert one.entry.version.isprintable()
    assert len(one.entry.version) <= 40


# Who serves the index


def test_the_holder_is_who_serves_the_index_at_the_port() -> None:
    found = config(a=part("k1"), b=holding("k2"))

    assert serving.holder(found, PORT) == "b"
    assert serving.holder(found, PORT + 1) == ""
    assert serving.holder(config(a=part("k1")), PORT) == ""


def test_a_stranger_who_serves_the_same_path_is_not_the_holder() -> None:
    theirs = holding("k2")
    del theirs["Web"][MARK]

    assert serving.holder(config(theirs=theirs), PORT) == ""
    assert "is used by another serve config" in serving.obstacle(config(theirs=theirs), PORT)


def test_an_instance_is_served_if_its_path_leads_to_it() -> None:
    found = config(a=holding("k1", member("k2", url="http://127.0.0.1:5000")))

    assert serving.serves(found, PORT, "a", entry("k1"))
    assert serving.serves(found, PORT, "a", entry("k2", url="http://127.0.0.1:5000"))
    assert not serving.serves(found, PORT, "a", entry("k2"))
    assert not serving.serves(found, PORT, "a", entry("k3"))
    assert not serving.serves(found, PORT, "b", entry("k1"))
    assert not serving.serves(found, PORT + 1, "a", entry("k1"))


def test_an_instance_that_the_index_does_not_name_is_not_served() -> None:
    one = holding("k1", member("k2"))
    handlers = one["Web"][f"{NAME}:{PORT}"]["Handlers"]
    handlers[PATH] = {"Text": write_index([entry("k1")])}

    assert serving.serves(config(a=one), PORT, "a", entry("k1"))
    assert not serving.serves(config(a=one), PORT, "a", entry("k2"))
    handlers[PATH] = {"Proxy": "http://127.0.0.1:9/x"}  # it depends on who asks
    assert serving.serves(config(a=one), PORT, "a", entry("k2"))


@pytest.mark.parametrize("index", ["", "http://127.0.0.1:9/x"])
@pytest.mark.parametrize(
    ("served", "present", "current"),
    [
        (["k2"], ["k2"], True),
        ([], [], True),
        (["k2"], [], False),
        ([], ["k2"], False),
        (["k2"], ["k3"], False),
    ],
)
def test_a_holder_is_current_if_it_serves_who_is_announced_and_nobody_else(
    index: str, served: list[str], present: list[str], current: bool
) -> None:
    found = config(h=holding("k1", *map(member, served), index=index))
    found["Foreground"].update({f"s-{known}": part(known) for known in present})

    assert serving.is_current(found, PORT, "h") is current
    assert serving.asked_at(found, PORT, "h") == index


def test_a_holder_that_serves_an_instance_at_its_former_place_is_not_current() -> None:
    found = config(h=holding("k1", member("k2")), a=part("k2", url="http://127.0.0.1:5000"))

    assert not serving.is_current(found, PORT, "h")


def test_who_leaves_is_out_of_the_index_and_all_else_stays() -> None:
    left, stays = member("k2", session="a"), member("k3", session="b")
    found = {**FOREIGN, **config(a=part("k2"), b=part("k3"), h=holding("k1", left, stays))}

    assert serving.without(found, left, PORT) == {**FOREIGN, **config(b=part("k3"), h=holding("k1", stays))}


def test_who_leaves_an_index_for_some_takes_nothing_but_its_own_path_out() -> None:
    index = "http://127.0.0.1:9/x"
    left = member("k2", session="a", allowed=("ann@example.com",))
    found = config(a=part("k2"), h=holding("k1", left, index=index))

    assert serving.without(found, left, PORT) == config(h=holding("k1", index=index))


def test_who_leaves_takes_nothing_from_another_one_with_its_id() -> None:
    found = config(a=part("k2"), b=part("k2"), h=holding("k1", member("k2")))

    assert serving.without(found, member("k2", session="a"), PORT) == config(
        b=part("k2"), h=holding("k1", member("k2"))
    )


def test_the_holder_serves_all_by_the_machines_name_and_itself_by_none() -> None:
    one = holding("k1", member("k2", url="http://127.0.0.1:5000"))

    assert one["TCP"] == {"14096": {"HTTP": True}}
    handlers = one["Web"][f"{NAME}:14096"]["Handlers"]
    assert handlers["/i/k1/"] == {"Proxy": "http://127.0.0.1:4096"}
    assert handlers["/i/k2/"] == {"Proxy": "http://127.0.0.1:5000"}
    assert [one.id for one in read_index(handlers[PATH]["Text"].encode())] == ["k1", "k2"]
    assert set(handlers) == {"/i/k1/", "/i/k2/", PATH}
    assert one["Web"][MARK] == part("k1")["Web"][MARK]
    assert not {"AllowFunnel", "Services"} & set(one)


def test_an_index_that_is_not_for_everybody_is_nowhere_in_the_config_of_the_holder() -> None:
    one = holding("k1", member("k2", allowed=("ann@example.com",)), index="http://127.0.0.1:9")

    assert one["Web"][f"{NAME}:{PORT}"]["Handlers"][PATH] == {"Proxy": "http://127.0.0.1:9"}


def test_who_does_not_hold_it_opens_no_port() -> None:
    assert set(part()) == {"Web"}
    assert set(part()["Web"]) == {MARK}


def test_the_index_of_a_hundred_with_long_names_is_one_that_others_read() -> None:
    everybody = [member(f"k{number}", name="🦊" * 200, version="v" * 1024) for number in range(100)]
    one = serving.part_of_holder(everybody[0], everybody, port=PORT, name=NAME, index="")
    text = one["Web"][f"{NAME}:{PORT}"]["Handlers"][PATH]["Text"]

    named = [one.id for one in read_index(text.encode())]
    assert len(text.encode()) <= MOST_BYTES
    assert named[0] == "k0"
    assert 1 < len(named) < MOST_INSTANCES
    assert {f"/i/{known}/" for known in named} | {PATH} == set(one["Web"][f"{NAME}:{PORT}"]["Handlers"])


def test_if_there_is_no_room_for_all_those_who_are_in_the_index_stay() -> None:
    everybody = [member(f"k{number}", session=f"s{number + 10}") for number in range(MOST_INSTANCES)]
    found: Row = {"Foreground": {one.session: serving.part_of(one, PORT) for one in everybody[1:]}}
    found["Foreground"]["s10"] = serving.part_of_holder(
        everybody[0], everybody, port=PORT, name=NAME, index=""
    )
    assert all(serving.has_room(found, PORT, one.entry) for one in everybody[::21])

    found["Foreground"]["a"] = part("late")

    assert all(serving.has_room(found, PORT, one.entry) for one in everybody[::21])
    assert not serving.has_room(found, PORT, entry("late"))
    assert serving.is_current(found, PORT, "s10")


def test_of_a_hundred_as_many_stand_in_the_index_as_others_read() -> None:
    everybody = [member(f"k{number}") for number in range(100)]
    one = serving.part_of_holder(everybody[0], everybody, port=PORT, name=NAME, index="")
    found = read_index(one["Web"][f"{NAME}:{PORT}"]["Handlers"][PATH]["Text"].encode())

    assert [one.id for one in found] == [f"k{number}" for number in range(MOST_INSTANCES)]


# What is in the way


@pytest.mark.parametrize(
    "found",
    [
        {},
        FOREIGN,
        config(a=holding()),
        config(a=holding(), b=part("k2")),
        {"AllowFunnel": {f"{NAME}:{PORT}": False, f"{NAME}:1{PORT}": True, f"{NAME}:4096": True}},
        {"TCP": {"4096": {"TCPForward": "127.0.0.1:4096"}}, "AllowFunnel": None},
        {"Services": {"svc:web": {"TCP": {str(PORT): {"HTTP": True}}}}},  # at another address
    ],
)
def test_what_does_not_use_the_port_is_not_in_the_way(found: Row) -> None:
    assert serving.obstacle(found, PORT) == ""


@pytest.mark.parametrize(
    "taken",
    [
        {"TCP": {str(PORT): {"TCPForward": "127.0.0.1:22"}}},
        {"TCP": {str(PORT): {"HTTP": True}}, "Web": {f"{NAME}:{PORT}": {"Handlers": {"/": {"Text": "x"}}}}},
        {"TCP": {str(PORT): {"HTTPS": True}}},
        {"TCP": {str(PORT): None}},
    ],
)
@pytest.mark.parametrize("foreground", [False, True])
def test_somebody_else_at_the_port_is_in_the_way(taken: Row, foreground: bool) -> None:
    problem = serving.obstacle({"Foreground": {"theirs": taken}} if foreground else taken, PORT)

    assert f"port {PORT} is used by another serve config" in problem
    assert "TAILSCALE_INDEX_PORT" in problem


def test_what_is_served_in_the_background_is_in_the_way_whatever_it_is() -> None:
    assert "is used by another serve config" in serving.obstacle(holding(), PORT)


@pytest.mark.parametrize("where", ["background", "session", "own session"])
def test_funnel_at_the_port_is_in_the_way(where: str) -> None:
    open_to_all = {"AllowFunnel": {f"{NAME}:443": False, f"other.ts.net:{PORT}": True}}
    found = {
        "background": {**open_to_all, **config(a=holding())},
        "session": {"Foreground": {"a": holding(), "b": open_to_all}},
        "own session": {"Foreground": {"a": {**holding(), **open_to_all}}},
    }[where]

    assert f"port {PORT} is open to the internet through Funnel" in serving.obstacle(found, PORT)


@pytest.mark.parametrize("value", [None, [], "x", 3, {"a": {"AllowFunnel": [], "TCP": "x", "Web": 3}}])
def test_a_config_that_is_not_understood_stops_nobody(value: object) -> None:
    for key in ("Foreground", "AllowFunnel", "TCP", "Web"):
        found: Row = {key: value}
        assert serving.obstacle(found, PORT) == ""
        assert serving.members(found, PORT) == []
        assert serving.holder(found, PORT) == ""
