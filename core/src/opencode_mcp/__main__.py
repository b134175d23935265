"""`python -m opencode_mcp`: the same as the command `opencode-mcp`."""

from opencode_mcp.cli import main

main()
