"""Which of a session's messages answer one prompt."""

from opencode_mcp import Activity
from opencode_mcp.conversation.turn import Turn, is_last
from opencode_mcp.opencode.api import ActivityChanged, Delta, Message, MessageUpdated, PartUpdated

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
