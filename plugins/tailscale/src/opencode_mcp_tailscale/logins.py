"""The login names that a status leaves out.

tailscaled 1.102 does not tell the names of users whose first machine joined after its last full network map;
asked for a machine of theirs, it knows them.
"""

import dataclasses

import anyio

from opencode_mcp import TransportError
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.status import Machine, Status

_AT_A_TIME = 32
_SECONDS = 3.0


class Logins:
    """Completes what a status says of the owners of machines.

    Args:
        api: The tailscaled.
    """

    def __init__(self, api: LocalApi) -> None:
        self._api = api
        self._of = ""
        self._known: dict[int, str] = {}
        self._tried: dict[int, float] = {}
        """When each user was asked for last."""

    async def complete(self, status: Status) -> Status:
        """Return a status with the login names that can be found out in 3 s; the others stay empty.

        If there are too many, those are asked for that were not asked for the longest.
        """
        own = status.own.id if status.own else ""
        if own != self._of:  # of another tailnet, perhaps, with other users of the same numbers
            self._of, self._known, self._tried = own, {}, {}
        unknown = [one for one in status.peers if not one.user and not one.tags and one.user_id]
        asking = {one.user_id: one for one in unknown if one.addresses and one.user_id not in self._known}
        self._tried = {user_id: when for user_id, when in self._tried.items() if user_id in asking}
        waiting = sorted(asking.items(), key=lambda one: self._tried.get(one[0], float("-inf")))
        with anyio.move_on_after(_SECONDS):
            for user_id, machine in waiting[:_AT_A_TIME]:
                self._tried[user_id] = anyio.current_time()
                if login := await self._ask(machine):
                    self._known[user_id] = login
        named = {one.id: dataclasses.replace(one, user=self._known.get(one.user_id, "")) for one in unknown}
        return dataclasses.replace(status, peers=[named.get(one.id, one) for one in status.peers])

    async def _ask(self, machine: Machine) -> str:
        """Ask who has the address of a machine; the answer counts only if that is still this machine."""
        try:
            who = await self._api.whois(str(machine.addresses[0]))
        except TransportError:
            return ""
        return who.user if who is not None and who.node_id == machine.id else ""
