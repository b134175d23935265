"""Serves MCP over stdin and stdout, and ends cleanly and in bounded time on EOF and on signals."""

import os
import signal
import sys
import threading
from typing import NoReturn

import anyio
from anyio.abc import TaskStatus
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server

from opencode_mcp.conversation import Conversation

_LEAVE_SECONDS = 5.0
_TELL_SECONDS = 1.0


class Leaving:
    """The end of this process, which must come within seconds whatever the clean-up of plugins does.

    It is never called off: Python itself waits for every worker thread before it ends, and one that hangs
    in a dead file system cannot be interrupted.
    """

    def __init__(self) -> None:
        self._code = 0
        self._bound: threading.Timer | None = None

    def begin(self, code: int = 0) -> None:
        """Leave the process time to end by itself; then end it with `code`. The first call counts."""
        if self._bound is None:
            self._code = code
            self._bound = threading.Timer(_LEAVE_SECONDS, self._strike)
            self._bound.daemon = True
            self._bound.start()

    def end(self) -> NoReturn:
        """End the process, now that everything is closed."""
        sys.stderr.flush()
        os._exit(self._code)

    def _strike(self) -> NoReturn:
        # In a thread of its own, since nobody may be reading stderr.
        telling = threading.Thread(target=_tell, daemon=True)
        telling.start()
        telling.join(_TELL_SECONDS)
        os._exit(self._code)


def _tell() -> None:
    sys.stderr.write(
        f"opencode-mcp: Cleaning up took more than {_LEAVE_SECONDS:g} s, so the process was ended without.\n"
    )
    sys.stderr.flush()


async def serve_stdio(server: MCPServer[Conversation], leaving: Leaving) -> None:
    """Serve until stdin ends (returns) or SIGINT or SIGTERM arrives (ends the process, after clean-up).

    The SDK reads stdin in a thread that nothing can interrupt, so after a signal the process is ended
    here, once tools and lifespan are closed: with 0 for SIGTERM, as a service manager expects, else 130.

    Args:
        server: What to serve.
        leaving: Told of a signal; it may then end this process. Of EOF the server's lifespan must tell it.
    """
    lowlevel = server._lowlevel_server  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - SDK 2.3 has no other
    received = False
    async with anyio.create_task_group() as tasks:

        async def end_on_signal(task_status: TaskStatus[None]) -> None:
            nonlocal received
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                task_status.started()
                async for number in signals:
                    received = True
                    leaving.begin(0 if number == signal.SIGTERM else 130)
                    tasks.cancel_scope.cancel()
                    return

        if sys.platform != "win32":  # asyncio has no signal handlers there
            # Before anybody reads stdin: asyncio's own SIGINT would wait for that thread for good.
            await tasks.start(end_on_signal)
        try:
            async with stdio_server() as (reading, writing):
                try:
                    await lowlevel.run(reading, writing, lowlevel.create_initialization_options())
                finally:
                    if received:
                        leaving.end()
        finally:
            tasks.cancel_scope.cancel()
