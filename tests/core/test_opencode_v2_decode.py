"""Reading the JSON of OpenCode 2.x: as 2.1.2 and the preview of 2.0 send it, and as nobody should."""

import copy
import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest

from opencode_mcp import Activity, Session
from opencode_mcp.opencode import v2_decode as decode
from opencode_mcp.opencode import v2_events
from opencode_mcp.opencode.api import (
    MOST_TEXT,
    ActivityChanged,
    Alive,
    Delta,
    Event,
    Logged,
    Message,
    MessageUpdated,
    PartUpdated,
    Request,
    RequestClosed,
    RequestOpened,
    SessionChanged,
    SessionDeleted,
    SessionFailed,
    SessionUpdated,
    ToolUse,
)
from opencode_mcp.opencode.v2_events import Events
from opencode_mcp.text import has_unsafe

AT = 1795355202400
"""The moment of every event."""

SESSION = {
    "id": "ses_1",
    "title": "Fix the till",
    "projectID": "global",
    "location": {"directory": "/srv/shop"},
    "time": {"created": 1735787040000, "updated": 1735787045678},
    "cost": 0,
    "tokens": {"input": 1, "output": 1, "reasoning": 0, "cache": {"read": 0, "write": 0}},
}
USER = {"id": "msg_1", "type": "user", "text": "Is all well?", "time": {"created": 1735787045678}}
SHELL = {
    "type": "tool",
    "id": "call_1",
    "name": "shell",
    "state": {
        "status": "completed",
        "input": {"command": "echo hi", "description": "Say hi"},
        "content": [{"type": "text", "text": "hi\n"}],
    },
}
ASSISTANT = {
    "id": "msg_2",
    "type": "assistant",
    "agent": "build",
    "model": {"id": "m", "providerID": "p"},
    "finish": "stop",
    "content": [
        {"type": "reasoning", "text": "Hm."},
        SHELL,
        {"type": "text", "text": "All is well."},
        {"type": "text", "text": "Really."},
    ],
    "time": {"created": 1735787046000, "completed": 1735787047000},
}
IDLE = {"id": "msg_3", "type": "idle", "outcome": "succeeded", "time": {"created": 1735787047001}}
FAILED = {
    **ASSISTANT,
    "id": "msg_5",
    "content": [],
    "finish": "error",
    "error": {"type": "provider.invalid-request", "message": "no credit", "status": 400},
    "time": {"created": 1735787049000},
}
LISTED = [FAILED, {**USER, "id": "msg_4"}, IDLE, ASSISTANT, USER]
"""Messages, newest first."""
PERMISSION: dict[str, Any] = {
    "id": "per_1",
    "sessionID": "ses_1",
    "action": "shell",
    "resources": ["rm -rf build"],
    "save": ["rm *"],
    "source": {"type": "tool", "messageID": "msg_2", "id": "call_1"},
}
FORM: dict[str, Any] = {
    "id": "frm_1",
    "sessionID": "ses_1",
    "title": "Questions",
    "metadata": {"kind": "question", "tool": {"messageID": "msg_2", "id": "call_1"}},
    "fields": [
        {
            "key": "q0",
            "title": "Colour",
            "description": "Which colour?",
            "type": "string",
            "options": [{"value": "Red", "label": "Red", "description": "Choose Red"}],
            "custom": True,
        }
    ],
}


NUMBERS = itertools.count(1)


def event(kind: str, *, seq: Any = None, **data: Any) -> dict[str, Any]:
    sent: dict[str, Any] = {"id": f"evt_{next(NUMBERS)}", "created": AT, "type": kind}
    if seq is not None:
        sent["durable"] = {"aggregateID": "ses_1", "seq": seq, "version": 1}
    return {**sent, "location": {"directory": "/srv/shop"}, "data": data}


def of(kind: str, *, seq: Any = None, **data: Any) -> dict[str, Any]:
    return event(f"session.{kind}", seq=seq, sessionID="ses_1", **data)


def step(kind: str, **data: Any) -> dict[str, Any]:
    return of(kind, assistantMessageID="msg_2", **data)


