"""Reading the JSON of OpenCode 1.x: as 1.18.33 sends it, and as nobody should."""

import copy
import dataclasses
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from opencode_mcp import Activity, Session
from opencode_mcp.opencode import v1_decode as decode
from opencode_mcp.opencode.api import (
    AUTOMATIC,
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
from opencode_mcp.opencode.fields import identifier, items, mapping, milliseconds, number, text
from opencode_mcp.text import has_unsafe

SESSION = {
    "id": "ses_1",
    "title": "Fix the till",
    "directory": "/srv/shop",
    "projectID": "global",
    "version": "1.18.33",
    "time": {"created": 1735787040000, "updated": 1735787045678},
}
USER = {
    "id": "msg_1",
    "sessionID": "ses_1",
    "role": "user",
    "time": {"created": 1735787045678},
    "agent": "build",
}
ASSISTANT = {
    "id": "msg_2",
    "sessionID": "ses_1",
    "role": "assistant",
    "parentID": "msg_1",
    "time": {"created": 1735787046000, "completed": 1735787047000},
    "finish": "stop",
    "modelID": "m",
    "providerID": "p",
    "cost": 0,
    "tokens": {"input": 1, "output": 1, "reasoning": 0, "cache": {"read": 0, "write": 0}},
}
FAILED = {
    **ASSISTANT,
    "finish": None,
    "error": {"name": "APIError", "data": {"message": "no credit", "isRetryable": False}},
}
TEXT = {"id": "prt_1", "sessionID": "ses_1", "messageID": "msg_2", "type": "text", "text": "All is well."}
TOOL = {
    "id": "prt_2",
    "sessionID": "ses_1",
    "messageID": "msg_2",
    "type": "tool",
    "tool": "bash",
    "callID": "call_1",
    "state": {
        "status": "completed",
        "input": {"command": "echo hi", "description": "Say hi"},
        "output": "hi\n",
        "title": "Say hi",
        "time": {"start": 1, "end": 2},
    },
}
PERMISSION = {
    "id": "per_1",
    "sessionID": "ses_1",
    "permission": "bash",
    "patterns": ["rm -rf build"],
    "metadata": {"command": "rm -rf build"},
    "always": ["rm *"],
    "tool": {"messageID": "msg_2", "callID": "call_1"},
}
QUESTION = {
    "id": "que_1",
    "sessionID": "ses_1",
    "questions": [{"question": "Which colour?", "header": "Colour", "options": [{"label": "Red"}]}],
    "tool": {"messageID": "msg_2", "callID": "call_1"},
}
STORED = [
    {"info": USER, "parts": [{**TEXT, "messageID": "msg_1", "text": "Is all well?"}]},
    {"info": ASSISTANT, "parts": [{"type": "step-start"}, TOOL, TEXT, {"type": "step-finish"}]},
    {"info": FAILED, "parts": []},
]


def envelope(kind: str, **properties: Any) -> dict[str, Any]:
    return {"directory": "/srv/shop", "payload": {"id": "evt_1", "type": kind, "properties": properties}}


EVENTS: list[tuple[dict[str, Any], Event]] = [
    (envelope("server.connected"), Alive()),
    (envelope("server.heartbeat"), Alive()),
    (envelope("sync", name="session.updated.1", data={"info": SESSION}), Alive()),
    (envelope("what.later.versions.add", sessionID="ses_1"), Alive()),
    (
        envelope("session.created", sessionID="ses_2", info={**SESSION, "id": "ses_2", "parentID": "ses_1"}),
        SessionUpdated(
            Session(
                id="ses_2",
                title="Fix the till",
                directory="/srv/shop",
                parent_id="ses_1",
                updated=1735787045678,
            )
        ),
    ),
    (
        envelope("session.updated", info=SESSION),
        SessionUpdated(
            Session(id="ses_1", title="Fix the till", directory="/srv/shop", updated=1735787045678)
        ),
    ),
    (
        envelope("session.updated", info={**SESSION, "time": {"archived": 1735787045678}}),
        SessionDeleted("ses_1"),
    ),
    (envelope("session.deleted", info=SESSION), SessionDeleted("ses_1")),
    (
        envelope("session.status", sessionID="ses_1", status={"type": "busy"}),
        ActivityChanged("ses_1", Activity.BUSY),
    ),
    (
        envelope("session.status", sessionID="ses_1", status={"type": "retry", "attempt": 2}),
        ActivityChanged("ses_1", Activity.BUSY),
    ),
    (
        envelope("session.status", sessionID="ses_1", status={"type": "idle"}),
        ActivityChanged("ses_1", Activity.IDLE),
    ),
    (envelope("session.idle", sessionID="ses_1"), ActivityChanged("ses_1", Activity.IDLE)),
    (
        envelope("session.error", sessionID="ses_1", error=FAILED["error"]),
        SessionFailed("ses_1", "APIError: no credit"),
    ),
    (
        envelope("message.updated", info=USER),
        MessageUpdated("ses_1", Message(id="msg_1", role="user", created=1735787045678)),
    ),
    (
        envelope("message.updated", info=ASSISTANT),
        MessageUpdated(
            "ses_1",
            Message(
                id="msg_2",
                role="assistant",
                parent_id="msg_1",
                created=1735787046000,
                completed=True,
                finish="stop",
            ),
        ),
    ),
    (
        envelope("message.part.updated", part=TEXT),
        PartUpdated("ses_1", "msg_2", "prt_1", "text", "All is well."),
    ),
    (
        envelope("message.part.updated", part=TOOL),
        PartUpdated(
            "ses_1", "msg_2", "prt_2", "tool", "", ToolUse(tool="bash", status="completed", title="Say hi")
        ),
    ),
    (
        envelope(
            "message.part.delta",
            sessionID="ses_1",
            messageID="msg_2",
            partID="prt_1",
            field="text",
            delta="All \n",
        ),
        Delta("ses_1", "msg_2", "prt_1", "All \n"),
    ),
    (
        envelope("permission.asked", **PERMISSION),
        RequestOpened(
            Request(id="per_1", session_id="ses_1", kind="permission", summary="bash: rm -rf build")
        ),
    ),
    (
        envelope("question.asked", **QUESTION),
        RequestOpened(Request(id="que_1", session_id="ses_1", kind="question", summary="Which colour?")),
    ),
    (
        envelope("permission.replied", sessionID="ses_1", requestID="per_1", reply="once"),
        RequestClosed("per_1"),
    ),
    (envelope("question.replied", sessionID="ses_1", requestID="que_1"), RequestClosed("que_1")),
    (envelope("question.rejected", sessionID="ses_1", requestID="que_1"), RequestClosed("que_1")),
]


@pytest.mark.parametrize(
    ("sent", "event"), EVENTS, ids=[f"{sent['payload']['type']}-{n}" for n, (sent, _) in enumerate(EVENTS)]
)
def test_an_event_is_read(sent: dict[str, Any], event: Event):
    assert decode.event(sent) == event


def test_every_sort_of_event_is_among_the_samples():
    only_in_2 = {SessionChanged, Logged}
    assert {type(event) for _, event in EVENTS} == set(get_args(Event)) - only_in_2


@pytest.mark.parametrize("odd", [None, True, 7, "text", [], {}, [{}], {"payload": None}, {"payload": []}])
def test_what_is_no_event_is_none(odd: object):
    assert decode.event(odd) is None


@pytest.mark.parametrize("kind", [None, 7, [], {}])
def test_an_event_without_a_type_is_none(kind: object):
    assert decode.event({"payload": {"type": kind, "properties": {}}}) is None


@pytest.mark.parametrize("properties", [None, 7, "text", [], {}])
@pytest.mark.parametrize("kind", ["session.status", "session.idle", "message.updated", "permission.asked"])
def test_an_event_that_lacks_what_counts_is_a_sign_of_life(kind: str, properties: object):
    assert decode.event({"payload": {"type": kind, "properties": properties}}) == Alive()


@pytest.mark.parametrize(
    "properties",
    [
        {"status": {"type": "busy"}},
        {"sessionID": "../../etc", "status": {"type": "busy"}},
        {"sessionID": "ses_1"},
        {"sessionID": "ses_1", "status": "busy"},
        {"sessionID": "ses_1", "status": {"type": None}},
    ],
)
def test_no_session_becomes_busy_by_a_status_that_says_nothing(properties: dict[str, Any]):
    assert decode.event(envelope("session.status", **properties)) == Alive()


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
def test_an_id_that_does_not_belong_into_a_path_is_dropped(bad: object):
    assert identifier({"id": bad}, "id") == ""
    assert decode.session({**SESSION, "id": bad}) is None
    assert decode.sessions([{**SESSION, "id": bad}, SESSION]) == decode.sessions([SESSION])
    assert decode.messages([{"info": {**ASSISTANT, "id": bad}, "parts": []}]) == []
    assert decode.permissions([{**PERMISSION, "id": bad}, {**PERMISSION, "sessionID": bad}]) == []
    assert decode.questions([{**QUESTION, "id": bad}, {**QUESTION, "sessionID": bad}]) == []
    found = decode.session({**SESSION, "parentID": bad})
    assert found is not None
    assert found.parent_id is None


@pytest.mark.parametrize("bad", UNSAFE_IDS, ids=repr)
def test_nobody_is_busy_under_an_id_that_does_not_belong_into_a_path(bad: str):
    assert decode.busy({bad: {"type": "busy"}, "ses_1": {"type": "busy"}}) == {"ses_1"}


@pytest.mark.parametrize("good", ["ses_1", "A-Z_a-z_0-9", "x", "x" * 128])
def test_other_ids_are_taken(good: str):
    assert identifier({"id": good}, "id") == good


def test_sessions_come_newest_first_without_archived_ones():
    def with_time(name: str, **time: int) -> dict[str, Any]:
        return {**SESSION, "id": name, "time": time}

    found = decode.sessions(
        [
            with_time("old", updated=1),
            with_time("new", updated=3),
            with_time("gone", updated=9, archived=8),
            with_time("middle", updated=2, archived=0),
        ]
    )
    assert [one.id for one in found] == ["new", "middle", "old"]


def test_the_archived_flag_may_be_a_plain_yes():
    assert decode.session({**SESSION, "time": {"archived": True}}) is None


def test_busy_is_whoever_is_not_idle():
    body = {
        "busy": {"type": "busy"},
        "retry": {"type": "retry", "attempt": 1, "message": "…", "next": 2},
        "idle": {"type": "idle"},
        "typeless": {},
        "odd": "busy",
    }
    assert decode.busy(body) == {"busy", "retry"}


def test_messages_hold_their_text_and_tools_and_how_they_ended():
    asked, answered, failed = decode.messages(STORED)
    assert (asked.role, asked.text, asked.completed) == ("user", "Is all well?", False)
    assert (answered.text, answered.completed, answered.finish) == ("All is well.", True, "stop")
    assert answered.tools == (ToolUse(tool="bash", status="completed", title="Say hi"),)
    assert (failed.error, failed.completed, failed.finish) == ("APIError: no credit", True, "")


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({**TEXT, "type": "compaction"}, AUTOMATIC),
        ({**TEXT, "synthetic": True}, AUTOMATIC),
        ({**TEXT, "synthetic": "yes"}, "text"),
        (TEXT, "text"),
    ],
)
def test_what_opencode_itself_wrote_is_marked_as_such(part: dict[str, Any], kind: str):
    event = decode.event(envelope("message.part.updated", part=part))
    assert isinstance(event, PartUpdated)
    assert event.kind == kind
    (message,) = decode.messages([{"info": USER, "parts": [part]}])
    assert message.automatic is (kind == AUTOMATIC)
    (mixed, empty) = decode.messages([{"info": USER, "parts": [part, TEXT]}, {"info": USER, "parts": []}])
    assert (mixed.automatic, empty.automatic) == (False, False)


