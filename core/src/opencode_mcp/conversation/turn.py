"""Picks the answer to one prompt out of a session's events, and says when it is worth asking for the end."""

from collections.abc import Iterable, Sequence

from opencode_mcp.model import Activity
from opencode_mcp.opencode.api import (
    AUTOMATIC,
    MOST_TEXT,
    ActivityChanged,
    Delta,
    Event,
    Message,
    MessageUpdated,
    PartUpdated,
    SessionFailed,
)
from opencode_mcp.text import clean_text

_GOES_ON = ("", "tool-calls", "unknown")
"""With these reasons a model's step ends, and OpenCode 1.x takes another one."""
_MOST_HELD = 1_000


class Turn:
    """One prompt, from the moment before it is sent.

    Args:
        session_id: Its session.
        prompt: What is going to be sent.
        stored: What stands in the session before; the newest message is enough.

    Attributes:
        text: What the agent said so far, as it streamed.
        error: What the session reported as an error, or empty.
        maybe_over: Whether an event says that the turn has ended; the stored messages decide.
        superseded: Whether somebody's next message stands behind it in the session.
    """

    def __init__(self, session_id: str, prompt: str, stored: Sequence[Message]) -> None:
        self.text = ""
        self.error = ""
        self.maybe_over = False
        self.superseded = False
        self._session_id = session_id
        self._prompt = clean_text(prompt, MOST_TEXT)
        self._before = stored[-1].id if stored else ""
        self._asked: set[str] = set()
        self._question = ""
        self._continued: set[str] = set()  # as stored: what OpenCode itself asked, to go on after compacting
        self._continuing: set[str] = set()  # the same as streamed, which only decides what is shown
        self._answers: set[str] = set()
        self._kinds: dict[str, str] = {}
        self._held: dict[str, list[Delta]] = {}
        self._said: dict[str, str] = {}
        self._caught_up: set[str] = set()
        self._last_part = ""

    def asked(self, message_id: str) -> None:
        """Take note of the id under which the prompt is stored, if the server told it; else it is found."""
        self._question = self._question or message_id

    def read(self, events: Iterable[Event]) -> str:
        """Take note of events and return the text that the agent added."""
        before = len(self.text)
        for event in events:
            self._read(event)
        return self.text[before:]

    def _read(self, event: Event) -> None:
        match event:
            case Delta(self._session_id):
                if event.kind:
                    self._kinds[event.part_id] = event.kind
                if event.part_id in self._caught_up:
                    return  # a log can be faster than the stream
                if event.part_id in self._kinds:
                    self._add(event.message_id, event.part_id, event.text)
                elif len(self._held) < _MOST_HELD:
                    self._held.setdefault(event.part_id, []).append(event)
            case PartUpdated(self._session_id, message_id, part_id, kind):
                if message_id in self._asked:
                    self._read_question(message_id, kind, event.text)
                self._kinds[part_id] = kind
                for held in self._held.pop(part_id, ()):
                    self._add(held.message_id, part_id, held.text)
                said = self._said.get(part_id, "")
                unheard = len(event.text) > len(said) and event.text.startswith(said)
                if unheard and message_id in self._answers:
                    self._caught_up.add(part_id)
                    self._add(message_id, part_id, event.text[len(said) :])
            case MessageUpdated(self._session_id, message):
                self._read_message(message)
            case ActivityChanged(self._session_id, Activity.IDLE):
                self.maybe_over = True
            case SessionFailed(self._session_id, error):
                self.error, self.maybe_over = error, True
            case _:
                pass

    def _read_message(self, message: Message) -> None:
        if message.role == "user":
            self._asked.add(message.id)
            if message.id == self._question:
                self.error = ""  # of somebody else's turn, before ours
        elif not message.summary and self._answers_us(message):
            self._answers.add(message.id)
            self.maybe_over = self.maybe_over or is_last(message)

    def _answers_us(self, message: Message) -> bool:
        """Whether a message belongs to this turn, or, where it does not say what it answers, may do so."""
        if not message.parent_id:
            return self._question in self._asked
        return message.parent_id in {self._question, *self._continuing}

    def _read_question(self, message_id: str, kind: str, text: str) -> None:
        if not self._question and kind == "text" and text == self._prompt:
            self._question = message_id
        elif self._question and kind == AUTOMATIC:
            self._continuing.add(message_id)

    def _add(self, message_id: str, part_id: str, text: str) -> None:
        if self._kinds[part_id] != "text" or message_id not in self._answers or len(self.text) > MOST_TEXT:
            return
        self._said[part_id] = self._said.get(part_id, "") + text
        if self.text and self._last_part != part_id:
            self.text += "\n\n"
        self._last_part = part_id
        self.text += text

    def answer(self, stored: Sequence[Message]) -> Message | None:
        """Find the agent's newest message of this turn among the stored ones; None before there is one.

        A turn goes from its question to somebody's next message. OpenCode compacts a long conversation in
        the middle of a turn: it makes a summary, and asks itself to go on.
        """
        if not self._question:
            since = [one.id for one in stored].index(self._before) + 1 if self._stands_in(stored) else 0
            asked = [one for one in stored[since:] if one.role == "user" and not one.automatic]
            same = [one for one in asked if one.text == self._prompt]
            self._question = next((one.id for one in same or asked), "")
        if not self._question:
            return None
        ids = [one.id for one in stored]
        known = {self._question, *self._continued}
        if self._question not in ids and not any(one.parent_id in known for one in stored):
            return None  # it waits for its turn, so that these are of earlier ones
        since = 0
        if self._question in ids:
            since = ids.index(self._question) + 1
            self._asked.add(self._question)  # it was given to the agent, whether that was heard or not
        self.superseded = False
        for number, message in enumerate(stored[since:], since):
            if message.role != "user":
                continue
            if not message.automatic and not self._is_joined(stored[:number], stored[number + 1 :]):
                self.superseded = True
                break
            self._continued.add(message.id)
        questions = {self._question, *self._continued}
        answers = [one for one in stored if one.parent_id in questions and not one.summary]
        return answers[-1] if answers else None

    def _is_joined(self, before: Sequence[Message], after: Sequence[Message]) -> bool:
        """Whether somebody's message became part of this turn, between two of its steps: both go on as one.

        In 2.x a message that steers does; from then on nothing answers the question alone. After a tool that
        was refused the turn is over, and what comes then is another one.
        """
        ours = {self._question, *self._continued}
        steps = [one for one in before if one.parent_id in ours and not one.summary]
        goes_on = bool(steps) and steps[-1].completed and steps[-1].finish == "tool-calls"
        goes_on = goes_on and not any(one.status == "error" for one in steps[-1].tools)
        answered = any(one.role == "assistant" and one.inferred for one in after)
        return goes_on and answered and not any(one.parent_id in ours for one in after)

    def _stands_in(self, stored: Sequence[Message]) -> bool:
        return any(one.id == self._before for one in stored)

    @property
    def parked(self) -> bool:
        """Whether the server has the prompt, and has not given it to the agent, as far as is known."""
        return bool(self._question) and self._question not in self._asked and not self._answers


def is_last(message: Message) -> bool:
    """Whether a message ends its turn."""
    return message.completed and (bool(message.error) or message.finish not in _GOES_ON)
