"""The live picture: which instances there are, and how they stand, kept by their own event streams."""

from opencode_mcp.fleet.feed import Feed
from opencode_mcp.fleet.hub import Fleet
from opencode_mcp.fleet.monitor import Monitor

__all__ = ["Feed", "Fleet", "Monitor"]
