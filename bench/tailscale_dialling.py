"""What `dial` adds to a request: the same ones to one tiny server, through tailscaled and directly, in turns.

`tailscale_dialling.py serve` prints the port of the server, and ends with its stdin. `tailscale_dialling.py
ADDRESS PORT COUNT`, where tailscaled takes ADDRESS and PORT of the tailnet to PORT of this machine, prints
milliseconds as JSON: `{way: [each request, …]}`. The ways are `dial` and `direct`, either with `new`
connections or a `kept` one, and either by the plugin's own transport or, `least`, with asyncio alone.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping

import anyio
import anyio.to_thread
import httpx2

from opencode_mcp_tailscale.localapi import Dialling, LocalApi
from opencode_mcp_tailscale.settings import TailscaleSettings
from opencode_mcp_tailscale.through import Through, network_backend

_WARM_UP = 20
_KEEP_SECONDS = 60.0
_BODY = b'{"healthy": true, "version": "1.18.33"}'
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
_ANSWER = _HEAD + _BODY
_LEAST = b"GET / HTTP/1.1\r\nHost: tiny\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def serve() -> None:
    """Answer whatever is asked, until stdin ends."""
    server = await asyncio.start_server(_answer, "127.0.0.1", backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await anyio.to_thread.run_sync(sys.stdin.read, -1)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def measure(address: str, port: int, count: int) -> Mapping[str, list[float]]:
    """Ask in turns."""
    settings = TailscaleSettings()
    async with LocalApi(settings) as api:
        with_dial, without = Dialling(api), network_backend()
        url, here = f"http://{address}:{port}/", f"http://127.0.0.1:{port}/"
        async with (
            httpx2.AsyncClient(transport=Through(with_dial, keep_seconds=_KEEP_SECONDS)) as dialled_kept,
            httpx2.AsyncClient(transport=Through(without, keep_seconds=_KEEP_SECONDS)) as direct_kept,
            httpx2.AsyncClient(transport=Through(with_dial)) as dialled,
            httpx2.AsyncClient(transport=Through(without)) as direct,
        ):
            lines = {"dial": await _dialled(address, port), "direct": await _direct(port)}
            ways: dict[str, Callable[[], Awaitable[object]]] = {
                "dial new": lambda: dialled.get(url),
                "direct new": lambda: direct.get(here),
                "dial kept": lambda: dialled_kept.get(url),
                "direct kept": lambda: direct_kept.get(here),
                "dial new least": lambda: _once(lambda: _dialled(address, port)),
                "direct new least": lambda: _once(lambda: _direct(port)),
                "dial kept least": lambda: _ask(lines["dial"]),
                "direct kept least": lambda: _ask(lines["direct"]),
            }
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(_WARM_UP + count):
                for way, ask in ways.items() if turn % 2 else reversed(ways.items()):
                    began = time.perf_counter()
                    await ask()
                    if turn >= _WARM_UP:
                        taken[way].append((time.perf_counter() - began) * 1000)
            for _, writer in lines.values():
                writer.close()
            return taken


async def _direct(port: int) -> Streams:
    return await asyncio.open_connection("127.0.0.1", port)


async def _dialled(address: str, port: int) -> Streams:
    reader, writer = await asyncio.open_unix_connection(os.environ["TAILSCALE_SOCKET"])
    headers = f"Connection: upgrade\r\nUpgrade: ts-dial\r\nDial-Host: {address}\r\nDial-Port: {port}\r\n"
    writer.write(f"POST /localapi/v0/dial HTTP/1.1\r\nHost: local-tailscaled.sock\r\n{headers}\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def _once(connect: Callable[[], Awaitable[Streams]]) -> None:
    streams = await connect()
    await _ask(streams)
    streams[1].close()


async def _ask(streams: Streams) -> None:
    reader, writer = streams
    writer.write(_LEAST)
    await reader.readexactly(len(_ANSWER))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        anyio.run(serve)
    else:
        print(json.dumps(anyio.run(measure, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