BUSY = ActivityChanged("ses_1", Activity.BUSY)
REST = ActivityChanged("ses_1", Activity.IDLE)
TOUCHED = SessionChanged("ses_1", updated=AT)


def shell(status: str, title: str = "echo hi") -> PartUpdated:
    used = ToolUse(tool="shell", status=status, title=title)
    return PartUpdated("ses_1", "msg_2", "tool:call_1", "tool", tool=used)


def writes(**more: Any) -> MessageUpdated:
    return MessageUpdated("ses_1", Message(id="msg_2", role="assistant", created=AT, **more))


EVENTS: list[tuple[dict[str, Any], list[Event]]] = [
    ({"type": "server.connected", "data": {}}, [Alive()]),
    (event("what.later.versions.add", sessionID="ses_1"), [Alive()]),
    (of("later.versions.add"), [Alive()]),
    (of("usage.updated", cost=0), [Alive()]),
    (of("later.versions.store", seq=9), [Alive(), Logged("ses_1", 9)]),
    (
        of("created", seq=0, title="Fix the till", location={"directory": "/srv/shop"}, projectID="global"),
        [
            SessionUpdated(Session(id="ses_1", title="Fix the till", directory="/srv/shop", updated=AT)),
            Logged("ses_1", 0),
        ],
    ),
    (
        of("created", parentID="ses_0", location={"directory": "/srv/shop"}),
        [SessionUpdated(Session(id="ses_1", directory="/srv/shop", parent_id="ses_0", updated=AT))],
    ),
    (of("renamed", title="Mend it"), [SessionChanged("ses_1", title="Mend it")]),
    (of("moved", location={"directory": "/srv/new"}), [SessionChanged("ses_1", directory="/srv/new")]),
    (of("archived"), [SessionDeleted("ses_1")]),
    (of("unarchived"), [TOUCHED]),
    (of("deleted", seq=7), [SessionDeleted("ses_1"), Logged("ses_1", 7)]),
    (of("execution.started", seq=1), [BUSY, TOUCHED, Logged("ses_1", 1)]),
    (of("execution.succeeded"), [REST, TOUCHED]),
    (
        of("execution.failed", error={"type": "provider.no-route", "message": "no such model"}),
        [SessionFailed("ses_1", "provider.no-route: no such model"), REST, TOUCHED],
    ),
    (
        of("execution.interrupted", reason="user"),
        [SessionFailed("ses_1", "interrupted (user)"), REST, TOUCHED],
    ),
    (
        of("execution.interrupted"),
        [SessionFailed("ses_1", "interrupted (for no given reason)"), REST, TOUCHED],
    ),
    (
        of("inbox.delivered", inboxID="msg_1"),
        [MessageUpdated("ses_1", Message(id="msg_1", role="user", completed=True))],
    ),
    (
        of("input.promoted", inputID="msg_1"),
        [MessageUpdated("ses_1", Message(id="msg_1", role="user", completed=True))],
    ),
    (of("inbox.enqueued", inboxID="msg_1", item={"payload": {"text": "go"}}), [Alive()]),
    (of("input.admitted", inputID="msg_1"), [Alive()]),
    (step("step.started", agent="build"), [writes()]),
    (step("step.ended", finish="stop", cost=0), [writes(completed=True, finish="stop")]),
    (step("step.ended", finish="tool-calls"), [writes(completed=True, finish="tool-calls")]),
    (
        step("step.failed", error={"type": "aborted", "message": "Step interrupted"}),
        [writes(completed=True, error="aborted: Step interrupted")],
    ),
    (step("step.streamed"), [Alive()]),
    (step("text.started", ordinal=1), [Alive()]),
    (step("text.delta", ordinal=1, delta="wor"), [Delta("ses_1", "msg_2", "msg_2:1", "wor", "text")]),
    (step("text.ended", ordinal=1, text="word"), [PartUpdated("ses_1", "msg_2", "msg_2:1", "text", "word")]),
    (step("reasoning.delta", ordinal=0, delta="Hm."), [Alive()]),
    (step("reasoning.ended", ordinal=0, text="Hm."), [Alive()]),
    (step("tool.input.started", id="call_1", name="shell"), [shell("running", "")]),
    (step("tool.input.started", callID="call_1", name="shell"), [shell("running", "")]),
    (step("tool.input.delta", id="call_1", delta="{"), [Alive()]),
    (step("tool.progress", id="call_1"), [Alive()]),
    (
        event("permission.asked", **PERMISSION),
        [RequestOpened(decode.requests({"data": [PERMISSION]}, None)[0])],
    ),
    (
        event("permission.v2.asked", **PERMISSION),
        [
            RequestOpened(
                Request(id="per_1", session_id="ses_1", kind="permission", summary="shell: rm -rf build")
            )
        ],
    ),
    (
        event("permission.replied", sessionID="ses_1", requestID="per_1", reply="once"),
        [RequestClosed("per_1")],
    ),
    (event("permission.v2.replied", sessionID="ses_1", requestID="per_1"), [RequestClosed("per_1")]),
    (
        event("form.created", form=FORM),
        [RequestOpened(Request(id="frm_1", session_id="ses_1", kind="question", summary="Which colour?"))],
    ),
    (event("form.replied", id="frm_1", sessionID="ses_1", answer={"q0": "Red"}), [RequestClosed("frm_1")]),
    (event("form.cancelled", id="frm_1", sessionID="ses_1"), [RequestClosed("frm_1")]),
    (event("permission.later.versions.add", sessionID="ses_1"), [Alive()]),
]


