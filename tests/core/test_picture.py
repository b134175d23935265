"""What is known of one server, from a snapshot and the events after it."""

from typing import Any

import pytest

from opencode_mcp import Activity, Session
from opencode_mcp.fleet import picture as room
from opencode_mcp.fleet.picture import Picture
from opencode_mcp.opencode.api import (
    ActivityChanged,
    Alive,
    Delta,
    Event,
    PartUpdated,
    Request,
    RequestClosed,
    RequestOpened,
    SessionChanged,
    SessionDeleted,
    SessionFailed,
    SessionUpdated,
    Snapshot,
    ToolUse,
)

HOME = "/srv/shop"


def session(name: str, updated: int = 0, *, parent: str | None = None, directory: str = HOME) -> Session:
    return Session(id=name, title=f"The {name}", directory=directory, parent_id=parent, updated=updated)


def request(name: str, session_id: str) -> Request:
    return Request(id=name, session_id=session_id, kind="permission", summary=f"bash: {name}")


def snapshot(*sessions: Session, busy: tuple[str, ...] = (), requests: tuple[Request, ...] = ()) -> Snapshot:
    return Snapshot(directory=HOME, sessions=sessions, busy=frozenset(busy), requests=requests)


def picture(*sessions: Session, **fields: Any) -> Picture:
    one = Picture()
    one.start(snapshot(*sessions, **fields))
    return one


def updated(name: str, *arguments: Any, **fields: Any) -> SessionUpdated:
    return SessionUpdated(session(name, *arguments, **fields))


def busy(name: str) -> ActivityChanged:
    return ActivityChanged(name, Activity.BUSY)


def idle(name: str) -> ActivityChanged:
    return ActivityChanged(name, Activity.IDLE)


def uses(name: str, tool: str) -> PartUpdated:
    return PartUpdated(name, "msg", "part", "tool", tool=ToolUse(tool=tool, status="running"))


def title(one: Picture) -> str:
    return one.session.title if one.session else ""


def test_at_first_nothing_is_known():
    one = Picture()
    assert (one.directory, one.session, one.activity) == ("", None, Activity.IDLE)
    assert (one.waiting_for(), one.directories) == ("", set())


def test_a_snapshot_says_it_all():
    one = picture(
        session("newer", 2), session("older", 1), busy=("older",), requests=(request("rm", "older"),)
    )
    assert one.directory == HOME
    assert one.activity is Activity.BUSY
    assert title(one) == "The older"  # the one at work
    assert one.waiting_for() == "permission: bash: rm"


def test_at_rest_the_session_used_last_counts():
    one = picture(session("newer", 2), session("older", 1))
    assert title(one) == "The newer"
    one.apply(updated("older", 3))
    assert title(one) == "The older"
    one.apply(updated("third", 4))
    assert title(one) == "The third"


def test_of_several_at_work_the_one_used_last_counts():
    one = picture(session("c", 3), session("b", 2), session("a", 1), busy=("a", "b"))
    assert title(one) == "The b"


def test_of_two_used_at_the_same_time_the_one_first_in_the_list_counts():
    one = picture(session("newer", 1), session("older", 1))
    assert title(one) == "The newer"
    one.apply(updated("older", 1))
    assert title(one) == "The older"  # the latest word


def test_a_sub_agents_session_never_counts():
    one = picture(session("root", 1))
    one.apply(updated("child", 9, parent="root"))
    one.apply(busy("child"))
    assert title(one) == "The root"


def test_a_session_is_busy_while_a_sub_agent_of_it_is():
    one = picture(session("root", 1), session("other", 2))
    one.apply(updated("child", parent="root"))
    one.apply(updated("grandchild", parent="child"))
    one.apply(busy("grandchild"))
    assert one.activity is Activity.BUSY
    assert [one.is_busy(name) for name in ("root", "child", "grandchild", "other")] == [
        True,
        False,  # only whole trees are asked about
        True,
        False,
    ]
    assert title(one) == "The root"
    one.apply(idle("grandchild"))
    assert not one.is_busy("root")
    assert title(one) == "The other"


def test_the_root_of_a_tree_is_found_and_a_ring_is_survived():
    one = picture(session("root"))
    one.apply(updated("child", parent="root"))
    one.apply(updated("grandchild", parent="child"))
    assert [one.root(name) for name in ("root", "child", "grandchild", "stranger")] == [
        "root",
        "root",
        "root",
        "stranger",
    ]
    one.apply(updated("a", parent="b"))
    one.apply(updated("b", parent="a"))
    assert one.root("a") in ("a", "b")


def test_a_child_of_an_unknown_session_belongs_to_that():
    one = picture()
    one.apply(updated("child", parent="unseen"))
    one.apply(busy("child"))
    assert one.is_busy("unseen")


