"""What conversations return: the same for a model (as structured content) and a shell (as `--json`)."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, Field

from opencode_mcp.conversation.wording import MOST_MESSAGE, MOST_REPLY, shortened
from opencode_mcp.fleet import Monitor
from opencode_mcp.model import Session
from opencode_mcp.opencode.api import Message


class InstanceRow(BaseModel):
    """One instance in the overview."""

    name: str = Field(description="Pass this to `send` and `read`")
    status: Literal["connecting", "online", "needs credentials", "unreachable", "offline"]
    activity: Literal["idle", "busy"] | None = Field(description="null while unknown")
    host: str = Field(description="The machine it runs on")
    identity: str = Field(description="How it was made sure whose it is; empty if nobody asked for that")
    directory: str = Field(description="The project it works on")
    version: str = Field(description="OpenCode's version")
    session: str = Field(description="Title of the session at work, or used last")
    waiting_for: str = Field(description="What its agent waits for a person to decide")
    last_seen: str | None = Field(description="Last sign of life, ISO 8601, UTC")
    transport: str = Field(description="How it was found")
    detail: str = Field(description="Why it is not online")


class Overview(BaseModel):
    """All instances."""

    instances: list[InstanceRow]
    notes: list[str] = Field(description="What was found and left out, and what does not work")


class Reply(BaseModel):
    """What came of `send`."""

    instance: str
    state: Literal["done", "running", "busy", "failed", "aborted", "nothing to abort"] = Field(
        description="done: `text` is the agent's final answer. running: it goes on, `text` is what it said "
        "so far. busy: nothing was sent. failed: the agent stopped with an error."
    )
    session_id: str = ""
    session: str = Field(default="", description="The session's title")
    text: str = Field(default="", description="What the agent said")
    note: str = Field(default="", description="What happened, and how to go on")

    @classmethod
    def about(
        cls, monitor: Monitor, session: Session | None, *, state: str, text: str = "", note: str = ""
    ) -> Self:
        """Make a reply; a very long text is cut, and the note says so."""
        text, cut = shortened(text, MOST_REPLY)
        known = monitor.picture.title(session.id) if session else ""
        return cls.model_validate(
            {
                "instance": monitor.name,
                "state": state,
                "session_id": session.id if session else "",
                "session": known or (session.title if session else ""),
                "text": text,
                "note": " ".join(filter(None, (note, cut))),
            }
        )


class SaidMessage(BaseModel):
    """One message of a session."""

    role: str
    time: str = Field(description="ISO 8601, UTC")
    text: str
    tools: list[str] = Field(default_factory=list, description="Tool calls: name, what on, status")
    error: str = ""

    @classmethod
    def all_of(cls, stored: Sequence[Message]) -> list[Self]:
        """Make them of stored messages; very long texts are cut, and say so."""
        return [cls._of(message) for message in stored]

    @classmethod
    def _of(cls, message: Message) -> Self:
        text, cut = shortened(message.text, MOST_MESSAGE)
        return cls(
            role=message.role,
            time=datetime.fromtimestamp(message.created / 1000, UTC).isoformat(timespec="seconds"),
            text="\n".join(filter(None, (text, f"[{cut}]" if cut else ""))),
            tools=[f"{tool} → {tool.status}" for tool in message.tools],
            error=message.error,
        )

    def text_lines(self) -> str:
        """Say it in words."""
        lines = [f"{self.role} ({self.time}):"]
        if self.text:
            lines.append(self.text)
        lines += [f"  [{tool}]" for tool in self.tools]
        if self.error:
            lines.append(f"  [error: {self.error}]")
        return "\n".join(lines)


class Transcript(BaseModel):
    """The newest messages of a session."""

    instance: str
    session_id: str = ""
    session: str = Field(default="", description="The session's title")
    activity: Literal["idle", "busy"] = "idle"
    waiting_for: str = Field(default="", description="What its agent waits for a person to decide")
    messages: list[SaidMessage] = Field(default_factory=list[SaidMessage])
    note: str = ""

    def text(self) -> str:
        """Say it in words."""
        if not self.session_id:
            return self.note
        head = f'{self.instance}, session "{self.session}" ({self.session_id}), {self.activity}'
        if self.waiting_for:
            head += f", waits for a person ({self.waiting_for})"
        if not self.messages:
            return f"{head}: no messages yet."
        said = (message.text_lines() for message in self.messages)
        return "\n\n".join((head, *said, *([f"[{self.note}]"] if self.note else [])))
