"""Finds services as the MCP server does: through the plugin, each asked over HTTP before it is published.

`mdns_watcher.py COUNT` prints a line of JSON for every publication of at least COUNT instances: `[published,
resolved, [id, …]]`, both in nanoseconds of the monotonic clock; `resolved` is when, of COUNT services, the
addresses were known. It goes on until it is ended.
"""

# ruff: noqa: E402 - garbage collection is off until the imports are done, as in opencode-mcp itself
import gc

gc.disable()

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import anyio
from zeroconf.asyncio import AsyncServiceInfo

from opencode_mcp import Endpoint
from opencode_mcp_mdns import MDnsSettings, opencode_mcp_transports, services
from opencode_mcp_mdns.advert import Advert
from opencode_mcp_mdns.network import Network


async def main(count: int) -> None:
    """Watch."""
    watched: Any = services
    read = watched.read
    names: set[str] = set()
    resolved = 0

    def noting(info: AsyncServiceInfo, network: Network, settings: MDnsSettings) -> Advert:
        nonlocal resolved
        advert: Advert = read(info, network, settings)
        if advert.places and info.name not in names:
            names.add(info.name)
            if len(names) == count:
                resolved = time.monotonic_ns()
        return advert

    def publish(endpoints: Sequence[Endpoint]) -> None:
        if len(endpoints) >= count:
            print(json.dumps([time.monotonic_ns(), resolved, [one.id for one in endpoints]]), flush=True)

    watched.read = noting
    (plugin,) = opencode_mcp_transports()
    async with plugin.open(plugin.settings()) as transport:
        await transport.watch(publish)


if __name__ == "__main__":
    gc.enable()
    gc.freeze()
    anyio.run(main, int(sys.argv[1]))
