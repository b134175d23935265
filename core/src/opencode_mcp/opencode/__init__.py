"""The OpenCode HTTP API, and the only room that knows it."""

from opencode_mcp.opencode.api import OpenCode
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http, OpenCodeAuth, warm_up

__all__ = ["Http", "OpenCode", "OpenCodeAuth", "detect", "warm_up"]
