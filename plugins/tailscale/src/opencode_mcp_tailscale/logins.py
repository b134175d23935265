"""The login names that a status leaves out.

tailscaled 1.102 does not tell the names of users whose first machine joined after its last full network map;
asked for a machine of theirs, it knows them.
"""

import dataclasses

from opencode_mcp import TransportError
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.status import Machine, Status

_AT_A_TIME = 32


class Logins:
    """Completes what a status says of the owners of machines.

    Args:
        api: The tailscaled.
    """

    def __init__(self, api: LocalApi) -> None:
        self._api = api
        self._known: dict[int, str] = {}

    async def complete(self, status: Status) -> Status:
        """Return a status with the login names that can be found out; the others stay empty."""
        asked = 0
        peers: list[Machine] = []
        for machine in status.peers:
            if machine.user or machine.tags or not machine.user_id or not machine.addresses:
                peers.append(machine)
                continue
            if machine.user_id not in self._known and asked < _AT_A_TIME:
                asked += 1
                self._known[machine.user_id] = await self._ask(machine)
            peers.append(dataclasses.replace(machine, user=self._known.get(machine.user_id, "")))
        return dataclasses.replace(status, peers=peers)

    async def _ask(self, machine: Machine) -> str:
        try:
            who = await self._api.whois(str(machine.addresses[0]))
        except TransportError:
            return ""
        return "" if who is None else who.user
