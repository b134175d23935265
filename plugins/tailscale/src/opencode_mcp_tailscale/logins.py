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

    async def complete(self, status: Status) -> Status:
        """Return a status with the login names that can be found out in 3 s; the others stay empty."""
        own = status.own.id if status.own else ""
        if own != self._of:  # of another tailnet, perhaps, with other users of the same numbers
            self._of, self._known = own, {}
        unknown = [one for one in status.peers if not one.user and not one.tags and one.user_id]
        asking = {one.user_id: one for one in unknown if one.addresses and one.user_id not in self._known}
        with anyio.move_on_after(_SECONDS):
            for user_id, machine in list(asking.items())[:_AT_A_TIME]:
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
