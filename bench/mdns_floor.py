"""The least that finds services: python-zeroconf alone, which asks for names, then for addresses.

`mdns_floor.py COUNT` prints a line of JSON whenever a service is resolved and at least COUNT are: `[when,
when, [id, …]]`, in nanoseconds of the monotonic clock. It goes on until it is ended.
"""

import asyncio
import json
import sys
import time

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TYPES = ["_opencode._tcp.local.", "_http._tcp.local."]


async def main(count: int) -> None:
    """Watch."""
    found: dict[str, str] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def resolve(zeroconf: Zeroconf, type_: str, name: str) -> None:
        info = AsyncServiceInfo(type_, name)
        if not await info.async_request(zeroconf, 3_000) or not info.parsed_addresses():
            return
        found[name] = (info.properties[b"id"] or b"").decode()
        if len(found) >= count:
            now = time.monotonic_ns()
            print(json.dumps([now, now, list(found.values())]), flush=True)

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            found.pop(name, None)
        elif state_change is ServiceStateChange.Added:
            task = asyncio.ensure_future(resolve(zeroconf, service_type, name))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    zeroconf = AsyncZeroconf(ip_version=IPVersion.All)
    AsyncServiceBrowser(zeroconf.zeroconf, TYPES, handlers=[heard])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