def read(*sent: Any) -> list[Event]:
    """What one reader makes of these, one after the other."""
    events = Events()
    return [one for envelope in sent for one in events.read(envelope)]


@pytest.mark.parametrize(
    ("sent", "events"), EVENTS, ids=[f"{sent['type']}-{n}" for n, (sent, _) in enumerate(EVENTS)]
)
def test_an_event_is_read(sent: dict[str, Any], events: list[Event]):
    assert read(sent) == events


def test_every_sort_of_event_is_among_the_samples():
    assert {type(one) for _, events in EVENTS for one in events} == set(get_args(Event))


@pytest.mark.parametrize("key", ["id", "callID"])
def test_the_name_of_a_tool_and_what_it_works_on_are_said_once_and_known_to_its_end(key: str):
    call = {key: "call_1"}
    assert read(
        step("tool.input.started", **call, name="shell"),
        step("tool.called", **call, input={"command": "echo hi"}),
        step("tool.success", **call, content=[]),
    ) == [shell("running", ""), shell("running"), shell("completed")]
    assert read(
        step("tool.input.started", **call, name="shell"),
        step("tool.called", **call, input={"command": "echo hi"}),
        step("tool.failed", **call, error={"type": "unknown", "message": "no"}),
    )[-1] == shell("error")


def test_a_tool_whose_beginning_was_not_heard_is_called_a_tool():
    (used,) = read(step("tool.success", id="call_9", content=[]))
    assert isinstance(used, PartUpdated)
    assert used.tool == ToolUse(tool="tool", status="completed")


def test_a_step_answers_the_prompt_that_was_delivered_last_in_its_session():
    found = read(
        of("inbox.delivered", inboxID="msg_1"),
        event("session.inbox.delivered", sessionID="ses_2", inboxID="msg_9"),
        step("step.started"),
        of("inbox.delivered", inboxID="msg_4"),
        step("step.ended", finish="stop"),
    )
    steps = [one.message for one in found if isinstance(one, MessageUpdated) and one.message.role != "user"]
    assert [one.parent_id for one in steps] == ["msg_1", "msg_4"]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        True,
        7,
        "text",
        [],
        {},
        [{}],
        {"data": {}},
        {"type": None},
        {"type": 7},
        {"type": []},
        {"type": ""},
    ],
)
def test_what_is_no_event_is_none(odd: object):
    assert read(odd) == []


KINDS = sorted({sent["type"] for sent, _ in EVENTS})