@pytest.mark.parametrize(("said", "summary"), [(True, True), (False, False), ({"title": "x"}, False)])
def test_a_summary_of_a_conversation_is_marked_as_such(said: object, summary: bool):
    (message,) = decode.messages([{"info": {**ASSISTANT, "summary": said}, "parts": []}])
    assert message.summary is summary


def test_a_message_with_an_error_is_finished_even_without_a_time():
    (message,) = decode.messages([{"info": {**FAILED, "time": {"created": 1}}, "parts": []}])
    assert (message.completed, message.error) == (True, "APIError: no credit")
    (message,) = decode.messages([{"info": {**ASSISTANT, "time": {"created": 1}}, "parts": []}])
    assert message.completed is False


def test_only_what_was_said_is_text():
    parts = [
        {"type": "reasoning", "text": "hm"},
        {"type": "text", "text": "One."},
        {"type": "text", "text": "A reminder.", "synthetic": True},
        {"type": "text", "text": "A draft.", "ignored": True},
        {"type": "text", "text": ""},
        {"type": "text", "text": "Two.", "synthetic": False, "ignored": False},
        {"type": "text", "text": ["no text"]},
        {"type": "file", "text": "a file"},
        "no part",
    ]
    (message,) = decode.messages([{"info": ASSISTANT, "parts": parts}])
    assert message.text == "One.\nTwo."


