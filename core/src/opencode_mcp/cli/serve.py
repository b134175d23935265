"""`opencode-mcp` without arguments: the MCP server on stdio, as a client's configuration starts it."""

import gc
import sys
from typing import NoReturn

import anyio

from opencode_mcp.errors import OpenCodeMCPError
from opencode_mcp.mcp.server import create_server
from opencode_mcp.mcp.stdio import serve_stdio
from opencode_mcp.runtime import Runtime

_TO_A_PERSON = """\
opencode-mcp is an MCP server: a chat client starts it and talks to it over stdin and stdout. To add it:

  Claude Code      claude mcp add opencode -- opencode-mcp
  most others      {"mcpServers": {"opencode": {"command": "opencode-mcp"}}}

From a shell: opencode-mcp instances | send | read | transports (opencode-mcp --help tells more).
Serving on this terminal now; Ctrl-C ends it.
"""


def serve() -> None:
    """Serve until the client goes away."""
    try:
        runtime = Runtime()
    except OpenCodeMCPError as error:
        give_up(error)
    if sys.stdin.isatty():
        sys.stderr.write(_TO_A_PERSON)
    server = create_server(runtime.fleet, runtime.settings)
    gc.enable()
    gc.freeze()
    anyio.run(serve_stdio, server)


def give_up(error: OpenCodeMCPError) -> NoReturn:
    """Say on stderr what cannot be done, and end with 2."""
    sys.stderr.write(f"opencode-mcp: {error}\n")
    raise SystemExit(2)