@pytest.mark.parametrize(
    "data", [None, 7, "text", [], {}, {"sessionID": None}, {"sessionID": "../x"}], ids=repr
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_event_that_lacks_what_counts_is_a_sign_of_life(kind: str, data: object):
    assert read({"type": kind, "created": AT, "data": data}) == [Alive()]
    assert read({"type": kind}) == [Alive()]


@pytest.mark.parametrize(
    "sent",
    [
        of("renamed"),
        of("renamed", title=7),
        of("moved"),
        of("moved", location={"directory": None}),
        of("text.delta", delta="x"),
        of("text.ended", text="x"),
        of("step.started"),
        step("text.delta", delta="x")
        | {"data": {"sessionID": "ses_1", "assistantMessageID": "../x", "delta": "x"}},
        of("inbox.delivered"),
        of("inbox.delivered", inboxID="../x"),
        event("permission.replied", sessionID="ses_1"),
        event("permission.replied", sessionID="ses_1", requestID="../x"),
        event("form.cancelled", sessionID="ses_1", id=7),
        event("form.created", form=None),
        event("form.created", form={**FORM, "sessionID": "../x"}),
        event("permission.asked", **{**PERMISSION, "id": "a/b"}),
    ],
    ids=lambda sent: sent["type"],
)
def test_a_change_that_does_not_say_what_is_a_sign_of_life(sent: dict[str, Any]):
    assert read(sent) == [Alive()]


@pytest.mark.parametrize(
    "durable",
    [None, 7, [], {}, {"aggregateID": "ses_1"}, {"seq": 1}]
    + [{"aggregateID": "ses_1", "seq": odd} for odd in (None, "1", True, [], 1.5)]
    + [{"aggregateID": odd, "seq": 1} for odd in (None, 7, "", "../x")],
    ids=repr,
)
def test_where_a_log_stands_is_only_known_if_it_is_said_plainly(durable: object):
    assert read({**of("execution.started"), "durable": durable}) == [BUSY, TOUCHED]


def test_a_moment_that_is_missing_changes_nothing():
    for odd in (None, "now", -1, 1e308):
        assert read({**of("execution.started"), "created": odd}) == [BUSY]


def test_what_is_remembered_of_a_server_that_never_ends_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(v2_events, "_KEPT", 20)
    monkeypatch.setattr(v2_events, "_REMEMBERED", 100)
    events = Events()
    huge = "x" * 100_000
    for number in range(100):
        call = {"sessionID": f"ses_{number}", "assistantMessageID": "msg_2", "id": f"{number}{huge}"}
        events.read(event("session.tool.input.started", **call, name=huge))
        events.read(event("session.tool.called", **call, input={"command": huge}))
        events.read(event("session.inbox.delivered", sessionID=f"ses_{number}", inboxID=f"msg_{number}"))
    kept = vars(events)
    assert {name: len(value) for name, value in kept.items()} == {
        "_tools": 20,
        "_asked": 20,
        "_heard": 100,
    }
    characters = sum(len(key) + len(one.tool) + len(one.title) for key, one in kept["_tools"].items())
    assert characters < 20 * 500


def test_an_event_that_comes_again_after_hundreds_of_others_is_heard_once():
    events, again = Events(), of("execution.started")
    assert list(events.read(again)) == [BUSY, TOUCHED]
    for _ in range(999):
        events.read(of("usage.updated"))
    assert list(events.read(again)) == [Alive()]
    events.read(of("usage.updated"))
    assert list(events.read(again)) == [BUSY, TOUCHED], "what is remembered is bounded"


def test_sessions_come_newest_first_without_archived_ones():
    newer = {**SESSION, "id": "ses_2", "time": {"updated": 1735787050000}}
    archived = {**SESSION, "id": "ses_3", "time": {"updated": 1, "archived": 2}}
    nameless = {"id": "ses_4", "parentID": "ses_1"}
    body = {"data": [SESSION, archived, newer, nameless, None, 7], "cursor": {"next": "x"}}
    assert decode.sessions(body) == [
        Session(id="ses_2", title="Fix the till", directory="/srv/shop", updated=1735787050000),
        Session(id="ses_1", title="Fix the till", directory="/srv/shop", updated=1735787045678),
        Session(id="ses_4", parent_id="ses_1"),
    ]


def test_busy_is_who_is_active():
    body = {"data": {"ses_1": {"type": "running"}, "ses_2": {}, "../etc": {"type": "running"}, "": {}}}
    assert decode.active(body) == {"ses_1", "ses_2"}


def listed(*newest_first: Any, asked: str = "") -> list[Message]:
    return decode.messages(decode.entries({"data": list(newest_first)}), asked)


def test_messages_come_oldest_first_with_text_tools_and_whom_they_answer():
    asked, answered, again, failed = listed(*LISTED)
    assert asked == Message(
        id="msg_1", role="user", created=1735787045678, completed=True, text="Is all well?"
    )
    assert answered == Message(
        inferred=True,
        id="msg_2",
        role="assistant",
        parent_id="msg_1",
        created=1735787046000,
        completed=True,
        finish="stop",
        text="All is well.\nReally.",
        tools=(ToolUse(tool="shell", status="completed", title="echo hi"),),
    )
    assert (again.id, failed.parent_id, failed.completed) == ("msg_4", "msg_4", True)
    assert failed.error == "provider.invalid-request: no credit"


def test_whom_the_oldest_message_answers_may_be_told():
    answered, _ = listed({**USER, "id": "msg_4"}, ASSISTANT, asked="msg_0")
    assert answered.parent_id == "msg_0"


@pytest.mark.parametrize(
    "kind",
    [
        "synthetic",
        "system",
        "skill",
        "shell",
        "compaction",
        "agent-switched",
        "model-switched",
        "location-switched",
        "idle",
        "what later versions add",
        None,
        7,
    ],
)
def test_what_stands_between_messages_is_none(kind: object):
    assert listed({"id": "msg_9", "type": kind, "text": "x", "time": {"created": 1}}) == []


def test_a_message_that_is_being_written_is_not_complete():
    (found,) = listed({"id": "msg_2", "type": "assistant", "content": [], "time": {"created": 1}})
    assert (found.completed, found.finish, found.error, found.text) == (False, "", "", "")


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({"command": "ls", "description": "List"}, "ls"),
        ({"filePath": "/a"}, "/a"),
        ({"path": "/a", "pattern": "*.py"}, "/a"),
        ({"description": "Look around", "prompt": "x"}, "Look around"),
        ({"url": "http://x"}, "http://x"),
        ({"command": 7, "url": "http://x"}, "http://x"),
        ({}, ""),
        ('{"comm', ""),
        (None, ""),
    ],
)
def test_a_tool_call_says_what_it_works_on(given: object, title: str):
    called = {**SHELL, "state": {"status": "running", "input": given}}
    (found,) = listed({**ASSISTANT, "content": [called]})
    assert found.tools == (ToolUse(tool="shell", status="running", title=title),)


