"""A transport that publishes what stands in a file: core, told of as many instances as mdns finds by itself.

The floor for the memory of mdns; BENCH_ENDPOINTS names the file, which holds endpoints as JSON.
"""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import TypeAdapter

from opencode_mcp import Endpoint, Settings, Transport, TransportPlugin, hookimpl


class Constant(Transport):
    """Publishes what it was told."""

    async def discover(self) -> Sequence[Endpoint]:
        """Return it."""
        content = Path(os.environ["BENCH_ENDPOINTS"]).read_bytes()  # noqa: ASYNC240 - once, and small
        return TypeAdapter(list[Endpoint]).validate_json(content)


@asynccontextmanager
async def _open(settings: Settings) -> AsyncGenerator[Transport]:
    yield Constant()


@hookimpl
def opencode_mcp_transports() -> Sequence[TransportPlugin[Settings]]:
    """Describe the transport to core."""
    return [TransportPlugin(name="constant", summary="Endpoints from a file", settings=Settings, open=_open)]
