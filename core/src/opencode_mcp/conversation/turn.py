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
        self._last_part = ""

    def read(self, events: Iterable[Event]) -> str:
        """Take note of events and return the text that the agent added."""
        before = len(self.text)
        for event in events:
            self._read(event)
        return self.text[before:]

    def _read(self, event: Event) -> None:
        match event:
            case Delta(self._session_id):
                if event.part_id in self._kinds:
                    self._add(event)
                elif len(self._held) < _MOST_HELD:
                    self._held.setdefault(event.part_id, []).append(event)
            case PartUpdated(self._session_id, message_id, part_id, kind):
                if message_id in self._asked:
                    self._read_question(message_id, kind, event.text)
                self._kinds[part_id] = kind
                for held in self._held.pop(part_id, ()):
                    self._add(held)
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
        elif not message.summary and message.parent_id in {self._question, *self._continuing} - {""}:
            self._answers.add(message.id)
            self.maybe_over = self.maybe_over or is_last(message)

    def _read_question(self, message_id: str, kind: str, text: str) -> None:
        if not self._question and kind == "text" and text == self._prompt:
            self._question = message_id
        elif self._question and kind == AUTOMATIC:
            self._continuing.add(message_id)

    def _add(self, delta: Delta) -> None:
        if self._kinds[delta.part_id] != "text" or delta.message_id not in self._answers:
            return
        if len(self.text) > MOST_TEXT:
            return
        if self.text and self._last_part != delta.part_id:
            self.text += "\n\n"
        self._last_part = delta.part_id
        self.text += delta.text

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
        since = ids.index(self._question) + 1 if self._question in ids else 0
        for message in stored[since:]:
            if message.role == "user" and not message.automatic:
                self.superseded = True
                break
            if message.role == "user":
                self._continued.add(message.id)
        questions = {self._question, *self._continued}
        answers = [one for one in stored if one.parent_id in questions and not one.summary]
        return answers[-1] if answers else None

    def _stands_in(self, stored: Sequence[Message]) -> bool:
        return any(one.id == self._before for one in stored)


def is_last(message: Message) -> bool:
    """Whether a message ends its turn."""
    return message.completed and (bool(message.error) or message.finish not in _GOES_ON)
