"""The transport `local-relay`: OpenCode instances registered as JSON files in a directory of this machine."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from opencode_mcp import Announcing, Transport, TransportPlugin, clean_line, hookimpl
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.transport import LocalRelay

__all__ = ["LocalRelay", "LocalRelaySettings", "opencode_mcp_transports"]


@asynccontextmanager
async def _open(settings: LocalRelaySettings) -> AsyncGenerator[Transport, None]:
    yield LocalRelay(settings)


def _announcing(settings: LocalRelaySettings) -> Announcing:
    directory = settings.relay_dir if settings.ssh_words else str(settings.local_dir)
    facts = {
        "Registry": clean_line(directory, 1000),
        "Relay": settings.ssh_shown or "(none, this machine only)",
    }
    if settings.ssh_cmd is None:
        return Announcing(facts=facts, place=f"here:{directory}")
    command = settings.ssh_cmd.get_secret_value().encode(errors="surrogatepass")
    return Announcing(
        facts=facts,
        place=f"relay:{hashlib.sha256(command).hexdigest()[:16]}:{directory}",
        reachable_by="everybody with an account on the relay",
    )


@hookimpl
def opencode_mcp_transports() -> Sequence[TransportPlugin[LocalRelaySettings]]:
    """Describe the transport to core."""
    return [
        TransportPlugin(
            name="local-relay",
            summary="OpenCode instances registered as files in a directory of this machine",
            settings=LocalRelaySettings,
            open=_open,
            announcing=_announcing,
        )
    ]
