"""The model's face: an MCP server with the tools `instances`, `send` and `read`."""
