"""What the rooms talk about: endpoints and routes from a transport, instances and sessions for people."""

import dataclasses
from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from opencode_mcp.text import clean_line, has_unsafe

if TYPE_CHECKING:
    import httpx2


def _safe(value: str) -> str:
    if has_unsafe(value):
        raise ValueError("must not hold control, line-breaking or invisible characters")
    return value


def server_url(value: str) -> str:
    """Check for `http(s)://host[:port]`: no credentials, no query, nothing that could carry a secret."""
    _safe(value)
    wanted = "must look like http://host:port, with a port from 1 to 65535"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:  # its words would show the value
        raise ValueError(wanted) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(wanted)
    if "\\" in value or value.split() != [value]:
        raise ValueError(wanted)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold credentials")
    if "?" in value or "#" in value:
        raise ValueError("must not hold a query or a fragment")
    return f"{parts.scheme}{value[len(parts.scheme) :]}".rstrip("/")


def explain(error: ValidationError) -> str:
    """Say in one line what is wrong with what a model refused, field by field, without the values.

    For the reason of a `Rejection`.
    """
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in problems]
    return clean_line("; ".join(f"{where}: {why}" if where else why for where, why in told), 500)


_Line = Annotated[str, AfterValidator(_safe)]
_Label = Annotated[_Line, Field(max_length=1024)]


class Endpoint(BaseModel):
    """What a transport says: an OpenCode server may be reached here.

    Creating one validates it (`pydantic.ValidationError`): every string is one line of printable text.

    Attributes:
        id: Stable within its transport; the same server keeps it when its port changes. 1 to 512 characters.
        name: What people call it, for example `laptop-myproject`. 1 to 200 characters.
        url: `http://host:port`, without credentials.
        hostname: The machine it runs on, as far as the transport knows.
        directory: The project it serves, as far as the transport knows.
        labels: At most 32 facts to show, of at most 1024 characters; never a secret. `identity`, how its
            transport made sure whose it is, for example `verified`, is shown in lists.
        vouched: Whether the transport stands for it being the user's own server. Only then is
            `OPENCODE_SERVER_PASSWORD` sent there; a plugin's `auth` hook decides for itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: Annotated[_Line, Field(min_length=1, max_length=512)]
    name: Annotated[_Line, Field(min_length=1, max_length=200, pattern=r"\S")]
    url: Annotated[str, Field(max_length=2048), AfterValidator(server_url)]
    hostname: Annotated[_Line, Field(max_length=255)] = ""
    directory: Annotated[_Line, Field(max_length=4096)] = ""
    labels: Mapping[_Label, _Label] = Field(default_factory=dict[str, str], max_length=32)
    vouched: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """How to reach an endpoint, for as long as one is connected.

    Attributes:
        base_url: Where HTTP requests go.
        headers: Added to every request; may hold a secret, so they stay out of the repr.
        transport: A way of its own (a unix socket, a proxy, a tunnel); None for plain TCP. It is closed
            when the connection ends, so give each route its own.
        auth: Credentials that the transport itself knows, for example from a file of the same user; they
            count before those of the `auth` hook and of the settings. See `opencode_auth`.
        pid: The process that has to answer there, an OpenCode 2.x; None if that is not known.
        version: The version that it has to say; empty if that is not known.
        users: The users of this machine, by id, whose programs may get credentials: the other end of each
            connection that they are sent over is looked at (see `peer_user`). None if that does not matter.
            Not together with `transport`.
        mend: What to do if another user has the port, as sentences.
    """

    base_url: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str], repr=False)
    transport: "httpx2.AsyncBaseTransport | None" = None
    auth: "httpx2.Auth | None" = dataclasses.field(default=None, repr=False)
    pid: int | None = None
    version: str = ""
    users: Collection[int] | None = None
    mend: str = ""

    def __post_init__(self) -> None:
        """Refuse what would not be looked at."""
        if self.users is not None and self.transport is not None:
            raise ValueError("`users` of a route with a `transport` of its own cannot be told")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """Something a transport found and left out.

    Attributes:
        source: Where it was found, for example a file's path.
        reason: What is wrong with it and how to mend it, in words for a person.
    """

    source: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that was found out about an announced instance.

    Attributes:
        about: What was looked at, for example `tunnel`.
        ok: Whether it is as it should be; None if that cannot be told.
        detail: What was found, in words for a person.
    """

    about: str
    ok: bool | None
    detail: str


class Status(StrEnum):
    """Whether an instance can be talked to."""

    CONNECTING = "connecting"
    """Announced, not yet looked at."""
    ONLINE = "online"
    NEEDS_CREDENTIALS = "needs credentials"
    """It answers, but wants another password."""
    UNREACHABLE = "unreachable"
    """It failed just now; it may be back in a moment."""
    OFFLINE = "offline"
    """It has been failing for a while."""


class Activity(StrEnum):
    """Whether an agent is at work."""

    IDLE = "idle"
    BUSY = "busy"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One conversation on an OpenCode server.

    Attributes:
        id: OpenCode's id, `ses_…`.
        title: What OpenCode calls it; may be empty.
        directory: The project it belongs to.
        parent_id: The session whose agent started this one as a sub-agent, or None.
        updated: Milliseconds since the epoch, by the instance's clock.
    """

    id: str
    title: str = ""
    directory: str = ""
    parent_id: str | None = None
    updated: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One OpenCode server as the fleet sees it at a moment.

    Attributes:
        name: Unique within the fleet, and stable.
        transport: The name of the transport that found it.
        endpoint: What the transport said.
        status: Whether it can be talked to.
        detail: Why it is not online, or empty.
        activity: None while unknown.
        version: OpenCode's version, or empty while unknown.
        directory: The project it serves.
        session: The session at work, else the one used last, or None.
        waiting_for: What its agent waits for a person to decide, or empty.
        last_seen: When it last gave a sign of life; None for never.
    """

    name: str
    transport: str
    endpoint: Endpoint
    status: Status = Status.CONNECTING
    detail: str = ""
    activity: Activity | None = None
    version: str = ""
    directory: str = ""
    session: Session | None = None
    waiting_for: str = ""
    last_seen: datetime | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """Something that is done to an instance, for the hook `opencode_mcp_instance_audit`.

    Attributes:
        id: The same for all that is said of one action; no other one has it.
        kind: A message is sent, an agent is stopped, or a conversation is read.
        instance: The instance as it stood when the action began.
        caller: Who asked for it: `cli`, or an MCP client's name and version, which it chooses itself.
        began: When it began, UTC.
        session: The id of the session, or empty while none is chosen.
        text: The message; empty unless one is sent.
        outcome: Empty as it begins. Once it is over: `done`, `running`, `busy`, `failed`, `aborted` or
            `nothing to abort`, as the tool says; `cancelled`; or `error`, and then it was not carried out,
            or `detail` says that this is not known.
        detail: More on the outcome, one line; or empty. Never what the agent answered.
    """

    id: str
    kind: Literal["send", "abort", "read"]
    instance: Instance
    caller: str
    began: datetime
    session: str = ""
    text: str = dataclasses.field(default="", repr=False)
    outcome: str = ""
    detail: str = ""
