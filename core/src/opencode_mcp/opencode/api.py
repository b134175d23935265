"""What we ask of an OpenCode server, whatever its version, and what it tells us."""

import dataclasses
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from opencode_mcp.model import Activity, Session

MOST_TEXT = 1_000_000
"""Characters of one part that are kept."""
AUTOMATIC = "automatic"
"""The kind of a part that OpenCode itself wrote, to go on after it compacted a long conversation."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Something an agent waits for a person to decide.

    Attributes:
        id: OpenCode's id.
        session_id: The session that waits; a sub-agent's request carries the sub-agent's session.
        kind: A permission to do something, or a question.
        summary: One line, for example `bash: rm -rf build`.
    """

    id: str
    session_id: str
    kind: Literal["permission", "question"]
    summary: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToolUse:
    """A tool call of the agent: the tool, how far it is, and what it works on in one line."""

    tool: str
    status: str
    title: str = ""

    def __str__(self) -> str:
        return f"{self.tool}: {self.title}" if self.title else self.tool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A stored message.

    Attributes:
        id: OpenCode's id.
        role: Who wrote it, `user` or `assistant`.
        parent_id: For an assistant's message, the user message that it answers; empty if that is not known.
        created: Milliseconds since the epoch, by the instance's clock.
        completed: Whether it is finished, well or not.
        finish: Why the model stopped, for example `stop` or `tool-calls`; empty if it did not.
        error: What went wrong, or empty.
        text: Its text parts, joined; no reasoning.
        tools: The tool calls in it.
        summary: Whether it is the summary that OpenCode makes when it compacts a long conversation.
        automatic: For a user's message, whether OpenCode itself wrote it, to go on after that.
        inferred: Whether `parent_id` is not what the server says, but the user's message before it.
    """

    id: str
    role: str
    parent_id: str = ""
    created: int = 0
    completed: bool = False
    finish: str = ""
    error: str = ""
    text: str = ""
    tools: tuple[ToolUse, ...] = ()
    summary: bool = False
    automatic: bool = False
    inferred: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """How an OpenCode server stands at one moment.

    Attributes:
        directory: The server's own project; empty if it has none, as the service of OpenCode 2.x.
        sessions: Its sessions, newest first, a bounded number; of sub-agents' only some at work.
        busy: The ids of all sessions at work, sub-agents' included.
        requests: What waits for a person.
        unasked: Of these sessions at work it is not known what they wait for.
    """

    directory: str
    sessions: tuple[Session, ...]
    busy: frozenset[str]
    requests: tuple[Request, ...]
    unasked: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Alive:
    """A sign of life that says nothing else."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionUpdated:
    """A session was created or changed."""

    session: Session


@dataclasses.dataclass(frozen=True, slots=True)
class SessionChanged:
    """Something of a session changed; what is None stayed as it was, as far as is known.

    Attributes:
        session_id: The session.
        title: Its new title.
        directory: Its new directory.
        updated: When it changed, in milliseconds since the epoch, by the instance's clock.
    """

    session_id: str
    title: str | None = None
    directory: str | None = None
    updated: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SessionDeleted:
    """A session is gone, or archived."""

    session_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class ActivityChanged:
    """A session went to work or came to rest. It may be said twice: a level, not a count."""

    session_id: str
    activity: Activity


@dataclasses.dataclass(frozen=True, slots=True)
class SessionFailed:
    """A session reported an error; `error` is one line."""

    session_id: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class MessageUpdated:
    """A message was created or changed; its text and tools are not filled in."""

    session_id: str
    message: Message


@dataclasses.dataclass(frozen=True, slots=True)
class PartUpdated:
    """A part of a message was created or changed; `tool` is set for a tool call.

    Its `kind` is `text`, `reasoning`, `tool`, …, or `AUTOMATIC`.
    """

    session_id: str
    message_id: str
    part_id: str
    kind: str
    text: str = ""
    tool: ToolUse | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """A piece of text was added to a part.

    Its `kind` is that of the part, or empty where a `PartUpdated` tells it.
    """

    session_id: str
    message_id: str
    part_id: str
    text: str
    kind: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RequestOpened:
    """An agent waits for a person."""

    request: Request


@dataclasses.dataclass(frozen=True, slots=True)
class RequestClosed:
    """A request was answered."""

    request_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Logged:
    """What a server keeps of a session for good has come so far; see `OpenCode.log`."""

    session_id: str
    position: int


Event = (
    Alive
    | SessionUpdated
    | SessionChanged
    | SessionDeleted
    | ActivityChanged
    | SessionFailed
    | MessageUpdated
    | PartUpdated
    | Delta
    | RequestOpened
    | RequestClosed
    | Logged
)


class OpenCode(Protocol):
    """One OpenCode server. Every method is bounded in time and raises `OpenCodeMCPError`s only."""

    @property
    def generation(self) -> Literal[1, 2]:
        """Which of OpenCode's APIs it speaks: that of 1.x or of 2.x."""
        ...

    @property
    def version(self) -> str:
        """The server's version."""
        ...

    async def ping(self) -> None:
        """Return if the server answers as itself."""
        ...

    async def directory(self) -> str:
        """Return the directory of the server's own project; empty if it does not say, or has none."""
        ...

    async def snapshot(self, directories: Collection[str] = ()) -> Snapshot:
        """Take stock of the server's own project, and of what is busy in further `directories`."""
        ...

    def events(
        self, heard: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Follow everything that happens on the server, over all projects; ends when the stream does.

        `heard` is called with whatever arrives, also if it is no event.
        """
        ...

    async def log(self, session_id: str, after: int) -> Sequence[Event]:
        """Return what the server keeps of a session, from behind a position on, oldest first.

        A bounded number. Pieces of text and requests are not in it; on a server that keeps none, nothing is.
        """
        ...

    async def sessions(self) -> Sequence[Session]:
        """List the sessions of the server's project, or of all its projects, newest first, no sub-agents'."""
        ...

    async def session(self, session_id: str) -> Session:
        """Return one session, of any project.

        Raises:
            RequestError: There is none with that id.
        """
        ...

    async def create_session(self, directory: str) -> Session:
        """Create an empty session in `directory`; empty for where the server runs."""
        ...

    async def messages(self, session_id: str, limit: int) -> Sequence[Message]:
        """Return the newest `limit` messages of a session, oldest first."""
        ...

    async def is_busy(self, session: Session) -> bool:
        """Ask whether a session is at work now."""
        ...

    async def prompt(self, session: Session, prompt: str) -> str:
        """Hand `prompt` to the session's agent and return at once: the id of the message, if it is told."""
        ...

    async def abort(self, session_id: str) -> None:
        """Stop the session's agent; no error if it is idle."""
        ...
