"""Whose programs may get the password: once an OpenCode has ended, its port goes to whoever takes it."""

from collections.abc import Collection

from opencode_mcp_local_relay.directory import current_uid

MEND = (
    "If it is the right one all the same, name that user in RELAY_TRUST_USERS. If not, its OpenCode has "
    "ended: remove its registration, with `opencode-connected cleanup` where it was announced, or by hand."
)
"""What to do if another user has a registered port."""


def ours() -> frozenset[int] | None:
    """Return the id of this user, as a set; None where users have no such ids."""
    user = current_uid()
    return None if user is None else frozenset({user})


def trusted(named: Collection[int]) -> frozenset[int] | None:
    """Return the ids of those whose registered programs may get the password; None for everybody.

    Besides this user it is root, who could read it anyway: some programs that forward ports run as root.

    Args:
        named: The ids of the users who may besides.
    """
    users = ours()
    return None if users is None else users | {0, *named}
