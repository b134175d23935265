"""Names that are unique and stay, and what people may call an instance."""

from collections.abc import Sequence

import pytest

from opencode_mcp.errors import ConversationError
from opencode_mcp.fleet import names as room
from opencode_mcp.fleet.names import Names, listed, resolve


def test_everybody_gets_the_name_they_want_or_that_with_a_number():
    names = Names()
    assert [names.assign(key, "web") for key in "abc"] == ["web", "web-2", "web-3"]
    assert names.assign("d", "api") == "api"


def test_a_name_that_somebody_wants_may_be_taken_by_a_number():
    names = Names()
    assert [names.assign("a", "web"), names.assign("b", "web-2")] == ["web", "web-2"]
    assert names.assign("c", "web") == "web-3"
    assert names.assign("d", "web-2") == "web-2-2"


def test_asked_again_the_answer_is_the_same():
    names = Names()
    first = [names.assign(key, "web") for key in "abc"]
    assert [names.assign(key, "web") for key in "abc"] == first
    assert [names.assign(key, "web") for key in "cab"] == [first[2], first[0], first[1]]


def test_who_stays_keeps_the_name_when_others_leave():
    names = Names()
    for key in "abc":
        names.assign(key, "web")
    names.release("a")
    names.release("b")
    assert names.assign("c", "web") == "web-3"


def test_who_comes_back_has_the_same_name_again():
    names = Names()
    for key in "abc":
        names.assign(key, "web")
    for key in "abc":
        names.release(key)
    assert [names.assign(key, "web") for key in "cba"] == ["web-3", "web-2", "web"]


def test_who_comes_back_finds_the_name_taken_and_gets_another():
    names = Names()
    names.assign("a", "web")
    names.release("a")
    assert names.assign("b", "web") == "web"
    assert names.assign("a", "web") == "web-2"
    names.release("b")
    assert names.assign("a", "web") == "web-2"


def test_who_wants_another_name_gets_it_and_frees_the_old_one():
    names = Names()
    names.assign("a", "web")
    assert names.assign("a", "shop") == "shop"
    assert names.assign("b", "web") == "web"
    names.release("a")
    assert names.assign("a", "web") == "web-2"


def test_who_was_never_there_can_leave():
    names = Names()
    names.release("a")
    assert names.assign("a", "web") == "web"


def test_whoever_is_there_keeps_the_name_however_many_come_and_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "_REMEMBERED", 3)
    names = Names()
    names.assign("first", "web")
    assert names.assign("a", "web") == "web-2"
    names.release("first")
    for number in range(10):
        names.assign(number, f"guest-{number}")
        names.release(number)
    assert names.assign("a", "web") == "web-2"


def test_only_so_many_of_those_who_left_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "_REMEMBERED", 3)
    names = Names()
    for key in ("first", "forgotten", "a", "b", "remembered"):
        names.assign(key, "web")
    for key in ("forgotten", "a", "b", "remembered", "first"):
        names.release(key)
    assert names.assign("remembered", "web") == "web-5"
    assert names.assign("forgotten", "web") == "web"


def test_thousands_have_names_of_their_own():
    names = Names()
    given = {names.assign(number, f"web-{number % 7}") for number in range(2_000)}
    assert len(given) == 2_000


FLEET = ("laptop-shop", "laptop-web", "server", "Server-Old", "Straße")


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("laptop-shop", "laptop-shop"),
        ("server", "server"),  # exactly, though it is a part of another one
        ("SERVER", "server"),  # the same in another case counts before a part
        ("Server-Old", "Server-Old"),
        ("server-old", "Server-Old"),
        ("shop", "laptop-shop"),
        ("OLD", "Server-Old"),
        ("  web ", "laptop-web"),
        ("STRASSE", "Straße"),
    ],
)
def test_an_instance_is_meant_by_its_name_in_any_case_or_a_part_of_it(query: str, name: str):
    assert resolve(query, FLEET) == name


def refused(query: str, names: Sequence[str]) -> str:
    with pytest.raises(ConversationError) as error:
        resolve(query, names)
    return str(error.value)


def test_exactly_wins_over_another_case():
    assert resolve("web", ("WEB", "web")) == "web"
    assert resolve("WEB", ("WEB", "web")) == "WEB"
    assert refused("Web", ("WEB", "web")) == "'Web' fits several instances: WEB, web. Say which one."


def test_an_ambiguous_part_is_refused_with_those_it_fits():
    wanted = "'laptop' fits several instances: laptop-shop, laptop-web. Say which one."
    assert refused("laptop", FLEET) == wanted


@pytest.mark.parametrize("query", ["tablet", "", "  "])
def test_an_unknown_name_is_refused_with_those_there_are(query: str):
    wanted = f"There is no instance {query.strip()!r}. Known: {listed(FLEET)}."
    assert refused(query, FLEET) == wanted


def test_with_no_instance_at_all_that_is_what_is_said():
    assert refused("web", ()) == "There is no instance 'web': none is connected at present."


def test_of_hundreds_of_names_a_screenful_is_listed():
    many = [f"web-{number:03}" for number in range(300)]
    for query in ("web", "shop"):
        told = refused(query, many)
        assert ", ".join(many[:20]) in told
        assert many[20] not in told
        assert "and 280 more" in told
        assert len(told) < 400


def test_a_screenful_is_listed_in_full_and_in_order():
    assert listed(["b", "c", "a"]) == "a, b, c"
    assert listed(str(number) for number in range(10, 30)) == ", ".join(map(str, range(10, 30)))


def test_what_was_asked_for_is_shown_safely_and_not_at_length():
    told = refused("\x1b[31mred\n" + "x" * 10_000, FLEET)
    assert told.startswith("There is no instance 'red xxx")
    assert "\x1b" not in told
    assert len(told) < 250