@pytest.mark.parametrize(
    ("changes", "summary"),
    [
        ({}, "shell: rm -rf build"),
        ({"metadata": {"command": "make"}}, "shell: make"),
        ({"resources": []}, "shell:"),
        ({"resources": "rm"}, "shell:"),
        ({"resources": [None, "x"]}, "shell:"),
        ({"action": None}, ": rm -rf build"),
    ],
)
def test_a_permission_says_what_for(changes: dict[str, Any], summary: str):
    (found,) = decode.requests({"data": [{**PERMISSION, **changes}]}, None)
    assert found == Request(id="per_1", session_id="ses_1", kind="permission", summary=summary)


@pytest.mark.parametrize(
    ("changes", "summary"),
    [
        ({}, "Which colour?"),
        ({"fields": [{"type": "what nobody knows", "title": "Colour"}]}, "Colour"),
        ({"fields": [{"type": {"deep": 1}}]}, "Questions"),
        ({"fields": []}, "Questions"),
        ({"fields": None, "title": None}, ""),
        ({"fields": [7, {"description": "Second"}]}, "Second"),
    ],
)
def test_a_form_says_what_is_asked_whatever_its_fields_are(changes: dict[str, Any], summary: str):
    (found,) = decode.requests(None, {"data": [{**FORM, **changes}]})
    assert found == Request(id="frm_1", session_id="ses_1", kind="question", summary=summary)


