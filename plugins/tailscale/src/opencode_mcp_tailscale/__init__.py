"""The transport `tailscale`: OpenCode instances on a tailnet, through nothing but tailscaled's LocalAPI."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from opencode_mcp import Announcing, Transport, TransportPlugin, hookimpl
from opencode_mcp_tailscale.settings import TailscaleSettings
from opencode_mcp_tailscale.transport import Tailscale

__all__ = ["Tailscale", "TailscaleSettings", "opencode_mcp_transports"]


@asynccontextmanager
async def _open(settings: TailscaleSettings) -> AsyncGenerator[Transport, None]:
    from opencode_mcp_tailscale.localapi import LocalApi  # takes its time

    async with LocalApi(settings) as api:
        yield Tailscale(settings, api)


def _announcing(settings: TailscaleSettings) -> Announcing:
    told = ", ".join(settings.allow_users) or "whoever the tailnet's access rules let through"
    place = f"{settings.socket or settings.container_socket}:{settings.index_port}"
    return Announcing(
        facts={"Tailnet": f"index at port {settings.index_port}, for {told}"},
        place=f"tailscale:{hashlib.sha256(place.encode()).hexdigest()[:16]}",
        reachable_by="everybody on the tailnet whom its access rules let through to this machine",
    )


@hookimpl
def opencode_mcp_transports() -> Sequence[TransportPlugin[TailscaleSettings]]:
    """Describe the transport to core."""
    return [
        TransportPlugin(
            name="tailscale",
            summary="OpenCode instances on a tailnet, found, reached and announced through tailscaled",
            settings=TailscaleSettings,
            open=_open,
            announcing=_announcing,
        )
    ]
