"""Asks a machine of the tailnet once: for its index, or whether an OpenCode answers at a port."""

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

import anyio
import httpcore2

from opencode_mcp import OpenCodeMCPError, ProtocolError, Recognised, Route, UnreachableError, recognise
from opencode_mcp_tailscale.choosing import Candidate
from opencode_mcp_tailscale.exchange import Exchange, TooMuchError
from opencode_mcp_tailscale.index import MOST_BYTES, PATH, Entry, read_index
from opencode_mcp_tailscale.localapi import RefusedError
from opencode_mcp_tailscale.reach import Reach, host_header, origin, over

_ANSWER_SECONDS = 2.0
_LATE = 1.25
_SIP_BYTES = 1024
_MOST_BYTES = 160 * 1024
"""Of what `recognise` asks, two answers of 64 KiB with their headers."""
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
            async with _closed(stream):
                return Answer(outcome=Outcome.FOUND, entries=await _index(stream, candidate, port))
    except TimeoutError:
        return Answer(outcome=Outcome.SILENCE, problem="It did not answer at the index port in time.")
    except TooMuchError as error:
        return Answer(outcome=Outcome.OTHER, problem=f"Its index {error}.")
    except (httpcore2.NetworkError, httpcore2.ProtocolError):
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
            route = Route(base_url=base, headers=headers, transport=over(_Sipped(stream)))
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
    """Open a connection; over the interface once more if this process was too busy to notice an answer.

    Who dials notices it all the same.
    """
    began = anyio.current_time()
    try:
        return await reach.connect(candidate, port, patience)
    except httpcore2.ConnectTimeout:
        if not reach.direct or anyio.current_time() - began < patience * _LATE:
            raise
    return await reach.connect(candidate, port, patience)


class _Sipped(httpcore2.AsyncNetworkStream):
    """A connection to a stranger: whatever it sends, the others get their turns, and it comes to an end."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = _MOST_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left <= 0:
            raise httpcore2.ReadError("It answers without end.")
        data = await self._stream.read(min(max_bytes, _SIP_BYTES), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@asynccontextmanager
async def _closed(stream: httpcore2.AsyncNetworkStream) -> AsyncGenerator[None]:
    """Close a connection in the end, also if nothing was sent over it yet."""
    try:
        yield
    finally:
        with anyio.move_on_after(1, shield=True):
            await stream.aclose()


async def _index(stream: httpcore2.AsyncNetworkStream, candidate: Candidate, port: int) -> Sequence[Entry]:
    exchange = Exchange(stream)
    headers = {"Accept": "application/json", "Connection": "close"}
    host = {"Host": origin(candidate, port).partition("//")[2], **host_header(candidate, port)}
    status, _ = await exchange.begin("GET", PATH, {**host, **headers})
    if status != _OK:
        raise ProtocolError(_explained(status))
    return read_index(await exchange.body(MOST_BYTES))


def _explained(status: int) -> str:
    if status == _FORBIDDEN:
        return "It does not tell you its instances: see TAILSCALE_ALLOW_USERS there."
    return f"It answers at the index port with HTTP status {status}."
