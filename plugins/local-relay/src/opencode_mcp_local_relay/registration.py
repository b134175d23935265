"""The format of a registration file: read, checked strictly, and written.

The keys are those of the original tool: `name`, `hostname`, `port`, `localPort`, `cwd`, `connectedAt`. Of
these only `port` is indispensable. Ours come on top: `id`, `version`, `heartbeatAt`, `transport`.
"""

import dataclasses
import json
import re
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from opencode_mcp import Endpoint, clean_line

SUFFIX = ".json"

_MUST_BE = {
    "port": "a whole number from 1 to 65535",
    "name": "1 to 200 characters of text, none of them a control or invisible character",
    "hostname": "one line of at most 255 characters",
    "cwd": "one line of at most 4096 characters",
    "id": "a line of 1 to 512 characters",
}
_NAMES_TRIED = 1000
_NAME_LIMIT = 200
_FACTS_KEPT = 16
_SECRET = re.compile("pass|secret|token|credential|auth|key", re.IGNORECASE)
_MEND = "correct the file, or remove it"
_KEY_OF = {"url": "port", "directory": "cwd"}


class UnusableError(Exception):
    """A file that is no usable registration; `str(error)` says why, without naming the file.

    Attributes:
        unfinished: Whether it may just be half-written, so that another look is worthwhile.
    """

    def __init__(self, reason: str, *, unfinished: bool = False) -> None:
        super().__init__(reason)
        self.unfinished = unfinished


class _Strict(BaseModel):
    """Types only; what text may hold is checked by `Endpoint`, once for all transports."""

    model_config = ConfigDict(strict=True, extra="allow")

    port: Annotated[int, Field(ge=1, le=65535)]
    name: str | None = None
    hostname: str | None = None
    cwd: str | None = None
    id: object = None
    local_port: Annotated[object, Field(alias="localPort")] = None
    connected_at: Annotated[object, Field(alias="connectedAt")] = None
    heartbeat_at: Annotated[object, Field(alias="heartbeatAt")] = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """What a usable registration file says.

    Attributes:
        endpoint: What it says, as core wants it.
        explicit_id: Whether the id stands in the file, rather than being the file's name.
        connected_at: Seconds since the epoch, or 0 if the file does not say.
        heartbeat_at: The same for its latest heartbeat.
    """

    endpoint: Endpoint
    explicit_id: bool
    connected_at: float
    heartbeat_at: float

    @property
    def port(self) -> int:
        """The port on the machine of the registry."""
        return int(self.endpoint.url.rpartition(":")[2])


