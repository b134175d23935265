"""Serves MCP over stdin and stdout, and ends cleanly on EOF and on signals."""

import os
import signal
import sys

import anyio
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server

from opencode_mcp.conversation import Conversation


async def serve_stdio(server: MCPServer[Conversation]) -> None:
    """Serve until stdin ends (returns) or SIGINT or SIGTERM arrives (ends the process, after clean-up).

    The SDK reads stdin in a thread that nothing can interrupt, so after a signal the process is ended
    here, once tools and lifespan are closed: with 0 for SIGTERM, as a service manager expects, else 130.
    """
    lowlevel = server._lowlevel_server  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - SDK 2.3 has no other
    received: list[int] = []
    async with anyio.create_task_group() as tasks:

        async def end_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for number in signals:
                    received.append(number)
                    tasks.cancel_scope.cancel()
                    return

        if sys.platform != "win32":  # asyncio has no signal handlers there
            tasks.start_soon(end_on_signal)
        try:
            async with stdio_server() as (reading, writing):
                try:
                    await lowlevel.run(reading, writing, lowlevel.create_initialization_options())
                finally:
                    if received:
                        sys.stderr.flush()
                        os._exit(0 if received[0] == signal.SIGTERM else 130)
        finally:
            tasks.cancel_scope.cancel()
