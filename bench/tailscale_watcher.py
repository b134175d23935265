"""Finds instances as the MCP server does: through the plugin.

`tailscale_watcher.py COUNT` prints a line of JSON for every publication of at least COUNT instances: `[now,
began, [node id, …], most]`, the first two in nanoseconds of the monotonic clock; `began` is when it began to
watch, `most` how many TCP connections it had at once until now. It goes on until it is ended.
"""

# ruff: noqa: E402 - garbage collection is off until the imports are done, as in opencode-mcp itself
import gc

gc.disable()

import json
import sys
import time
from collections.abc import Sequence

import anyio

from opencode_mcp import Endpoint
from opencode_mcp_tailscale import opencode_mcp_transports
from tailscale_counting import Counting


async def main(count: int) -> None:
    """Watch."""
    began = 0
    connections = Counting()

    def publish(endpoints: Sequence[Endpoint]) -> None:
        if len(endpoints) >= count:
            found = [one.id.partition("/")[0] for one in endpoints]
            print(json.dumps([time.monotonic_ns(), began, found, connections.most]), flush=True)

    (plugin,) = opencode_mcp_transports()
    async with plugin.open(plugin.settings()) as transport:
        began = time.monotonic_ns()
        await transport.watch(publish)


if __name__ == "__main__":
    gc.enable()
    gc.freeze()
    anyio.run(main, int(sys.argv[1]))