@pytest.mark.parametrize(
    "event",
    [
        Alive(),
        Delta("root", "msg", "part", "text"),
        SessionFailed("root", "error"),
        uses("root", "bash"),
        PartUpdated("root", "msg", "part", "text", "hello"),
        busy("root"),
        idle("other"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_shows_nothing_new_is_no_reason_to_look(event: Event):
    assert picture(session("root"), session("other"), busy=("root",)).apply(event) is False


@pytest.mark.parametrize(
    "event",
    [
        busy("other"),
        idle("root"),
        updated("new"),
        SessionDeleted("root"),
        RequestOpened(request("rm", "root")),
        RequestClosed("rm"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_may_show_something_new_is_said_to(event: Event):
    assert picture(session("root"), session("other"), busy=("root",)).apply(event) is True


def test_a_deleted_session_is_gone_with_its_work_and_its_requests():
    one = picture(session("b", 2), session("a", 1), busy=("b",), requests=(request("rm", "b"),))
    one.apply(SessionDeleted("b"))
    assert title(one) == "The a"
    assert one.title("b") == ""
    assert one.activity is Activity.IDLE
    one.apply(busy("b"))
    assert one.waiting_for() == ""


def test_a_request_is_shown_until_it_is_answered():
    one = picture(session("root"), busy=("root",))
    one.apply(RequestOpened(request("rm", "root")))
    one.apply(RequestOpened(request("dd", "root")))
    assert one.waiting_for() == "permission: bash: rm"
    one.apply(RequestClosed("rm"))
    assert one.waiting_for() == "permission: bash: dd"
    one.apply(RequestClosed("dd"))
    one.apply(RequestClosed("never"))
    assert one.waiting_for() == ""


def test_a_sub_agents_request_is_its_roots():
    one = picture(session("root"), session("other"), busy=("root", "other"))
    one.apply(updated("child", parent="root"))
    one.apply(busy("child"))
    one.apply(RequestOpened(request("rm", "child")))
    assert one.waiting_for() == "permission: bash: rm"
    assert one.waiting_for("root") == "permission: bash: rm"
    assert one.waiting_for("other") == ""


def test_a_request_ends_with_the_turn_of_its_session():
    one = picture(session("root"), busy=("root",), requests=(request("rm", "root"),))
    one.apply(idle("root"))
    assert one.waiting_for() == ""
    one.apply(busy("root"))
    assert one.waiting_for() == ""


def test_a_request_stays_when_another_session_comes_to_rest():
    one = picture(
        session("root"), session("other"), busy=("root", "other"), requests=(request("rm", "root"),)
    )
    one.apply(idle("other"))
    assert one.waiting_for() == "permission: bash: rm"


def test_a_request_that_idle_overtook_does_not_come_back_with_the_next_turn():
    one = picture(session("root"))
    one.apply(RequestOpened(request("rm", "root")))
    assert one.waiting_for() == ""
    one.apply(idle("root"))
    one.apply(busy("root"))
    assert one.waiting_for() == ""


def test_a_request_that_a_snapshot_lists_for_an_idle_session_does_not_come_back_with_the_next_turn():
    one = picture(session("root"), requests=(request("rm", "root"),))
    assert one.waiting_for() == ""
    one.apply(busy("root"))
    assert one.waiting_for() == ""


def test_a_request_may_come_a_moment_before_its_session_is_known_to_be_busy():
    one = picture(session("root"))
    one.apply(RequestOpened(request("rm", "root")))
    one.apply(busy("root"))
    assert one.waiting_for() == "permission: bash: rm"


def test_the_tool_used_last_is_known_while_the_session_is_at_work():
    one = picture(session("root"), session("other"), busy=("root",))
    one.apply(uses("root", "bash"))
    one.apply(uses("root", "read"))
    assert one.doing("root") == "read"
    assert one.doing("other") == ""
    one.apply(idle("root"))
    one.apply(busy("root"))
    assert one.doing("root") == ""


def test_a_sub_agents_tool_is_its_roots():
    one = picture(session("root"), busy=("root",))
    one.apply(updated("child", parent="root"))
    one.apply(busy("child"))
    one.apply(uses("child", "grep"))
    assert one.doing("root") == "grep"


def test_a_tool_of_a_session_at_rest_is_not_what_it_does():
    one = picture(session("root"))
    one.apply(uses("root", "bash"))  # a late word on a turn that is over
    assert one.doing("root") == ""


def test_a_tool_of_a_turn_that_ended_unseen_is_not_what_the_next_one_does():
    one = picture(session("root"), busy=("root",))
    one.apply(uses("root", "bash"))
    one.start(snapshot(session("root")))
    one.apply(busy("root"))
    assert one.doing("root") == ""


def test_a_new_snapshot_replaces_what_it_covers():
    one = picture(session("b", 2), session("a", 1), busy=("a",), requests=(request("rm", "a"),))
    one.start(snapshot(session("a", 1)))
    assert title(one) == "The a"
    assert one.title("b") == ""
    assert (one.activity, one.waiting_for()) == (Activity.IDLE, "")


def test_a_new_snapshot_leaves_what_it_does_not_cover():
    one = picture(session("root"))
    one.apply(updated("child", parent="root"))
    one.apply(updated("elsewhere", directory="/srv/other"))
    one.apply(updated("nowhere", directory=""))
    one.start(snapshot(session("root"), busy=("child",)))
    assert one.is_busy("root")
    assert one.title("elsewhere") == "The elsewhere"
    assert one.title("nowhere") == ""
    assert one.directories == {"/srv/other"}


def test_projects_besides_the_servers_own_are_known_a_bounded_number():
    one = picture(session("root"))
    for number in range(20):
        one.apply(updated(f"s{number}", directory=f"/srv/{number:02}"))
    one.apply(updated("nowhere", directory=""))
    assert one.directories == {f"/srv/{number:02}" for number in range(8)}


def test_of_very_many_sessions_those_used_last_stay():
    listed = [session(f"listed-{number}", 1_000 - number) for number in range(150)]
    one = picture(*listed)
    for number in range(100):
        one.apply(updated(f"new-{number}", 2_000 + number))
    assert one.title("listed-0")
    assert one.title("new-0")
    assert not one.title("listed-149")
    one.apply(updated("listed-99", 3_000))
    for number in range(100, 250):
        one.apply(updated(f"new-{number}", 4_000 + number))
    assert one.title("listed-99")
    assert not one.title("listed-0")


@pytest.mark.parametrize("source", ["snapshot", "events"])
def test_a_server_that_talks_without_end_fills_no_memory(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "_KEPT", 50)
    many = range(500)
    names = [f"s{number}" for number in many]
    one = Picture()
    if source == "snapshot":
        one.start(
            snapshot(
                *(session(name) for name in names),
                busy=tuple(names),
                requests=tuple(request(f"r{number}-{name}", name) for name in names for number in range(9)),
            )
        )
    else:
        for number, name in zip(many, names, strict=True):
            one.apply(updated(name))
            one.apply(busy(name))
            one.apply(RequestOpened(request(f"r{number}", name)))
            one.apply(uses(name, "bash"))
    held = {name: len(value) for name, value in vars(one).items() if name.startswith("_")}
    assert set(held) == {"_sessions", "_busy", "_requests", "_doing", "_unknown"}
    assert held["_sessions"] == 200
    assert max(held["_busy"], held["_requests"], held["_doing"], held["_unknown"]) <= 50
    assert one.activity is Activity.BUSY


def everywhere(*sessions: Session, busy: tuple[str, ...] = ()) -> Snapshot:
    """Of a server without a project of its own, as 2.x is."""
    return Snapshot(directory="", sessions=sessions, busy=frozenset(busy), requests=())


def test_of_a_server_without_a_project_a_snapshot_covers_all_projects():
    one = Picture()
    one.start(everywhere(session("a", 1, directory="/srv/a"), session("b", 2, directory="/srv/b")))
    assert one.directory == ""
    assert title(one) == "The b"
    one.apply(updated("child", parent="a"))
    one.start(everywhere(session("a", 1, directory="/srv/a"), busy=("child",)))
    assert one.title("b") == ""
    assert title(one) == "The a"
    assert one.directories == {"/srv/a", HOME}


def test_what_changes_of_a_session_is_taken_over_and_the_rest_stays():
    one = picture(session("a", 5), session("b", 4))
    assert one.apply(SessionChanged("b", updated=9))
    assert title(one) == "The b"
    assert one.apply(SessionChanged("b", title="Another"))
    assert one.apply(SessionChanged("b", directory="/srv/new"))
    assert one.session == Session(id="b", title="Another", directory="/srv/new", updated=9)
    one.apply(SessionChanged("b", updated=3))  # late
    assert one.session is not None
    assert one.session.updated == 9
    assert not one.apply(SessionChanged("never", title="x"))
    assert one.title("never") == ""


def test_a_session_at_work_of_which_nothing_is_known_is_puzzling_once_each_time():
    one = picture(session("a"))
    one.apply(busy("a"))
    assert not one.puzzled
    one.apply(busy("unseen"))
    assert one.puzzled
    one.start(snapshot(session("a"), busy=("a", "unseen")))
    assert not one.puzzled
    one.apply(busy("unseen"))
    assert not one.puzzled, "a snapshot knows no more of it"
    one.apply(idle("unseen"))
    one.apply(busy("unseen"))
    assert one.puzzled, "it may be among the newest now"


def test_a_session_that_was_archived_and_comes_back_to_work_is_puzzling():
    one = picture(session("a"))
    one.apply(SessionDeleted("a"))
    one.apply(busy("a"))
    assert one.puzzled
