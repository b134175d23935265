"""The processes of a benchmark: simulated servers, their registrations, MCP servers with a client each."""

import dataclasses
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import psutil
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import CallToolResult

HERE = Path(__file__).parent
OURS = (str(Path(sys.executable).with_name("opencode-mcp")),)
SMALLEST = (sys.executable, str(HERE / "floor.py"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulated:
    """A process with simulated OpenCode servers."""

    process: Process
    ports: Sequence[int]
    _answers: BufferedByteReceiveStream

    async def ask(self, question: str) -> Any:
        """Put a question that `simulated.py` knows."""
        assert self.process.stdin is not None
        await self.process.stdin.send(question.encode() + b"\n")
        return json.loads(await self._answers.receive_until(b"\n", 1 << 24))


@asynccontextmanager
async def simulated(count: int, hanging: int = 0, generation: int = 1) -> AsyncGenerator[Simulated]:
    """Run a process with `count` simulated servers, the last `hanging` of which never answer."""
    command = [sys.executable, str(HERE / "simulated.py"), str(count), str(hanging), str(generation)]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            assert process.stdout is not None
            answers = BufferedByteReceiveStream(process.stdout)
            ports = json.loads(await answers.receive_until(b"\n", 1 << 20))
            yield Simulated(process=process, ports=ports, _answers=answers)
        finally:
            if process.returncode is None:
                process.kill()


class Registry:
    """A registry directory that ends with the benchmark."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700)
        self.environment = {"RELAY_REGISTRY_DIR": str(directory), "TRANSPORT": "local-relay"}

    def register(self, *ports: int, prefix: str = "project") -> None:
        """Register servers as the original tool does, each file complete from the start."""
        for number, port in enumerate(ports):
            name = f"{prefix}-{number:03}"
            unfinished = self.directory / f"{name}.tmp"
            unfinished.write_text(
                json.dumps(
                    {
                        "name": name,
                        "hostname": socket.gethostname(),
                        "port": port,
                        "localPort": port,
                        "cwd": f"/srv/{name}",
                        "connectedAt": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    }
                )
            )
            unfinished.chmod(0o600)
            unfinished.rename(self.directory / f"{name}.json")

    def withdraw(self, prefix: str) -> None:
        """Remove the registrations with this prefix."""
        for path in self.directory.glob(f"{prefix}-*.json"):
            path.unlink()


@asynccontextmanager
async def workplace() -> AsyncGenerator[tuple[Path, Registry]]:
    """Make a directory for temporary files, and a registry in it."""
    with TemporaryDirectory(prefix="opencode-mcp-bench-") as made:
        yield Path(made), Registry(Path(made) / "registry")


@dataclasses.dataclass(frozen=True)
class Connected:
    """An MCP server in a process of its own, and the official client that started it."""

    client: Client
    process: psutil.Process

    async def instances(self) -> CallToolResult:
        """Call the tool `instances`."""
        result = await self.client.call_tool("instances")
        assert not result.is_error, result
        return result

    async def rows(self) -> list[dict[str, Any]]:
        """Return the instances as they are listed now."""
        content: dict[str, Any] = (await self.instances()).structured_content or {}
        return content["instances"]

    async def all_online(self, count: int, seconds: float = 60) -> None:
        """Wait until `count` instances are online and all that is known of each has been asked."""
        with anyio.fail_after(seconds):
            while True:
                rows = await self.rows()
                if len(rows) == count and all(row["activity"] for row in rows):
                    return
                await anyio.sleep(0.2)


@asynccontextmanager
async def connected(command: Sequence[str], environment: dict[str, str]) -> AsyncGenerator[Connected]:
    """Start an MCP server and connect to it; it is gone when the block ends."""
    me = psutil.Process()
    before = set(me.children())
    parameters = StdioServerParameters(
        command=command[0], args=list(command[1:]), env={**os.environ, **environment}
    )
    async with Client(stdio_client(parameters)) as client:
        (process,) = set(me.children()) - before
        yield Connected(client, process)
