"""The public contract of opencode-mcp: everything a plugin author imports, and nothing else."""

from opencode_mcp.errors import (
    OpenCodeMCPError,
    ProtocolError,
    SettingsError,
    TransportError,
    UnreachableError,
)
from opencode_mcp.hookspecs import hookimpl
from opencode_mcp.model import (
    Action,
    Activity,
    Endpoint,
    Finding,
    Instance,
    Rejection,
    Route,
    Session,
    Status,
    explain,
)
from opencode_mcp.opencode.credentials import opencode_auth
from opencode_mcp.opencode.recognise import Recognised, recognise
from opencode_mcp.settings import Settings, variable
from opencode_mcp.state.announced import announced_here
from opencode_mcp.state.listening import listening_user, peer_user
from opencode_mcp.state.services import LocalService, local_services, services_directory
from opencode_mcp.text import clean_line, clean_text
from opencode_mcp.transport import (
    CONTRACT_VERSION,
    Announcer,
    Announcing,
    Publish,
    Transport,
    TransportPlugin,
)

__all__ = [
    "CONTRACT_VERSION",
    "Action",
    "Activity",
    "Announcer",
    "Announcing",
    "Endpoint",
    "Finding",
    "Instance",
    "LocalService",
    "OpenCodeMCPError",
    "ProtocolError",
    "Publish",
    "Recognised",
    "Rejection",
    "Route",
    "Session",
    "Settings",
    "SettingsError",
    "Status",
    "Transport",
    "TransportError",
    "TransportPlugin",
    "UnreachableError",
    "announced_here",
    "clean_line",
    "clean_text",
    "explain",
    "hookimpl",
    "listening_user",
    "local_services",
    "opencode_auth",
    "peer_user",
    "recognise",
    "services_directory",
    "variable",
]
