"""For tests: an OpenCode server that does what the test says, a fleet of them, and a suite for transports."""

from typing import TYPE_CHECKING

from opencode_mcp.testing._faults import Fault
from opencode_mcp.testing._fleet import FakeFleet
from opencode_mcp.testing._store import Delta
from opencode_mcp.testing._under_test import Publisher, TransportUnderTest
from opencode_mcp.testing.fake import FakeOpenCode, Received
from opencode_mcp.testing.script import Ask, Gate, Question, Reply, SubAgent, ToolCall, echo

if TYPE_CHECKING:
    from opencode_mcp.testing._trial import Trial
    from opencode_mcp.testing.suite import TransportSuite

__all__ = [
    "Ask",
    "Delta",
    "FakeFleet",
    "FakeOpenCode",
    "Fault",
    "Gate",
    "Publisher",
    "Question",
    "Received",
    "Reply",
    "SubAgent",
    "ToolCall",
    "TransportSuite",
    "TransportUnderTest",
    "Trial",
    "echo",
]


def __getattr__(name: str) -> object:
    """Import what needs pytest only when it is asked for: a server for a demonstration does not."""
    if name == "TransportSuite":
        from opencode_mcp.testing.suite import TransportSuite

        return TransportSuite
    if name == "Trial":
        from opencode_mcp.testing._trial import Trial

        return Trial
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
