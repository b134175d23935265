"""Which of a session's messages answer one prompt."""

import dataclasses

import pytest

from opencode_mcp import Activity
from opencode_mcp.conversation.turn import Turn, is_last
from opencode_mcp.opencode.api import (
    ActivityChanged,
    Delta,
    Event,
    Message,
    MessageUpdated,
    PartUpdated,
    SessionFailed,
    ToolUse,
)

BEFORE = Message(id="m0", role="assistant", parent_id="old", completed=True, finish="stop", text="old answer")


def user(key: str, text: str = "", *, automatic: bool = False) -> Message:
    return Message(id=key, role="user", text=text, automatic=automatic)


def said(key: str, parent: str, text: str = "", finish: str = "stop", *, summary: bool = False) -> Message:
    return Message(
        id=key, role="assistant", parent_id=parent, text=text, finish=finish, completed=True, summary=summary
    )


def test_the_newest_answer_to_the_prompt_counts_and_nothing_before_it():
    turn = Turn("s", "go", [BEFORE])
    assert turn.answer([BEFORE]) is None
    assert turn.answer([BEFORE, user("q", "go")]) is None
    step, last = said("a1", "q", "step", "tool-calls"), said("a2", "q", "done")
    assert turn.answer([BEFORE, user("q", "go"), step, last]) is last
    assert not turn.superseded


def test_a_conversation_that_is_compacted_in_the_middle_gives_what_was_said_after_it():
    turn = Turn("s", "go", [BEFORE])
    stored = [
        BEFORE,
        user("q", "go"),
        said("a1", "q", "step one", "tool-calls"),
        user("c", automatic=True),
        said("sum", "c", "a summary", summary=True),
    ]
    assert turn.answer(stored) is stored[2]  # which is not the last of its turn
    assert not is_last(stored[2])
    final = said("a2", "n", "final")
    assert turn.answer([*stored, user("n", automatic=True), final]) is final
    later = [said("a3", "n", "later")]
    assert turn.answer(later) is later[0]  # the question has fallen out of what is asked for


def test_what_somebody_else_asks_afterwards_is_not_our_answer():
    turn = Turn("s", "go", [BEFORE])
    ours = said("a1", "q", "ours")
    stored = [BEFORE, user("q", "go"), ours, user("q2", "theirs"), said("b", "q2", "not ours")]
    stored += [user("c", automatic=True), said("d", "c", "nor this")]
    assert turn.answer(stored) is ours
    assert turn.superseded


def test_the_text_after_compacting_streams_and_the_summary_does_not():
    turn = Turn("s", "go", [BEFORE])

    def message(one: Message) -> MessageUpdated:
        return MessageUpdated("s", one)

    shown = turn.read(
        [
            message(user("q")),
            PartUpdated("s", "q", "p0", "text", "go"),
            message(said("a1", "q", finish="tool-calls")),
            PartUpdated("s", "a1", "p1", "text"),
            Delta("s", "a1", "p1", "one"),
            message(user("c")),
            PartUpdated("s", "c", "p2", "automatic"),
            message(said("sum", "c", summary=True)),
            PartUpdated("s", "sum", "p3", "text"),
            Delta("s", "sum", "p3", "SUMMARY"),
            message(user("n")),
            PartUpdated("s", "n", "p4", "automatic", "Continue"),
            message(said("a2", "n", finish="")),
            Delta("s", "a2", "p5", "tw"),  # before its part is known
            PartUpdated("s", "a2", "p5", "text"),
            Delta("s", "a2", "p5", "o"),
        ]
    )
    assert shown == "one\n\ntwo"


def test_coming_to_rest_is_worth_a_look():
    turn = Turn("s", "go", [])
    turn.read([ActivityChanged("s", Activity.BUSY)])
    assert not turn.maybe_over
    turn.read([ActivityChanged("s", Activity.IDLE)])
    assert turn.maybe_over


def of_2(*events: Event) -> Turn:
    """A turn whose server told the prompt's id, as 2.x does."""
    turn = Turn("s", "go", [BEFORE])
    turn.asked("q")
    turn.read([MessageUpdated("s", user("q")), MessageUpdated("s", said("a", "q", finish="")), *events])
    return turn


def piece(text: str, part: str = "a:0") -> Delta:
    return Delta("s", part.partition(":")[0], part, text, "text")


def whole(text: str, part: str = "a:0") -> PartUpdated:
    return PartUpdated("s", part.partition(":")[0], part, "text", text)


def test_a_prompt_whose_id_is_known_streams_without_a_word_about_its_parts():
    assert of_2(piece("Hel"), piece("lo")).text == "Hello"


