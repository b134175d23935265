"""What one does with instances: list, send, read, abort. MCP and the command line are two faces of it."""

from opencode_mcp.conversation.listening import Listener
from opencode_mcp.conversation.overview import overview
from opencode_mcp.conversation.results import InstanceRow, Overview, Reply, SaidMessage, Transcript
from opencode_mcp.conversation.talk import Conversation

__all__ = [
    "Conversation",
    "InstanceRow",
    "Listener",
    "Overview",
    "Reply",
    "SaidMessage",
    "Transcript",
    "overview",
]
