"""For tests: an OpenCode server that does what the test says, and a whole fleet of them."""

from opencode_mcp.testing._faults import Fault
from opencode_mcp.testing._fleet import FakeFleet
from opencode_mcp.testing._store import Delta
from opencode_mcp.testing.fake import FakeOpenCode, Received
from opencode_mcp.testing.script import Ask, Gate, Question, Reply, SubAgent, ToolCall, echo

__all__ = [
    "Ask",
    "Delta",
    "FakeFleet",
    "FakeOpenCode",
    "Fault",
    "Gate",
    "Question",
    "Received",
    "Reply",
    "SubAgent",
    "ToolCall",
    "echo",
]
