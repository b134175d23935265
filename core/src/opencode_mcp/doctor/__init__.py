"""Walks the path of a request and finds the step at which it breaks; prints nothing.

`examine` does it. Each transport is examined in a thread of its own, with an event loop of its own, so that
foreign code that never returns holds up nobody, and can be named.
"""

from opencode_mcp.doctor.examination import examine
from opencode_mcp.doctor.patience import Patience
from opencode_mcp.doctor.report import (
    EndpointReport,
    Environment,
    Report,
    Setting,
    State,
    Step,
    TransportReport,
)

__all__ = [
    "EndpointReport",
    "Environment",
    "Patience",
    "Report",
    "Setting",
    "State",
    "Step",
    "TransportReport",
    "examine",
]