UNSAFE_IDS = [
    "",
    "..",
    "../ses_1",
    "ses/1",
    "ses_1?x",
    "ses_1#x",
    "ses 1",
    "ses_1\n",
    "ses%2F1",
    "sés",
    "x" * 129,
]


@pytest.mark.parametrize("bad", [*UNSAFE_IDS, None, 7, True, [], {}, ["ses_1"]], ids=repr)
def test_an_id_that_does_not_belong_into_a_path_is_dropped(bad: Any):
    assert decode.sessions({"data": [{**SESSION, "id": bad}, SESSION]}) == decode.sessions(
        {"data": [SESSION]}
    )
    assert listed({**ASSISTANT, "id": bad}) == []
    assert decode.user_ids({"data": [{**USER, "id": bad}, USER]}) == ["msg_1"]
    assert decode.requests({"data": [{**PERMISSION, "id": bad}]}, {"data": [{**FORM, "id": bad}]}) == []
    assert (
        decode.requests({"data": [{**PERMISSION, "sessionID": bad}]}, {"data": [{**FORM, "sessionID": bad}]})
        == []
    )
    (found,) = decode.sessions({"data": [{**SESSION, "parentID": bad}]})
    assert found.parent_id is None
    for sent, events in EVENTS:
        if "sessionID" in sent["data"] and any(
            type(one) not in (Alive, RequestClosed, Logged) for one in events
        ):
            known = [Logged("ses_1", sent["durable"]["seq"])] if "durable" in sent else []
            assert read({**sent, "data": {**sent["data"], "sessionID": bad}}) == [Alive(), *known]


@pytest.mark.parametrize("body", [None, 7, "x", [], {}, {"data": None}, {"data": 7}, {"data": "x"}], ids=repr)
def test_an_answer_of_another_shape_holds_nothing(body: object):
    assert decode.sessions(body) == decode.entries(body) == decode.requests(body, body) == []
    assert decode.active(body) == set()
    assert list(decode.user_ids(body)) == []


def test_a_text_of_five_megabytes_is_cut():
    endless = "x" * 5_000_000
    (message,) = listed({**ASSISTANT, "content": [{"type": "text", "text": endless}]})
    (ended,) = read(step("text.ended", ordinal=0, text=endless))
    (asked,) = listed({**USER, "text": endless})
    assert isinstance(ended, PartUpdated)
    for one in (message.text, ended.text, asked.text):
        assert (len(one), one[-1]) == (MOST_TEXT, "…")
    for found in read(
        of("renamed", title=endless),
        of("moved", location={"directory": endless}),
        of("execution.failed", error={"type": endless, "message": endless}),
        of("execution.interrupted", reason=endless),
        step("step.ended", finish=endless),
        step("tool.input.started", id=endless, name=endless),
        event("permission.asked", **{**PERMISSION, "action": endless, "resources": [endless]}),
        event("form.created", form={**FORM, "fields": [{"description": endless}]}),
    ):
        assert all(len(one) <= 4096 for _, one in strings(found)), found


def test_of_a_list_without_end_only_the_beginning_is_read():
    assert len(decode.sessions({"data": [SESSION] * 20_000})) == 5_000


BAD_TEXT = (
    "\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07 \u202eright\u2066 \x00\x9b\u200b\ud800 end"
)


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """All strings in `value`, each with the name of its field."""
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        for one in held if isinstance(held, tuple) else (held,):
            if dataclasses.is_dataclass(one):
                yield from strings(one)
            elif isinstance(one, str):
                yield field.name, one


def assert_safe(value: Any) -> None:
    for name, one in strings(value):
        line = one.replace("\n", "").replace("\t", "") if name == "text" else one
        assert not has_unsafe(line), (name, one)