def stem_of(name: str) -> str:
    """The part before `.json` of the file name for an instance called `name`: plain ASCII, safe anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:200].strip("-._") or "instance"


def numbered(name: str, file_name: str) -> str:
    """What to call the instance `name` in `file_name`: the original tool wants a name for each file."""
    number = file_name.removesuffix(SUFFIX).removeprefix(stem_of(name))
    return f"{name[: _NAME_LIMIT - len(number)]}{number}"


def file_names(stem: str) -> Iterator[str]:
    """The names for a registration file, in the order in which they are tried until one is free."""
    yield stem + SUFFIX
    for number in range(2, _NAMES_TRIED):
        yield f"{stem}-{number}{SUFFIX}"


def parse(content: bytes, stem: str, *, vouched: bool = False) -> Registration:
    """Read the content of a registration file.

    Args:
        content: The bytes of the file, of bounded size.
        stem: The file's name without `.json`: the id, and the name, of an instance that states none.
        vouched: Whether only the user or root can have written it.

    Raises:
        UnusableError: If it is not a registration, or one that cannot be used.
    """
    try:
        found = _Strict.model_validate_json(content.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        raise _unusable(error) from None
    explicit = _usable_id(found.id)
    connected_at, shown = _moment(found.connected_at)
    labels: dict[str, str] = {}
    if isinstance(found.local_port, int) and 0 < found.local_port < 65536:
        labels["localPort"] = str(int(found.local_port))
    if shown:
        labels["connectedAt"] = shown
    labels.update(_further(found.model_extra or {}))
    try:
        endpoint = Endpoint(
            id=explicit or stem,
            name=stem if found.name is None else found.name,
            url=f"http://127.0.0.1:{found.port}",
            hostname=found.hostname or "",
            directory=found.cwd or "",
            labels=labels,
            vouched=vouched,
        )
    except ValidationError as error:
        raise _unusable(error) from None
    return Registration(
        endpoint=endpoint,
        explicit_id=explicit is not None,
        connected_at=connected_at,
        heartbeat_at=_moment(found.heartbeat_at)[0],
    )


def _further(keys: Mapping[str, object]) -> dict[str, str]:
    """Keep what else stands in the file as facts to show: plain values, and nothing that may be a secret."""
    facts: dict[str, str] = {}
    for key, value in keys.items():
        plain = isinstance(value, str | int | float)
        name, shown = clean_line(key, 64), clean_line(str(value), 200) if plain else ""
        if name and shown and not _SECRET.search(key) and len(facts) < _FACTS_KEPT:
            facts[name] = shown
    return facts


def _usable_id(value: object) -> str | None:
    if not isinstance(value, str) or not 1 <= len(value) <= 512 or clean_line(value, 512) != value:
        return None
    return value


def _moment(value: object) -> tuple[float, str]:
    """Read `connectedAt`: ISO 8601 as the original writes, or milliseconds since the epoch."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            moment = datetime.fromtimestamp(value / 1000, UTC)
        else:
            return 0.0, ""
        return moment.timestamp(), iso(moment)
    except (ValueError, OverflowError, OSError):
        return 0.0, ""


def iso(moment: datetime) -> str:
    """Write a moment as the original does: UTC, milliseconds, `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unusable(error: ValidationError) -> UnusableError:
    problem = error.errors(include_url=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        return UnusableError(f"it is not JSON ({problem['msg']}); {_MEND}", unfinished=True)
    if not problem["loc"]:
        return UnusableError(f"it is not a JSON object; {_MEND}")
    key = _KEY_OF.get(str(problem["loc"][0]), str(problem["loc"][0]))
    if problem["type"] == "missing":
        return UnusableError(f'"{key}" is missing; it must be {_MUST_BE[key]}; {_MEND}')
    shown = clean_line(repr(problem["input"]), 60)
    return UnusableError(f'"{key}" must be {_MUST_BE.get(key, "plain text")}, not {shown}; {_MEND}')


def serialise(
    endpoint: Endpoint,
    *,
    file_name: str,
    port: int,
    local_port: int | None = None,
    connected_at: datetime,
    heartbeat_at: datetime,
    indent: int | None = 2,
) -> str:
    """Write the registration of `endpoint`, readable for the original tool too.

    Args:
        endpoint: What to register.
        file_name: The name of the file it is for.
        port: The port on the machine of the registry.
        local_port: The port on the instance's own machine, if that is another one.
        connected_at: Since when it has been announced.
        heartbeat_at: Now.
        indent: Spaces; None for everything in one line.

    Returns:
        JSON, in ASCII; it begins with the id, as `id_prefix` says.
    """
    label = endpoint.labels.get("localPort", "")
    content: dict[str, Any] = {
        "id": endpoint.id,
        "name": numbered(endpoint.name, file_name),
        "hostname": endpoint.hostname or socket.gethostname(),
        "port": port,
        "localPort": local_port or (int(label) if label.isdecimal() else port),
        "cwd": endpoint.directory,
        "connectedAt": iso(connected_at),
        "heartbeatAt": iso(heartbeat_at),
        "transport": "local-relay",
    }
    if version := endpoint.labels.get("version"):
        content["version"] = version
    return json.dumps(content, indent=indent)


def id_prefix(instance_id: str) -> str:
    """How a registration in one line begins; no other id's does."""
    return json.dumps({"id": instance_id})[:-1] + ","