@pytest.mark.parametrize(
    ("state", "title"),
    [
        ({"title": "Say hi", "input": {"command": "echo hi"}}, "Say hi"),
        ({"input": {"command": "echo hi", "description": "Say hi"}}, "echo hi"),
        ({"input": {"filePath": "/srv/a.py", "offset": 1}}, "/srv/a.py"),
        ({"input": {"pattern": "*.py", "path": "/srv"}}, "*.py"),
        ({"input": {"description": "Look around"}}, "Look around"),
        ({"input": {"url": "https://example.org"}}, "https://example.org"),
        ({"title": "", "input": {"other": "x"}}, ""),
        ({"input": {"command": 7}}, ""),
        ({"input": "echo hi"}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_a_tool_call_says_what_it_works_on(state: object, title: str):
    (message,) = decode.messages([{"info": ASSISTANT, "parts": [{**TOOL, "state": state}]}])
    assert message.tools[0].title == title


@pytest.mark.parametrize(
    ("request_", "summary"),
    [
        (PERMISSION, "bash: rm -rf build"),
        ({**PERMISSION, "metadata": {}}, "bash: rm -rf build"),
        ({**PERMISSION, "metadata": {"command": "make"}}, "bash: make"),
        ({**PERMISSION, "metadata": None, "patterns": []}, "bash:"),
        ({**PERMISSION, "metadata": None, "patterns": [7]}, "bash:"),
        ({**PERMISSION, "metadata": None, "patterns": "rm"}, "bash:"),
    ],
)
def test_a_permission_says_what_for(request_: dict[str, Any], summary: str):
    assert [one.summary for one in decode.permissions([request_])] == [summary]


@pytest.mark.parametrize(
    ("questions", "summary"),
    [
        ([{"question": "Which?", "header": "Choice"}, {"question": "How?"}], "Which?"),
        ([{"header": "Choice"}], "Choice"),
        ([], ""),
        (None, ""),
        (["Which?"], ""),
    ],
)
def test_a_question_says_what_is_asked(questions: object, summary: str):
    assert [one.summary for one in decode.questions([{**QUESTION, "questions": questions}])] == [summary]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (None, ""),
        ("no credit", ""),
        ({}, "unknown error"),
        ({"name": "APIError"}, "APIError"),
        ({"name": "APIError", "data": {"message": "no\n credit\x1b[31m"}}, "APIError: no credit"),
        ({"data": {"message": "x" * 1_000}}, "x" * 499 + "…"),
    ],
)
def test_an_error_is_one_line(error: object, line: str):
    assert decode.error_line(error) == line


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
        kept = ("id", "type", "sessionID", "messageID", "partID", "parentID", "requestID")
        return {key: one if key in kept else spoilt(one) for key, one in value.items()}
    if isinstance(value, list):
        return [spoilt(one) for one in value]
    return BAD_TEXT if isinstance(value, str) else value


@pytest.mark.parametrize("sent", [sent for sent, _ in EVENTS], ids=lambda sent: sent["payload"]["type"])
def test_whatever_an_event_says_is_safe(sent: dict[str, Any]):
    event = decode.event(spoilt(sent))
    assert event is not None
    assert_safe(event)


def test_whatever_is_listed_is_safe_and_readable():
    for one in (*decode.messages(spoilt(STORED)), *decode.sessions(spoilt([SESSION]))):
        assert_safe(one)
    for one in (*decode.permissions(spoilt([PERMISSION])), *decode.questions(spoilt([QUESTION]))):
        assert_safe(one)
        assert "red link right" in one.summary
    assert decode.messages(spoilt(STORED))[1].text == "red link right  end"


def test_a_very_long_text_is_cut():
    endless = {**TEXT, "text": "x" * (MOST_TEXT + 1)}
    (message,) = decode.messages([{"info": ASSISTANT, "parts": [endless]}])
    event = decode.event(envelope("message.part.updated", part=endless))
    assert isinstance(event, PartUpdated)
    assert len(message.text) == len(event.text) == MOST_TEXT
    assert message.text[-1] == event.text[-1] == "…"


def test_of_a_list_without_end_only_the_beginning_is_read():
    assert len(decode.sessions([SESSION] * 20_000)) == 5_000


def test_lines_are_bounded():
    huge = "x" * 100_000
    (found,) = decode.sessions([{**SESSION, "title": huge, "directory": huge}])
    assert (len(found.title), len(found.directory)) == (200, 4096)
    info = {**ASSISTANT, "role": huge, "finish": huge, "error": {"name": huge}}
    part = {**TOOL, "tool": huge, "state": {"status": huge, "title": huge}}
    (message,) = decode.messages([{"info": info, "parts": [part]}])
    for name, one in strings(message):
        assert len(one) <= 500, name
    for one in (*decode.permissions([{**PERMISSION, "permission": huge}]),):
        assert len(one.summary) == 200


@pytest.mark.parametrize(
    "odd", [None, "1", [], float("nan"), float("inf"), -1, 2**60, 253_402_300_800_000, 9_007_199_254_740_991]
)
def test_a_moment_that_no_calendar_has_is_none(odd: object):
    assert milliseconds({"time": {"created": odd}}, "time", "created") == 0


@pytest.mark.parametrize("moment", [0, 1735787045678, 1735787045678.9, 253_402_300_799_999])
def test_every_other_moment_is_in_the_calendar(moment: float):
    (message,) = decode.messages([{"info": {**USER, "time": {"created": moment}}, "parts": []}])
    assert message.created == int(moment)
    assert datetime.fromtimestamp(message.created / 1000, UTC).year <= 9999


@pytest.mark.parametrize("odd", [None, True, 7, "text", [], ["a"], {"a": {}}])
def test_what_is_missing_or_odd_comes_back_empty(odd: object):
    assert mapping(odd, "a", "b") == {}
    assert text(odd, "a", "b") == ""
    assert number(odd, "a", "b") == 0
    assert [one for one in items(odd) if one] == []


def test_what_is_there_comes_back():
    value = {"a": {"text": "x", "number": 1.9, "list": [{"b": 1}, "no object", {"c": 2}]}}
    assert mapping(value, "a") == value["a"]
    assert text(value, "a", "text") == "x"
    assert number(value, "a", "number") == 1
    assert list(items(value["a"]["list"])) == [{"b": 1}, {"c": 2}]


ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**70,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "busy",
    "\x1b[2J\ud800",
    "x" * 3_000,
    [],
    [None],
    [[[]]],
    {},
    {"type": "busy"},
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


def test_no_single_oddity_in_an_event_raises_or_lets_anything_unsafe_through():
    for sent, _ in EVENTS:
        for changed in every_single_change(copy.deepcopy(sent)):
            event = decode.event(changed)
            if event is not None:
                assert_safe(event)


def test_no_single_oddity_in_a_list_raises_or_lets_anything_unsafe_through():
    readers = {
        decode.messages: STORED,
        decode.sessions: [SESSION, SESSION],
        decode.permissions: [PERMISSION],
        decode.questions: [QUESTION],
    }
    for read, sample in readers.items():
        for changed in every_single_change(copy.deepcopy(sample)):
            for one in read(changed):
                assert_safe(one)
    for changed in every_single_change({"ses_1": {"type": "busy"}, "ses_2": {"type": "retry"}}):
        assert decode.busy(changed) <= {"ses_1", "ses_2"}


def test_no_mixture_of_oddities_in_an_event_raises_or_lets_anything_unsafe_through():
    chance = random.Random(20250102)
    samples = [sent for sent, _ in EVENTS]
    for turn in range(2_000):
        sent = mutated(samples[turn % len(samples)], chance)
        event = decode.event(sent)
        if event is not None:
            assert_safe(event)


def test_no_mixture_of_oddities_in_a_list_raises_or_lets_anything_unsafe_through():
    chance = random.Random(20250103)
    status = {"ses_1": {"type": "busy"}, "ses_2": {"type": "retry"}}
    for _ in range(2_000):
        for one in (
            *decode.messages(mutated(STORED, chance)),
            *decode.sessions(mutated([SESSION, SESSION], chance)),
            *decode.permissions(mutated([PERMISSION], chance)),
            *decode.questions(mutated([QUESTION], chance)),
        ):
            assert_safe(one)
        assert decode.busy(mutated(status, chance)) <= {"ses_1", "ses_2"}


def test_what_replaces_a_field_can_come_over_the_network():
    for odd in ODD:
        assert repr(json.loads(json.dumps(odd))) == repr(odd)
