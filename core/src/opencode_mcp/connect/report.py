"""What `opencode-connected status`, `cleanup` and `sessions` have in common."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from opencode_mcp.connect.selection import select
from opencode_mcp.errors import StartError, ours
from opencode_mcp.model import Endpoint
from opencode_mcp.state.records import Record
from opencode_mcp.text import clean_line
from opencode_mcp.transport import Transport

_SHOWN = 1000


def endpoint_of(record: Record) -> Endpoint:
    """Return what was announced of an instance of this machine."""
    return Endpoint(id=record.id, name=record.name, url=record.url, directory=record.directory, vouched=True)


@asynccontextmanager
async def opened(name: str, place: str | None = None) -> AsyncGenerator[Transport]:
    """Open the transport called `name`.

    Args:
        name: What `TRANSPORT` calls it.
        place: Where it has to announce; None for anywhere.

    Raises:
        OpenCodeMCPError: It is missing, broken or misconfigured, or announces elsewhere.
    """
    selection = select([name])
    if place is not None and selection.places[name] != place:
        raise StartError(
            f"{name} announced it with other settings than those of this shell. Repeat this with the "
            "variables that it was started with; its log begins with what they said."
        )
    ((plugin, settings),) = selection.transports
    async with plugin.open(settings) as transport:
        yield transport


def sentence(error: Exception) -> str:
    """Return what to tell of the failure of foreign code."""
    known = ours(error)
    return clean_line(str(known) if known else f"it failed with {type(error).__name__}: {error}", _SHOWN)


def show(depth: int, about: str, mark: str, text: str) -> None:
    """Print a line."""
    print(f"{'  ' * depth}{clean_line(about, 200):<26} {mark:<7} {clean_line(text, _SHOWN)}".rstrip())
