"""The instance's side over ssh: a tunnel from a port of the relay, and a registration there that names it.

One ssh process does it all. It ends with the announcement, and the announcement with it.
"""

import dataclasses
import logging
import random
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, TransportError, clean_line
from opencode_mcp_local_relay import control
from opencode_mcp_local_relay.announcement import address_here
from opencode_mcp_local_relay.ending import FORWARDING_FAILED, NO_MULTIPLEXING, ending
from opencode_mcp_local_relay.registration import file_names, serialise, stem_of
from opencode_mcp_local_relay.relay import Relay
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.ssh import EndedError, Shell, opened_shell

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

logger = logging.getLogger(__name__)

QUIETLY = ("-T", "-a", "-x", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-o", "ConnectTimeout=10")
"""Nothing is asked, and nothing of this machine lent; options of the user's come first, so they win."""
_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "ExitOnForwardFailure=yes")
LOOPBACK = "127.0.0.1"
ARRIVE_SECONDS = 45.0
_PORT_NAMED_SECONDS = 2.0
_BETWEEN_LOGINS_SECONDS = 1.0
_LOGINS = 5
"""In one call; each needs a reason to be different from the one before."""
_PICKS = range(20_000, 60_000)
_WITHDRAW_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How often what is done; all in seconds."""

    heartbeat: float = 30.0
    probe: float = 60.0
    again: float = 5.0
    """After a probe that failed, before it is believed."""


@dataclasses.dataclass
class Ability:
    """What the user's ssh was found to be unable to do, so that no login is wasted on it again."""

    multiplexes: bool = True
    names_port: bool = True


class _OtherwiseError(Exception):
    """It is worth trying again, differently."""


class Tunnel:
    """One announcement over ssh."""

    def __init__(
        self, settings: LocalRelaySettings, endpoint: Endpoint, ability: Ability, pace: Pace
    ) -> None:
        """Prepare to announce `endpoint`; nothing is started yet.

        Raises:
            TransportError: If the instance is not on this machine.
        """
        self._settings = settings
        self._endpoint = endpoint
        self._ability = ability
        self._pace = pace
        self._here = address_here(endpoint)
        self._since = datetime.now(UTC)
        self._woken = False
        self._shell: Shell | None = None
        self._name: str | None = None  # of the file that is written, or just being written
        self._registered = False
        self._told_unwatched = False

    def woke(self) -> None:
        """Check at once whether the tunnel still stands."""
        self._woken = True
        if self._shell is not None:
            self._shell.poke()

    async def keep(self, task_status: "TaskStatus[None]") -> None:
        """Announce until cancelled.

        Raises:
            TransportError: If that cannot be done, or no longer works.
        """
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
        async with opened_shell(words, hidden(self._settings.ssh_words)) as shell:
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
                raise ending(shell.said, shell.exit_code, self._settings.ssh_shown) from None

    def _words(self, socket: Path | None, picked: int) -> Sequence[str]:
        host, port = self._here
        words = [*self._settings.ssh_words, *QUIETLY, *_ALIVE]
        if socket is not None:
            words += ["-o", "ControlMaster=yes", "-o", f"ControlPath={socket}", "-o", "ControlPersist=no"]
        # Without its address, sshd would be content with ::1 where another server has the port of 127.0.0.1.
        return [*words, "-R", f"{LOOPBACK}:{picked}:{host}:{port}", "sh"]

    def _try_otherwise(self, shell: Shell, picked: int) -> None:
        said = "\n".join(shell.said)
        if self._registered:
            return
        if self._ability.multiplexes and NO_MULTIPLEXING.search(said):
            self._ability.multiplexes = False
            raise _OtherwiseError
        if picked and FORWARDING_FAILED.search(said):
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
        try:
            await self._probe(shell, relay, socket, port, tries=2, pause=1.0)
            await self._register(relay, port)
            logger.info(
                "Announced on the relay as %s, through its port %d.", clean_line(self._name or "", 200), port
            )
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
                    await self._register(relay, port)
                    heartbeat = anyio.current_time() + self._pace.heartbeat
        finally:
            with anyio.CancelScope(shield=True):
                await self._withdraw(shell, relay)

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
        if not self._registered:
            raise TransportError(
                f"Nothing answers at {self._endpoint.url}, so it is not registered on the relay. Start it."
            )
        logger.debug("%s does not answer here either, so the tunnel is not to blame.", self._endpoint.url)

    async def _register(self, relay: Relay, port: int) -> None:
        """Write the registration, under the name it had or the first that is free.

        Raises:
            TransportError: If it cannot be written.
        """
        names = file_names(stem_of(self._endpoint.name))
        for name in [*([] if self._name is None else [self._name]), *names]:
            content = serialise(
                self._endpoint,
                file_name=name,
                port=port,
                local_port=self._here[1],
                connected_at=self._since,
                heartbeat_at=datetime.now(UTC),
                indent=None,
            )
            self._name = name
            if await relay.put(name, content):
                self._registered = True
                return
        raise TransportError("Every name for a registration on the relay is taken; remove those not needed.")

    async def _withdraw(self, shell: Shell, relay: Relay) -> None:
        if self._name is None or shell.over:
            return
        try:
            await relay.drop(self._name, _WITHDRAW_SECONDS)
        except (EndedError, TimeoutError):
            logger.info("The registration %s could not be taken off the relay in time.", self._name)


async def through(socket: Path | None, relay: Relay, port: int) -> bool | None:
    """Whether a port of the relay leads to an instance: asked over the control socket, else by the relay."""
    works = None if socket is None else await control.forwards(socket, port)
    return works if works is not None else await relay.probe(port)


def hidden(words: Sequence[str]) -> Callable[[str], str]:
    """Return what takes the words of a command out of a line, but for the first: they may be secrets."""
    parts = {part for word in words[1:] for part in (word, word.partition("=")[2]) if len(part) >= 4}
    longest_first = sorted(parts, key=len, reverse=True)
    secret = re.compile("|".join(map(re.escape, longest_first)) if parts else r"(?!)")
    return lambda line: secret.sub("…", line)
