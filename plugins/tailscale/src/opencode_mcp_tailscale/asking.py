"""Asks a machine of the tailnet once: for its index, or whether an OpenCode answers at a port."""

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from enum import Enum

import anyio
import httpcore2
import httpx2

from opencode_mcp import OpenCodeMCPError, ProtocolError, Recognised, Route, UnreachableError, recognise
from opencode_mcp_tailscale.choosing import Candidate
from opencode_mcp_tailscale.index import MOST_BYTES, PATH, Entry, read_index
from opencode_mcp_tailscale.localapi import RefusedError
from opencode_mcp_tailscale.reach import Reach, host_header, origin, over

_ANSWER_SECONDS = 2.0
_LATE = 1.25
_OK, _FORBIDDEN = 200, 403


class Outcome(Enum):
    """What came of a question."""

    FOUND = "found"
    NOBODY = "nobody"
    """It was refused: nobody listens there."""
    SILENCE = "silence"
    """Nobody answered, not even to refuse: the machine is away, or the tailnet's rules drop what is sent."""
    OTHER = "other"
    """Somebody else answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a machine answered.

    Attributes:
        outcome: What came of it.
        entries: The instances; of a port it is one, without an id, and with the path `/`.
        problem: Why it is neither an index nor an OpenCode that answers, as a sentence.
    """

    outcome: Outcome
    entries: Sequence[Entry] = ()
    problem: str = ""


async def ask_index(reach: Reach, candidate: Candidate, port: int, patience: float) -> Answer:
    """Ask a machine for its index; `patience` is how many seconds a connection may take."""
    try:
        stream = await _connected(reach, candidate, port, patience)
    except RefusedError:
        return Answer(outcome=Outcome.NOBODY)
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
        return Answer(outcome=Outcome.SILENCE)
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            async with _closed(stream), aclosing(over(stream)) as transport:
                return Answer(outcome=Outcome.FOUND, entries=await _index(transport, candidate, port))
    except TimeoutError:
        return Answer(outcome=Outcome.SILENCE, problem="It did not answer at the index port in time.")
    except httpx2.HTTPError:
        return Answer(outcome=Outcome.OTHER, problem="What answers at the index port does not speak HTTP.")
    except ProtocolError as error:
        return Answer(outcome=Outcome.OTHER, problem=str(error))


async def ask_port(reach: Reach, candidate: Candidate, port: int, patience: float, path: str = "/") -> Answer:
    """Ask whether an OpenCode answers at a port of a machine, behind a path."""
    try:
        stream = await _connected(reach, candidate, port, patience)
    except RefusedError:
        return Answer(outcome=Outcome.NOBODY)
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
        return Answer(outcome=Outcome.SILENCE)
    base, headers = origin(candidate, port) + path.rstrip("/"), host_header(candidate, port)
    try:
        async with _closed(stream):
            route = Route(base_url=base, headers=headers, transport=over(stream))
            found = await recognise(route, seconds=_ANSWER_SECONDS)
    except UnreachableError as error:
        return Answer(outcome=Outcome.SILENCE, problem=str(error))
    except OpenCodeMCPError as error:
        return Answer(outcome=Outcome.OTHER, problem=str(error))
    return Answer(outcome=Outcome.FOUND, entries=[found_at(path, found)])


def found_at(path: str, found: Recognised) -> Entry:
    """Return an OpenCode that answered, as if it stood in an index."""
    folder = found.directory.replace("\\", "/").rstrip("/").rpartition("/")[2].strip()
    return Entry(id="", path=path, name=folder, version=found.version, guarded=found.guarded)


async def _connected(
    reach: Reach, candidate: Candidate, port: int, patience: float
) -> httpcore2.AsyncNetworkStream:
    """Open a connection; once more if this process was too busy to notice whether somebody answered."""
    began = anyio.current_time()
    try:
        return await reach.connect(candidate, port, patience)
    except httpcore2.ConnectTimeout:
        if anyio.current_time() - began < patience * _LATE:
            raise
    return await reach.connect(candidate, port, patience)


@asynccontextmanager
async def _closed(stream: httpcore2.AsyncNetworkStream) -> AsyncGenerator[None]:
    """Close a connection in the end, also if nothing was sent over it yet."""
    try:
        yield
    finally:
        with anyio.move_on_after(1, shield=True):
            await stream.aclose()


async def _index(transport: httpx2.AsyncBaseTransport, candidate: Candidate, port: int) -> Sequence[Entry]:
    headers = {
        **host_header(candidate, port),
        "Accept": "application/json",
        "Connection": "close",
    }
    request = httpx2.Request("GET", origin(candidate, port) + PATH, headers=headers)
    response = await transport.handle_async_request(request)
    try:
        if response.status_code != _OK:
            raise ProtocolError(_explained(response.status_code))
        body = b""
        async for part in response.aiter_raw():
            body += part
            if len(body) > MOST_BYTES:
                raise ProtocolError(f"Its index is larger than {MOST_BYTES // 1000} kB.")
        return read_index(body)
    finally:
        with anyio.move_on_after(1, shield=True):
            await response.aclose()


def _explained(status: int) -> str:
    if status == _FORBIDDEN:
        return "It does not tell you its instances: see TAILSCALE_ALLOW_USERS there."
    return f"It answers at the index port with HTTP status {status}."