def test_what_was_not_heard_of_a_text_is_told_by_the_whole_of_it_and_nothing_twice():
    turn = of_2(piece("Hel"))
    assert turn.read([whole("Hello there")]) == "lo there"
    assert turn.read([whole("Hello there"), whole("Hello there")]) == ""
    assert turn.read([whole("Second", "a:1"), whole("Hello there"), whole("Second", "a:1")]) == "\n\nSecond"
    assert turn.text == "Hello there\n\nSecond"


def test_pieces_that_come_behind_the_whole_text_are_not_said_again():
    turn = of_2(piece("Hel"))
    assert turn.read([whole("Hello there"), piece("there")]) == "lo there"  # a log is faster than the stream
    assert turn.read([whole("Hello there"), piece("Second", "a:1")]) == "\n\nSecond"


def test_a_text_with_a_gap_in_the_middle_is_not_said_again():
    turn = of_2(piece("Hel"), piece("there"))  # "lo " was not heard
    assert turn.read([whole("Hello there")]) == ""
    assert turn.text == "Helthere"


def test_the_answer_to_another_prompt_does_not_stream_and_one_that_says_no_prompt_may():
    turn = of_2(MessageUpdated("s", said("b", "theirs")), piece("theirs", "b:0"))
    assert turn.text == ""
    turn.read([MessageUpdated("s", said("c", "")), piece("ours", "c:0")])
    assert turn.text == "ours"
    nobody = Turn("s", "go", [])
    nobody.read([MessageUpdated("s", said("c", "")), piece("not yet asked", "c:0")])
    assert nobody.text == ""


def test_earlier_turns_neither_answer_nor_supersede_a_prompt_that_waits_for_its_own():
    turn = of_2()
    earlier = [user("p", "before"), said("a0", "p", "old"), user("r", "go"), said("a1", "r", "same question")]
    assert turn.answer(earlier) is None
    assert not turn.superseded
    ours = [*earlier, user("q", "go"), said("a", "q", "ours")]
    assert turn.answer(ours) is ours[-1]
    assert not turn.superseded


def test_a_message_that_steers_our_turn_is_answered_with_ours():
    turn = of_2()
    stored = [user("q", "go"), said("a", "q", "step", "tool-calls"), user("s1", "and quickly")]
    assert turn.answer(stored) is stored[1]
    stored += [dataclasses.replace(said("b", "s1", "both done"), inferred=True)]
    assert turn.answer(stored) is stored[-1]
    stored += [user("n", "next"), said("c", "n", "not ours")]
    assert turn.answer(stored) is stored[3]
    assert turn.superseded


def test_a_message_that_waits_behind_our_turn_is_not_answered_with_ours():
    turn = of_2()
    stored = [user("q", "go"), said("a", "q", "step", "tool-calls"), user("n", "theirs")]
    stored += [said("b", "q", "ours"), said("c", "n", "theirs")]
    assert turn.answer(stored) is stored[3]
    assert turn.superseded


def test_text_without_end_is_kept_up_to_a_bound():
    turn = of_2()
    for number in range(20):
        turn.read([piece("x" * 400_000, f"a:{number}")])
    assert len(turn.text) < 1_500_000


def test_an_execution_that_fails_is_worth_a_look_and_says_why():
    turn = of_2(SessionFailed("s", "interrupted (user)"))
    assert (turn.error, turn.maybe_over) == ("interrupted (user)", True)


@pytest.mark.parametrize("how", ["the server says whom it answers", "a tool was refused"])
def test_who_writes_after_our_turn_has_ended_in_a_tool_gets_an_answer_of_their_own(how: str):
    step, theirs = said("a", "q", "step", "tool-calls"), said("b", "s1", "theirs")
    if how == "a tool was refused":
        theirs = dataclasses.replace(theirs, inferred=True)
        step = dataclasses.replace(step, tools=(ToolUse(tool="bash", status="error"),))
    turn = of_2()
    assert turn.answer([user("q", "go"), step, user("s1", "and?"), theirs]) is step
    assert turn.superseded


def test_an_error_of_the_turn_before_is_not_ours():
    turn = Turn("s", "go", [BEFORE])
    turn.asked("q")
    turn.read([SessionFailed("s", "interrupted (user)")])
    assert turn.error
    assert turn.parked
    turn.read([MessageUpdated("s", user("q", "go"))])
    assert not turn.error
    assert not turn.parked


def test_what_is_said_before_our_prompt_is_taken_up_is_not_ours():
    turn = Turn("s", "go", [BEFORE])
    turn.asked("q")
    assert turn.read([MessageUpdated("s", said("a", "")), Delta("s", "a", "a:0", "theirs", "text")]) == ""


def test_a_prompt_that_is_stored_is_not_parked_though_nobody_heard_of_its_delivery():
    turn = Turn("s", "go", [BEFORE])
    turn.asked("q")
    turn.read([SessionFailed("s", "no such model")])
    assert turn.parked
    assert turn.answer([BEFORE, user("q", "go")]) is None
    assert not turn.parked
    assert turn.error
