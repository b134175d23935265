"""`python -m opencode_mcp.testing._announcer NAME ENDPOINT`: announces an instance until it is killed."""

import sys

import anyio
from anyio.abc import TaskStatus

from opencode_mcp.model import Endpoint
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import read_settings
from opencode_mcp.testing._announced import VISIBLE
from opencode_mcp.transport import Announcer


async def announce(name: str, endpoint: Endpoint) -> None:
    """Announce `endpoint` by the transport `name`, as the environment says; say so once it is visible."""
    (plugin,) = Plugins().load_transports([name])
    async with plugin.open(read_settings(plugin.settings)) as transport, anyio.create_task_group() as group:
        if not isinstance(transport, Announcer):
            raise TypeError(f"{name} does not announce.")
        await group.start(_announce, transport, endpoint)
        print(VISIBLE.decode(), flush=True)


async def _announce(transport: Announcer, endpoint: Endpoint, *, task_status: TaskStatus[None]) -> None:
    await transport.announce(endpoint, task_status=task_status)


if __name__ == "__main__":
    anyio.run(announce, sys.argv[1], Endpoint.model_validate_json(sys.argv[2]))
