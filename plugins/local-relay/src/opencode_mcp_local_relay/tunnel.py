"""The instance's side over ssh: a tunnel from a port of the relay, and a registration there that names it.

One ssh process does it all. It ends with the announcement, and the announcement with it.
"""

import dataclasses
import logging
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, TransportError, clean_line
from opencode_mcp_local_relay import control
from opencode_mcp_local_relay.announcement import address_here
from opencode_mcp_local_relay.ending import FORWARDING_FAILED
from opencode_mcp_local_relay.entry import Entry, not_withdrawn
from opencode_mcp_local_relay.login import QUIETLY, Ability, control_words, ended, hidden
from opencode_mcp_local_relay.relay import Relay
from opencode_mcp_local_relay.remembered import Remembered
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.ssh import EndedError, Shell, opened_shell

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

logger = logging.getLogger(__name__)

_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "ExitOnForwardFailure=yes")
LOOPBACK = "127.0.0.1"
ARRIVE_SECONDS = 45.0
_PORT_NAMED_SECONDS = 2.0
_BETWEEN_LOGINS_SECONDS = 1.0
_LOGINS = 5
"""In one call; each needs a reason to be different from the one before."""
_PICKS = range(20_000, 60_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How often what is done; all in seconds."""

    heartbeat: float = 30.0
    probe: float = 60.0
    again: float = 5.0
    """After a probe that failed, before it is believed."""


class _OtherwiseError(Exception):
    """It is worth trying again, differently."""


class Tunnel:
    """One announcement over ssh."""

    def __init__(
        self,
        settings: LocalRelaySettings,
        endpoint: Endpoint,
        ability: Ability,
        pace: Pace,
        remembered: Remembered | None = None,
    ) -> None:
        """Prepare to announce `endpoint`; nothing is started yet.

        Raises:
            TransportError: If the instance is not on this machine.
        """
        self._settings = settings
        self._endpoint = endpoint
        self._ability = ability
        self._pace = pace
        self._remembered = Remembered() if remembered is None else remembered
        self._here = address_here(endpoint)
        self._since = datetime.now(UTC)
        self._woken = False
        self._shell: Shell | None = None
        self._entry: Entry | None = None
        self._told_unwatched = False

    def woke(self) -> None:
        """Check at once whether the tunnel still stands."""
        self._woken = True
        if self._shell is not None:
            self._shell.poke()

    async def keep(self, task_status: "TaskStatus[None]") -> None:
        """Announce until cancelled.

        Raises:
            TransportError: If that cannot be done, or no longer works; or a registration stays behind.
        """
        try:
            await self._keep(task_status)
        except anyio.get_cancelled_exc_class():
            if self._remembered.stands:
                raise not_withdrawn(self._remembered) from None
            raise

    async def _keep(self, task_status: "TaskStatus[None]") -> None:
        why, until = self._remembered.refused
        if anyio.current_time() < until and self._endpoint.labels.get("auth") != "basic":
            raise TransportError(why)
        for _ in range(_LOGINS):
            soonest = anyio.current_time() + _BETWEEN_LOGINS_SECONDS
            socket = await self._socket()
            try:
                await self._keep_once(socket, task_status)
            except _OtherwiseError:
                await anyio.sleep_until(soonest)
            finally:
                if socket is not None:
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(control.clear_away, socket)
        raise TransportError("Every port of the relay that was tried is taken. It is tried again.")

    async def _socket(self) -> Path | None:
        if not self._ability.multiplexes:
            return None
        path = await anyio.to_thread.run_sync(control.control_path, self._endpoint.id)
        problem = "the directory for temporary files has too long a name"
        if path is not None and not (problem := await anyio.to_thread.run_sync(control.make_room, path)):
            return path
        logger.info("The tunnel is watched less closely: %s.", clean_line(problem, 300))
        return None

    async def _keep_once(self, socket: Path | None, task_status: "TaskStatus[None]") -> None:
        picked = 0 if self._ability.names_port else random.choice(_PICKS)  # noqa: S311 - not a secret
        words = self._words(socket, picked)
        async with opened_shell(words, hidden(self._settings.ssh_words), _target(self._here)) as shell:
            self._shell = shell
            relay = Relay(
                shell,
                self._settings.relay_dir,
                self._endpoint.id,
                trust_any_owner=self._settings.trust_any_owner,
            )
            try:
                await relay.arrive(ARRIVE_SECONDS)
                port = picked or await self._port(shell)
                await self._stay(shell, relay, socket, port, task_status)
            except TimeoutError:
                raise TransportError(
                    f"The relay has not let us in for {ARRIVE_SECONDS:.0f} s. See whether "
                    f"`{self._settings.ssh_shown}`, which is RELAY_SSH_CMD, works by hand."
                ) from None
            except EndedError:
                self._try_otherwise(shell, picked)
                raise ended(self._settings, shell) from None

    def _words(self, socket: Path | None, picked: int) -> Sequence[str]:
        ours = control_words(socket, known=self._ability.knows_control)
        words = [*self._settings.ssh_words, *QUIETLY, *_ALIVE, *ours]
        # Without its address, sshd would be content with ::1 where another server has the port of 127.0.0.1.
        return [*words, "-R", f"{LOOPBACK}:{picked}:{_target(self._here)}", "sh"]

    def _try_otherwise(self, shell: Shell, picked: int) -> None:
        said = "\n".join(shell.said)
        if self._entry is not None and self._entry.written:
            return
        if self._ability.learn(said) or (picked and FORWARDING_FAILED.search(said)):
            raise _OtherwiseError

    async def _port(self, shell: Shell) -> int:
        port = await shell.until(lambda: shell.allocated, _PORT_NAMED_SECONDS)
        if port is None:
            self._ability.names_port = False
            raise _OtherwiseError
        return port

    async def _stay(
        self, shell: Shell, relay: Relay, socket: Path | None, port: int, task_status: "TaskStatus[None]"
    ) -> None:
        """Register, and look after it until something ends it."""
        entry = self._entry = Entry(
            relay, self._endpoint, self._remembered, local_port=self._here[1], since=self._since
        )
        try:
            await entry.check_exposure(port)
            await self._probe(shell, relay, socket, port, tries=2, pause=1.0)
            await entry.write(port)
            name = clean_line(self._remembered.name or "", 200)
            logger.info("Announced on the relay as %s, through its port %d.", name, port)
            task_status.started()
            heartbeat = anyio.current_time() + self._pace.heartbeat
            probe = anyio.current_time() + self._pace.probe
            while True:
                seconds = max(0.0, min(heartbeat, probe) - anyio.current_time())
                woken = await shell.until(lambda: self._woken or None, seconds) is not None
                self._woken = False
                if woken or anyio.current_time() >= probe:
                    # After a sleep nobody is patient with a connection that is probably dead.
                    await self._probe(
                        shell, relay, socket, port, tries=1 if woken else 2, pause=self._pace.again
                    )
                    probe = anyio.current_time() + self._pace.probe
                if woken or anyio.current_time() >= heartbeat:
                    await entry.write(port)
                    heartbeat = anyio.current_time() + self._pace.heartbeat
        finally:
            with anyio.CancelScope(shield=True):
                await entry.withdraw()

    async def _probe(
        self, shell: Shell, relay: Relay, socket: Path | None, port: int, *, tries: int, pause: float
    ) -> None:
        """Ask the instance something, from the relay.

        Raises:
            TransportError: If it answers here, but not there.
        """
        for number in range(tries):
            if number:
                await shell.until(lambda: None, pause)
            works = await through(socket, relay, port)
            if works is None and not self._told_unwatched:
                self._told_unwatched = True
                logger.info(
                    "The relay allows no look through the tunnel, and has neither curl nor wget: "
                    "only ssh's own signs of life watch it."
                )
            if works is not False:
                return
        if await control.answers(*self._here):
            raise TransportError(
                f"Port {port} of the relay does not lead to {self._endpoint.url}, though ssh says so. "
                "The tunnel is dug anew."
            )
        if self._entry is None or not self._entry.written:
            raise TransportError(
                f"Nothing answers at {self._endpoint.url}, so it is not registered on the relay. Start it."
            )
        logger.debug("%s does not answer here either, so the tunnel is not to blame.", self._endpoint.url)


async def through(socket: Path | None, relay: Relay, port: int) -> bool | None:
    """Whether a port of the relay leads to an instance: asked over the control socket, else by the relay."""
    works = None if socket is None else await control.forwards(socket, port)
    return works if works is not None else await relay.probe(port)


def _target(here: tuple[str, int]) -> str:
    return f"{here[0]}:{here[1]}"
