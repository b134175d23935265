"""Services on one host of the benchmark's LAN, with an OpenCode, or what answers like one, behind each port.

`mdns_announcer.py ADDRESS COUNT HOW`, which ends with its stdin. HOW is

* `light`: announced all at once by python-zeroconf; the least that can stand for OpenCode answers, quickly.
* `full`: the same with a FakeOpenCode behind each port, which the MCP server can follow.
* `ours`: one, announced as `opencode-connected` does it. `alone`: one, announced by python-zeroconf.

It prints one line of JSON, `[when, {id: url}]`: for the first two when all are announced, for the others
right before they are, in nanoseconds of the monotonic clock.
"""

import asyncio
import functools
import ipaddress
import json
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from opencode_mcp import Endpoint
from opencode_mcp.testing import FakeFleet
from opencode_mcp_mdns import MDns, MDnsSettings
from opencode_mcp_mdns.composing import compose

ANYWHERE = "0.0.0.0"


@asynccontextmanager
async def light(count: int) -> AsyncGenerator[list[int]]:
    """Answer on that many ports as an OpenCode 1.x does, to the two questions that finding one takes."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                await asyncio.start_server(functools.partial(_answer, f"/srv/project-{number:03}"), ANYWHERE)
            )
            for number in range(count)
        ]
        yield [server.sockets[0].getsockname()[1] for server in servers]


async def _answer(directory: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    answers = {
        b"/global/health": {"healthy": True, "version": "1.18.33"},
        b"/path": {"directory": directory, "worktree": directory},
    }
    try:
        while True:
            asked = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
            said = json.dumps(answers[asked]).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ")
            writer.write(b"%d\r\n\r\n%s" % (len(said), said))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


@asynccontextmanager
async def full(count: int) -> AsyncGenerator[list[int]]:
    """Serve that many simulated OpenCodes."""
    fleet = FakeFleet(count)
    for fake in fleet.fakes:
        for number in range(20):
            fake.create_session(f"Mend what broke in release {number}")
    async with fleet.serve(ANYWHERE):
        yield [fake.port for fake in fleet.fakes]


def endpoints(address: str, ports: Sequence[int]) -> list[Endpoint]:
    """Describe what serves on these ports as `opencode-connected` would."""
    name = f"host-{address.rpartition('.')[2]}"
    return [
        Endpoint(
            id=secrets.token_hex(16),
            name=f"{name}-project-{number:03}",
            url=f"http://{address}:{port}",
            hostname=name,
            directory=f"/srv/project-{number:03}",
            labels={"version": "1.18.33", "auth": "basic"},
        )
        for number, port in enumerate(ports)
    ]


def tell(served: Sequence[Endpoint]) -> None:
    """Print the moment and what is served."""
    print(json.dumps([time.monotonic_ns(), {one.id: one.url for one in served}]), flush=True)


async def register(services: Sequence[AsyncServiceInfo], *, probing: bool) -> AsyncZeroconf:
    """Announce services with python-zeroconf; returns when all has been sent."""
    zeroconf = AsyncZeroconf()
    # Returns, once it is decided what to send, what is to be awaited until that is sent.
    untyped: Any = zeroconf
    decided = [untyped.async_register_service(one, cooperating_responders=not probing) for one in services]
    await asyncio.gather(*await asyncio.gather(*decided))
    return zeroconf


async def main(address: str, count: int, how: str) -> None:
    """Serve and announce until stdin ends; then say goodbye."""
    async with (full if how == "full" else light)(count) as ports:
        served = endpoints(address, ports)
        services = [compose(one, [ipaddress.ip_address(address)], MDnsSettings()) for one in served]
        if how == "ours":
            async with anyio.create_task_group() as tasks:
                tell(served)
                await tasks.start(MDns(MDnsSettings()).announce, served[0])
                await anyio.to_thread.run_sync(sys.stdin.read, -1)
                tasks.cancel_scope.cancel()
            return
        if how == "alone":
            tell(served)
        zeroconf = await register(services, probing=how == "alone")
        if how != "alone":
            tell(served)
        await anyio.to_thread.run_sync(sys.stdin.read, -1)
        await zeroconf.async_unregister_all_services()
        await zeroconf.async_close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
