"""`opencode-mcp` without arguments: the MCP server on stdio, as a client's configuration starts it."""

import gc
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, redirect_stdout
from typing import Any, NoReturn

import anyio

from opencode_mcp.errors import OpenCodeMCPError
from opencode_mcp.fleet import Fleet
from opencode_mcp.mcp.server import create_server
from opencode_mcp.mcp.stdio import Leaving, serve_stdio
from opencode_mcp.runtime import Runtime

_TO_A_PERSON = """\
opencode-mcp is an MCP server: a chat client starts it and talks to it over stdin and stdout. To add it:

  Claude Code      claude mcp add opencode -- opencode-mcp
  most others      {"mcpServers": {"opencode": {"command": "opencode-mcp"}}}

From a shell: opencode-mcp instances | send | read | doctor (opencode-mcp --help tells more).
Serving on this terminal now; Ctrl-C ends it.
"""


def serve() -> None:
    """Serve until the client goes away."""
    if sys.stderr is None:  # closed, and the next file that is opened would take its place
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - stays open to the end
    for name, stream in (("stdin", sys.stdin), ("stdout", sys.stdout)):
        if stream is None:
            give_up(
                OpenCodeMCPError(
                    f"{name} is closed, so that no client can talk to this server. "
                    "Start it with both stdin and stdout connected."
                )
            )
    try:
        with redirect_stdout(sys.stderr):  # a plugin that prints while it is imported: stdout is MCP's
            runtime = Runtime()
    except OpenCodeMCPError as error:
        give_up(error)
    if sys.stdin.isatty():
        sys.stderr.write(_TO_A_PERSON)
    leaving = Leaving()

    @asynccontextmanager
    async def fleet() -> AsyncGenerator[Fleet]:
        async with runtime.fleet() as running:
            try:
                yield running
            finally:
                leaving.begin()  # on EOF; a signal has told it before

    server = create_server(fleet, runtime.settings)
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure"):
        # While the SDK serves, what plugins print goes to stderr; nothing of it may be left for afterwards.
        stdout.reconfigure(line_buffering=True)
    gc.enable()
    gc.freeze()
    anyio.run(serve_stdio, server, leaving)


def give_up(error: OpenCodeMCPError) -> NoReturn:
    """Say on stderr what cannot be done, and end with 2."""
    sys.stderr.write(f"opencode-mcp: {error}\n")
    raise SystemExit(2)
