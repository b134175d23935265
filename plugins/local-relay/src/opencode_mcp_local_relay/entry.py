"""The registration of one instance on the relay: its name, what it says, its removal; and who can use it."""

import logging
from datetime import UTC, datetime

import anyio

from opencode_mcp import Endpoint, TransportError, clean_line
from opencode_mcp_local_relay.registration import file_names, serialise, stem_of
from opencode_mcp_local_relay.relay import Relay
from opencode_mcp_local_relay.remembered import Remembered
from opencode_mcp_local_relay.ssh import EndedError

logger = logging.getLogger(__name__)

_WITHDRAW_SECONDS = 1.0
_REFUSED_SECONDS = 600.0


class Entry:
    """What one connection to the relay writes of an instance, and removes.

    Attributes:
        written: Whether it has been written over this connection.
    """

    def __init__(
        self, relay: Relay, endpoint: Endpoint, remembered: Remembered, *, local_port: int, since: datetime
    ) -> None:
        self.written = False
        self._relay = relay
        self._endpoint = endpoint
        self._remembered = remembered
        self._local_port = local_port
        self._since = since

    async def check_exposure(self, port: int) -> None:
        """Make sure that only the relay itself reaches the port, or else that the instance wants a password.

        Raises:
            TransportError: If everybody could use the instance.
        """
        if not await self._relay.exposes(port):
            return
        mend = "Set GatewayPorts to `no` or `clientspecified` in the sshd_config of the relay"
        if self._endpoint.labels.get("auth") != "basic":
            why = (
                f"The relay opens port {port} to the network, not only to itself, because of GatewayPorts in "
                f"its sshd. {self._endpoint.name} asks for no password, so everybody who reaches the relay "
                f"could run commands on this machine. {mend}, or set OPENCODE_SERVER_PASSWORD here."
            )
            # Each further attempt would open the port again, for a moment.
            self._remembered.refused = why, anyio.current_time() + _REFUSED_SECONDS
            raise TransportError(why)
        if not self._remembered.told_exposed:
            self._remembered.told_exposed = True
            logger.warning(
                "The relay opens port %d to the network: only its password protects the instance. %s.",
                port,
                mend,
            )

    async def write(self, port: int) -> None:
        """Write it, under the name it had or the first that is free; no other file of ours stays beside it.

        Raises:
            TransportError: If it cannot be written.
        """
        candidates = list(file_names(stem_of(self._endpoint.name)))
        held = set[str]() if self.written else {one.name for one in await self._relay.find()}
        known = [name for name in candidates if name in held]
        if self._remembered.name in candidates:
            known.insert(0, self._remembered.name)
        self._remembered.stands = True
        for name in dict.fromkeys([*known, *candidates]):
            self._remembered.name = name
            if await self._relay.put(name, self._content(name, port)):
                self.written = True
                if held - {name}:
                    await self._remove_others(name)
                return
        raise TransportError("Every name for a registration on the relay is taken; remove those not needed.")

    async def _remove_others(self, name: str) -> None:
        try:
            await self._relay.find(remove=True, keep=name)
        except TransportError as error:
            logger.warning("A registration of an earlier time stays beside the new one: %s", error)

    def _content(self, name: str, port: int) -> str:
        return serialise(
            self._endpoint,
            file_name=name,
            port=port,
            local_port=self._local_port,
            connected_at=self._since,
            heartbeat_at=datetime.now(UTC),
            indent=None,
        )

    async def withdraw(self) -> None:
        """Remove it, if it stands; `Remembered.stands` and `.why` tell whether that worked."""
        if not self._remembered.stands or self._remembered.name is None:
            return
        try:
            await self._relay.drop(self._remembered.name, _WITHDRAW_SECONDS)
        except EndedError:
            self._remembered.why = "the connection is gone"
        except TimeoutError:
            self._remembered.why = f"it has not answered within {_WITHDRAW_SECONDS:.0f} s"
        except TransportError as error:
            self._remembered.why = str(error)
        else:
            self._remembered.stands = False


def not_withdrawn(remembered: Remembered) -> TransportError:
    """Put into a sentence that a registration stays behind."""
    name = clean_line(remembered.name or "", 200)
    why = remembered.why.rstrip(".") or "there is no connection"
    return TransportError(
        f"The registration {name} could not be taken off the relay: {why}. It stays there until it is "
        "withdrawn later or removed by hand."
    )
