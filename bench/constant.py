"""The smallest MCP server whose `instances` returns a constant: the floor for the real one.

`constant.py FILE` serves the `CallToolResult` that stands in FILE as JSON.
"""

import sys
from pathlib import Path
from typing import Annotated

from mcp.server import MCPServer
from mcp_types import CallToolResult

from opencode_mcp.conversation import Overview

server = MCPServer("constant")
result = CallToolResult.model_validate_json(Path(sys.argv[1]).read_bytes())


@server.tool()
async def instances() -> Annotated[CallToolResult, Overview]:
    """Return the constant."""
    return result


server.run("stdio")
