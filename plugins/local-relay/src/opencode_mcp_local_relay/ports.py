"""Whose the ports of this machine are: a program that ended leaves its port to whoever takes it next."""

import os
import sys

import anyio.to_thread

from opencode_mcp import TransportError, listening_user


async def nobody_elses(url: str) -> None:
    """Make sure that what is sent to a registered URL goes to a program of this user, or of root.

    At the relay's end of a tunnel it is the `sshd` of the user who announced it that listens. Where the
    kernel does not tell, as for another machine, everybody passes.

    Raises:
        TransportError: Another user listens there.
    """
    if sys.platform != "linux":
        return
    user = await anyio.to_thread.run_sync(listening_user, url, abandon_on_cancel=True)
    if user not in (None, os.geteuid(), 0):
        raise TransportError(
            f"Another user of this machine (uid {user}) listens at {url}, and gets no password. If it is the "
            "right one all the same, set RELAY_TRUST_ANY_OWNER=1; else remove its registration "
            "(`opencode-connected cleanup`, or the file)."
        )


async def ours(url: str) -> None:
    """Make sure that a program of this user listens at the URL of its background service.

    Raises:
        TransportError: Somebody else does, or nobody.
    """
    if sys.platform != "linux":
        return
    if await anyio.to_thread.run_sync(listening_user, url, abandon_on_cancel=True) != os.geteuid():
        raise TransportError(f"The background service of OpenCode listens at {url} no more.")
