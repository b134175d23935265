"""The transport `local-relay`: OpenCode instances registered as JSON files in a directory of this machine."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from opencode_mcp import Transport, TransportPlugin, hookimpl
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.transport import LocalRelay

__all__ = ["LocalRelay", "LocalRelaySettings", "opencode_mcp_transports"]


@asynccontextmanager
async def _open(settings: LocalRelaySettings) -> AsyncGenerator[Transport, None]:
    yield LocalRelay(settings)


@hookimpl
def opencode_mcp_transports() -> Sequence[TransportPlugin[LocalRelaySettings]]:
    """Describe the transport to core."""
    return [
        TransportPlugin(
            name="local-relay",
            summary="OpenCode instances registered as files in a directory of this machine",
            settings=LocalRelaySettings,
            open=_open,
        )
    ]