def spoilt(value: Any) -> Any:
    """Put bad text wherever there is text that people see."""
    if isinstance(value, dict):
        kept = ("type", "sessionID", "assistantMessageID", "parentID", "requestID", "inboxID", "inputID")
        return {
            key: one if key in kept or (key == "id" and not str(one).startswith("call")) else spoilt(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [spoilt(one) for one in value]
    return BAD_TEXT if isinstance(value, str) else value


@pytest.mark.parametrize("sent", [sent for sent, _ in EVENTS], ids=lambda sent: sent["type"])
def test_whatever_an_event_says_is_safe(sent: dict[str, Any]):
    found = read(spoilt(sent))
    assert found
    for one in found:
        assert_safe(one)


def test_whatever_is_listed_is_safe_and_readable():
    for one in (*listed(*spoilt(LISTED)), *decode.sessions({"data": spoilt([SESSION])})):
        assert_safe(one)
    for one in decode.requests({"data": spoilt([PERMISSION])}, {"data": spoilt([FORM])}):
        assert_safe(one)
        assert "red link right" in one.summary
    assert listed(*spoilt(LISTED))[1].text == "red link right  end\nred link right  end"


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**70,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "user",
    "\x1b[2J\ud800",
    "x" * 3_000,
    [],
    [None],
    [[[]]],
    {},
    {"type": "text"},
    {"": {"": None}},
]
"""What a field is replaced by; all of it can come out of `json.loads`."""


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every object or list in `value`, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        found += [(value, key), *places(one)]
    return found


def every_single_change(value: Any) -> Iterator[Any]:
    """Replace each place in `value` by each oddity, and leave each out, one at a time."""
    whole = [value]
    for holder, key in places(whole):
        before = holder[key]
        for odd in ODD:
            holder[key] = odd
            yield whole[0]
        holder[key] = before
        if isinstance(holder, dict):
            rest = dict(holder)
            del holder[key]
            yield whole[0]
            holder.clear()
            holder.update(rest)


def mutated(value: Any, chance: random.Random) -> Any:
    """Replace or remove some of what is in a copy of `value`, anywhere."""
    whole = [copy.deepcopy(value)]
    for _ in range(chance.randint(1, 4)):
        holder, key = chance.choice(places(whole))
        if isinstance(holder, dict) and chance.random() < 0.2:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(chance.choice(ODD))
    return whole[0]


def assert_all_safe(found: Sequence[object]) -> None:
    for one in found:
        assert_safe(one)


@pytest.mark.slow
def test_no_single_oddity_in_an_event_raises_or_lets_anything_unsafe_through():
    events = Events()
    for sent, _ in EVENTS:
        for changed in every_single_change(copy.deepcopy(sent)):
            assert_all_safe(events.read(changed))


@pytest.mark.slow
def test_no_single_oddity_in_an_answer_raises_or_lets_anything_unsafe_through():
    for changed in every_single_change({"data": copy.deepcopy(LISTED)}):
        assert_all_safe(decode.messages(decode.entries(changed)))
        decode.user_ids(changed)
    for changed in every_single_change({"data": [copy.deepcopy(SESSION)]}):
        assert_all_safe(decode.sessions(changed))
    for changed in every_single_change({"data": [copy.deepcopy(PERMISSION)]}):
        assert_all_safe(decode.requests(changed, None))
    for changed in every_single_change({"data": [copy.deepcopy(FORM)]}):
        assert_all_safe(decode.requests(None, changed))
    for changed in every_single_change({"data": {"ses_1": {"type": "running"}}}):
        assert decode.active(changed) <= {"ses_1", "type"}


@pytest.mark.slow
def test_no_mixture_of_oddities_in_an_event_raises_or_lets_anything_unsafe_through():
    chance, events = random.Random(20260102), Events()
    for turn in range(2_000):
        assert_all_safe(events.read(mutated(EVENTS[turn % len(EVENTS)][0], chance)))


def test_what_replaces_a_field_can_come_over_the_network():
    for odd in ODD:
        assert repr(json.loads(json.dumps(odd))) == repr(odd)
