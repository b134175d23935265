"""Our server as a client's configuration starts it: a process of its own, spoken to over stdin and stdout."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from local_relay.relay_parts import register
from opencode_mcp.testing import FakeOpenCode
from support.command import MODULE, Command

_EXIT_SECONDS = 30


class Wire:
    """Raw JSON-RPC to a running server.

    Attributes:
        process: The server.
        messages: Everything it sent, in order.
        junk: Lines on its stdout that are no JSON-RPC.
        out: Its stdout so far.
        err: Its stderr so far.
    """

    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process
        self.messages: list[dict[str, Any]] = []
        self.junk: list[bytes] = []
        self.out, self.err = bytearray(), bytearray()
        self._asked = 0
        self._arrived = anyio.Event()

    async def start(self, method: str, params: Mapping[str, Any]) -> int:
        """Send a request and return its id."""
        self._asked += 1
        await self.write({"jsonrpc": "2.0", "id": self._asked, "method": method, "params": params})
        return self._asked

    async def answer(self, request_id: int) -> dict[str, Any]:
        """Wait for the answer to a request."""
        return (await self.until(lambda message: message.get("id") == request_id))["result"]

    async def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return await self.answer(await self.start(method, params))

    async def initialize(self) -> dict[str, Any]:
        """Do the handshake of the legacy protocol."""
        client = {"name": "a test", "version": "1"}
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        result = await self.ask("initialize", params)
        await self.write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return result

    async def start_tool(self, name: str, **arguments: Any) -> int:
        """Call a tool, asking for progress, and return the request's id."""
        meta = {"progressToken": "progress"}
        return await self.start("tools/call", {"name": name, "arguments": arguments, "_meta": meta})

    async def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        return await self.answer(await self.start_tool(name, **arguments))

    async def until_progress(self, message: str) -> None:
        """Wait for a progress notification that says this."""
        await self.until(lambda sent: sent.get("params", {}).get("message") == message)

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a message, which may have come already."""
        with anyio.fail_after(_EXIT_SECONDS):
            while True:
                for message in self.messages:
                    if wanted(message):
                        return message
                await self._arrived.wait()

    async def write(self, message: Any) -> None:
        assert self.process.stdin
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        await self.process.stdin.send(line + b"\n")

    async def close_stdin(self) -> None:
        assert self.process.stdin
        await self.process.stdin.aclose()

    async def exit_code(self, seconds: float = _EXIT_SECONDS) -> int:
        """Wait for the end of the process and of its output."""
        with anyio.fail_after(seconds):
            return await self.process.wait()

    async def read_stdout(self) -> None:
        assert self.process.stdout
        rest = b""
        with suppress(anyio.ClosedResourceError):  # by a test that plays a vanished client
            async for chunk in self.process.stdout:
                self.out += chunk
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)
        self.junk += [rest] if rest else []

    async def read_stderr(self) -> None:
        assert self.process.stderr
        async for chunk in self.process.stderr:
            self.err += chunk

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, dict) and message.get("jsonrpc") == "2.0":
            self.messages.append(message)
            self._arrived.set()
            self._arrived = anyio.Event()
        else:
            self.junk.append(line)


@asynccontextmanager
async def serving(command: Command, **variables: str) -> AsyncGenerator[Wire]:
    """Run the server; it is killed if it still runs at the end."""
    async with await anyio.open_process(
        MODULE, stderr=subprocess.PIPE, cwd=command.home, env=command.environment(**variables)
    ) as process:
        wire = Wire(process)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.read_stdout)
            tasks.start_soon(wire.read_stderr)
            try:
                yield wire
            finally:
                if process.returncode is None:
                    process.kill()


@asynccontextmanager
async def client_of(command: Command, mode: str = "auto", **variables: str) -> AsyncGenerator[Client]:
    """Connect the official client to the server over stdio; the server's stderr goes to `server.log`.

    Args:
        command: Where it runs.
        mode: `auto` for the modern protocol, `legacy` for the handshake.
        **variables: Its environment.
    """
    program, *rest = MODULE
    arguments: list[str] = [*rest]
    parameters = StdioServerParameters(
        command=program, args=arguments, env=command.environment(**variables), cwd=command.home
    )
    log = await anyio.to_thread.run_sync(lambda: (command.home / "server.log").open("a"))
    try:
        async with Client(stdio_client(parameters, errlog=log), mode=mode) as client:
            yield client
    finally:
        log.close()


@asynccontextmanager
async def registered(command: Command, fake: FakeOpenCode, name: str = "laptop-shop") -> AsyncGenerator[Path]:
    """Serve a fake in this process and register it; yields the registration file."""
    async with fake.serve():
        yield announce(command, name, fake.port)


def announce(command: Command, name: str, port: int, **more: Any) -> Path:
    """Write a registration file."""
    command.registry.mkdir(mode=0o700, exist_ok=True)
    return register(command.registry, name, name=name, port=port, localPort=port, **more)


@asynccontextmanager
async def fleet_process(command: Command, count: int, hang: int = 0) -> AsyncGenerator[anyio.abc.Process]:
    """Run fakes in one other process, registered as `fake-000` and so on; `hang` of them never answer."""
    arguments = ("--count", str(count), "--hang", str(hang), "--registry", str(command.registry))
    program = (sys.executable, "-m", "opencode_mcp.testing.fleet", *arguments)
    environment = command.environment()
    async with await anyio.open_process(program, stderr=None, env=environment) as process:
        try:
            assert process.stdout
            with anyio.fail_after(30):
                assert await process.stdout.receive() == b"ready\n"
            yield process
        finally:
            if process.returncode is None:
                process.kill()
