"""The least that finds instances on a tailnet: asyncio alone, which is told beforehand who never answers.

`tailscale_floor.py COUNT DROPPING`, where DROPPING is a file with those addresses as JSON, prints what
`tailscale_watcher.py` does. It reads the status at the start, at each line of the bus and once a minute, asks
whoever is new, 32 at once, and goes on asking each machine about as often as the plugin does. It checks
nothing of what it is told.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tailscale_counting import Counting

HOST = "local-tailscaled.sock"
PORTS = (14_096, 4096)
AT_ONCE = 32
EACH_SECOND = 10 + 7.5
"""Questions, to the 50 that have an index too: see `rounds.py`."""
MASK = 36_866
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Floor:
    """Finds them.

    Args:
        socket: Where tailscaled is.
        count: How many there are at least.
        dropping: Who never answers.
    """

    def __init__(self, socket: str, count: int, dropping: frozenset[str]) -> None:
        self._socket = socket
        self._count = count
        self._dropping = dropping
        self._free = asyncio.Semaphore(AT_ONCE)
        self._machines: dict[str, tuple[str, str]] = {}
        self._found: dict[str, list[Any]] = {}
        self._dirty = asyncio.Event()
        self._own = ""
        self._began = 0
        self._connections = Counting()

    async def run(self) -> None:
        """Watch."""
        self._began = time.monotonic_ns()
        bus = asyncio.create_task(self._follow())
        await self._read()
        idle = asyncio.create_task(self._go_on())
        while not bus.done() and not idle.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), 60)
            self._dirty.clear()
            await self._read()

    async def _follow(self) -> None:
        reader, writer = await self._asked("GET", f"watch-ipn-bus?mask={MASK}")
        await reader.readline()
        while line := await reader.readline():
            if b"PeerChangedPatch" in line:
                self._dirty.set()
        writer.close()

    async def _read(self) -> None:
        reader, writer = await self._asked("GET", "status", "Connection: close\r\n")
        body = (await reader.read(-1)).partition(b"\r\n\r\n")[2]
        writer.close()
        status = json.loads(body)
        self._own = status["TailscaleIPs"][0] if status["TUN"] else ""
        new: list[str] = []
        for peer in status["Peer"].values():
            address = peer["TailscaleIPs"][0]
            if peer["Online"] and address not in self._machines and address not in self._dropping:
                self._machines[address] = (peer["ID"], peer["DNSName"])
                new.append(address)
        await asyncio.gather(*(self._ask(address) for address in new))

    async def _ask(self, address: str, port: int = PORTS[0]) -> None:
        async with self._free:
            connected = await self._connect(address, port)
            if connected is None:
                return
            reader, writer = connected
            known, name = self._machines[address]
            request = f"GET /.well-known/opencode HTTP/1.1\r\nHost: {name.rstrip('.')}:{port}\r\n"
            writer.write(f"{request}Connection: close\r\n\r\n".encode())
            body = (await reader.read(-1)).partition(b"\r\n\r\n")[2]
            writer.close()
        found = json.loads(body)["instances"]
        if found and self._found.get(known) != found:
            self._found[known] = found
            if len(self._found) >= self._count:
                told = [time.monotonic_ns(), self._began, list(self._found), self._connections.most]
                print(json.dumps(told), flush=True)

    async def _connect(self, address: str, port: int) -> Streams | None:
        if self._own:
            try:
                return await asyncio.open_connection(address, port, local_addr=(self._own, 0))
            except OSError:
                return None
        headers = f"Connection: upgrade\r\nUpgrade: ts-dial\r\nDial-Host: {address}\r\nDial-Port: {port}\r\n"
        reader, writer = await self._asked("POST", "dial", f"{headers}Dial-Network: tcp\r\n")
        if b" 101 " in await reader.readuntil(b"\r\n\r\n"):
            return reader, writer
        writer.close()
        return None

    async def _asked(self, method: str, path: str, headers: str = "") -> Streams:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=1 << 26)
        writer.write(f"{method} /localapi/v0/{path} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode())
        return reader, writer

    async def _go_on(self) -> None:
        for port in itertools.cycle(PORTS):
            for address in list(self._machines):
                await asyncio.sleep(1 / EACH_SECOND)
                await self._ask(address, port)


if __name__ == "__main__":
    drops: list[str] = json.loads(Path(sys.argv[2]).read_text())
    asyncio.run(Floor(os.environ["TAILSCALE_SOCKET"], int(sys.argv[1]), frozenset(drops)).run())
