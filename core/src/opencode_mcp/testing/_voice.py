"""What a fake OpenCode tells while it works: the facts are the same, the events differ by generation."""

from typing import Any, Literal, Protocol

Json = dict[str, Any]
Kind = Literal["permission", "question"]


class Voice(Protocol):
    """Turns each change of the store into the events of one generation of OpenCode."""

    def session_created(self, session: Json) -> None:
        """A session is there."""
        ...

    def session_changed(self, session: Json, changes: Json) -> None:
        """Something in a session is new; `changes` may be empty, then it is only the time."""
        ...

    def session_moved(self, session: Json) -> None:
        """A session has another directory."""
        ...

    def session_deleted(self, session: Json) -> None:
        """A session goes; it can still be found."""
        ...

    def status_changed(self, session_id: str, status: str) -> None:
        """A session is `busy` or `idle`."""
        ...

    def message_added(self, message: Json) -> None:
        """A message is there; of an assistant's nothing but the frame."""
        ...

    def message_completed(self, message: Json) -> None:
        """An assistant's message is finished, or has an error."""
        ...

    def part_added(self, part: Json) -> None:
        """A part is there; of text and reasoning nothing but the frame."""
        ...

    def part_changed(self, part: Json) -> None:
        """A text is whole, or a tool call goes on."""
        ...

    def delta(self, part: Json, text: str) -> None:
        """A piece of a text or of reasoning."""
        ...

    def asked(self, kind: Kind, body: Json) -> None:
        """The agent waits for a person."""
        ...

    def answered(self, kind: Kind, body: Json, answer: Json | None) -> None:
        """A person answered, or dismissed a question (None)."""
        ...
