"""The transport `mdns`: OpenCode instances on the local network, found and announced over multicast DNS."""

import hashlib
import ipaddress
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from opencode_mcp import Announcing, Transport, TransportError, TransportPlugin, clean_line, hookimpl
from opencode_mcp_mdns.network import read_network
from opencode_mcp_mdns.settings import MDnsSettings
from opencode_mcp_mdns.transport import MDns

__all__ = ["MDns", "MDnsSettings", "opencode_mcp_transports"]

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - others are to reach it, and core makes a password mandatory


@asynccontextmanager
async def _open(settings: MDnsSettings) -> AsyncGenerator[Transport, None]:
    yield MDns(settings)


def _announcing(settings: MDnsSettings) -> Announcing:
    interfaces = ", ".join(clean_line(one, 64) for one in settings.interfaces)
    proves = (
        "proves MDNS_SECRET to it"
        if settings.secret is not None
        else ("gets no password yet: set MDNS_SECRET here and there, or MDNS_CREDENTIALS_FOR there")
    )
    return Announcing(
        listen=_listen(settings.interfaces),
        facts={"Network": f"mDNS on {interfaces or 'all interfaces'}", "Gateway": proves},
        place=f"mdns:{hashlib.sha256(interfaces.encode()).hexdigest()[:16]}",
        reachable_by="everybody on the local network",
    )


def _listen(interfaces: Sequence[str]) -> str:
    """Return where OpenCode has to listen: on one address if the user named just that, else on all.

    Raises:
        TransportError: That address is none of this machine.
    """
    try:
        address = ipaddress.ip_address(interfaces[0] if len(interfaces) == 1 else "")
    except ValueError:
        return _EVERYWHERE
    if address not in read_network(interfaces).addresses:
        raise TransportError(
            f"MDNS_INTERFACES={address} cannot be announced on: it is no address of this machine at present, "
            "or none that others can reach."
        )
    return str(address)


@hookimpl
def opencode_mcp_transports() -> Sequence[TransportPlugin[MDnsSettings]]:
    """Describe the transport to core."""
    return [
        TransportPlugin(
            name="mdns",
            summary="OpenCode instances on the local network, found and announced over multicast DNS",
            settings=MDnsSettings,
            open=_open,
            announcing=_announcing,
        )
    ]
