"""This machine: which addresses it has, and which of its ports are this user's."""

import socket

import anyio
import anyio.to_thread
import httpcore2

from opencode_mcp import announced_here, listening_user, peer_user
from opencode_mcp_tailscale.status import Address
from opencode_mcp_tailscale.through import Backend, network_backend

try:
    from os import geteuid
except ImportError:  # Windows, where tailscaled is not found either

    def geteuid() -> int:
        """Nobody."""
        return -1


class Mine(Backend):
    """Opens connections to a port of this machine for as long as it is this user's.

    Who had it when it was listed may have left it, and another user taken it: so it is looked at each time,
    before anything is sent.
    """

    async def open(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection; see `Backend`.

        Raises:
            httpcore2.ConnectError: It is refused, or another user listens there.
            httpcore2.ConnectTimeout: Nobody answers.
        """
        stream = await network_backend().connect_tcp(host, port, timeout)
        mine = False
        try:
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            mine = await anyio.to_thread.run_sync(_leads_to_me, stream.get_extra_info("socket"), url)
        finally:
            if not mine:
                with anyio.move_on_after(1, shield=True):
                    await stream.aclose()
        if not mine:
            raise httpcore2.ConnectError("Another user of this machine listens there.")
        return stream


def _leads_to_me(connection: socket.socket, url: str) -> bool:
    """Whether it is this user who holds the other end of a connection to a URL of this machine. It blocks.

    Who only listens there may do so no more, or not yet, when that is asked.
    """
    try:
        user = peer_user(connection)
    except OSError as error:
        raise httpcore2.ConnectError(str(error)) from error
    return is_mine(url) if user is None else user == geteuid()


def is_mine(url: str) -> bool:
    """Whether it is this user who listens at a URL of this machine. It blocks.

    Where the kernel does not tell, what this user announces itself counts.
    """
    user = listening_user(url)
    return url in announced_here().values() if user is None else user == geteuid()


def is_here(address: Address) -> bool:
    """Whether this machine, or rather its network namespace, has an address."""
    kind = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
