"""Keeps credentials from other users of this machine: a port is anybody's once its program has ended."""

import socket
import sys
from collections.abc import Collection

from opencode_mcp.errors import StrangerError
from opencode_mcp.state.listening import peer_user


def refuse_stranger(connection: socket.socket, users: Collection[int], mend: str = "") -> None:
    """Make sure that one of some users holds the other end of a connection. It blocks.

    Where the kernel does not tell whose it is, everybody passes: elsewhere than on Linux, and if it is not on
    this machine, or only root's packet filter knows where. See `peer_user`.

    Args:
        connection: A connection over TCP, over which nothing was sent yet.
        users: The user ids that may.
        mend: What to do if it is somebody else, as sentences.

    Raises:
        StrangerError: It is somebody else.
        OSError: The connection broke.
    """
    user = peer_user(connection) if sys.platform == "linux" else None
    if user is not None and user not in users:
        port = connection.getpeername()[1]
        told = f"Another user of this machine (uid {user}) has port {port}, and gets no password."
        raise StrangerError(told, mend)
