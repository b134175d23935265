"""The smallest possible MCP server, without a single tool: the floor for start-up and memory."""

from mcp.server import MCPServer

MCPServer("floor").run("stdio")
