"""The registry on the relay, seen from here: who is registered there, and a way to each, all over one ssh."""

import itertools
import logging
import shutil
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, OpenCodeMCPError, Rejection, Route, Transport, TransportError, clean_line
from opencode_mcp_local_relay import control
from opencode_mcp_local_relay.file import SIZE_LIMIT
from opencode_mcp_local_relay.login import ended, logged_in, ways
from opencode_mcp_local_relay.registration import SUFFIX, Registration, UnusableError, parse
from opencode_mcp_local_relay.registry import merge
from opencode_mcp_local_relay.relay import Listed, Relay
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.ssh import EndedError, Shell

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

_ARRIVE_SECONDS = 15.0
_LAST_WORDS_SECONDS = 0.3
_TAKE_DOWN_SECONDS = 2.0
_PROHIBITED = "administratively prohibited"  # what sshd says of a channel that it is configured to refuse


class RemoteRegistry(Transport):
    """Finds the instances that are registered on the relay."""

    def __init__(self, settings: LocalRelaySettings, shell: Shell, relay: Relay, master: Path | None) -> None:
        """Use a shell on the relay.

        Args:
            settings: Where the registry is, and whom to trust.
            shell: Which has arrived.
            relay: What speaks with it.
            master: Its control socket, in a directory of its own; None if there is none.
        """
        self._settings = settings
        self._shell = shell
        self._relay = relay
        self._master = master
        self._numbers = itertools.count()
        self._rejected: Sequence[Rejection] = ()

    async def discover(self) -> Sequence[Endpoint]:
        """Read the registry directory on the relay; a missing one is an empty set.

        Raises:
            TransportError: If the directory is not safe to use or cannot be read, or the relay is gone.
        """
        try:
            listing = await self._relay.listing()
        except EndedError:
            raise ended(self._settings, self._shell) from None
        found: dict[str, tuple[Registration, int]] = {}
        rejected: list[Rejection] = []
        for file in listing.files:
            try:
                found[file.name] = (self._read(file), 0)
            except UnusableError as error:
                source = clean_line(f"{self._settings.relay_dir}/{file.name}", 1000)
                rejected.append(Rejection(source=source, reason=str(error)))
                logger.warning("The registration file %s on the relay is left out: %s.", source, error)
        if listing.more:
            logger.warning(
                "The registry directory on the relay holds more than %d registration files; the others are "
                "left out. Remove those of instances that are gone.",
                len(listing.files),
            )
        self._rejected = rejected
        published = merge(found, vouched=listing.trusted).values()
        return [endpoint for _, endpoint in sorted(published, key=itemgetter(0))]

    def rejected(self) -> Sequence[Rejection]:
        """The files that the last look left out, with reasons."""
        return self._rejected

    async def _is_prohibited(self) -> bool:
        """Whether the relay has refused to forward; ssh may say so a little after the connection broke."""
        with suppress(EndedError):
            found = await self._shell.until(
                lambda: any(_PROHIBITED in line for line in self._shell.said) or None, _LAST_WORDS_SECONDS
            )
            return found is True
        return False

    def _read(self, file: Listed) -> Registration:
        if file.fault == "special":
            raise UnusableError("it is not a regular file")
        if file.fault == "name":
            raise UnusableError("its name has a line break, shown as a blank")
        if file.fault not in ("", "unknown") and not self._settings.trust_any_owner:
            who, _, uid = file.fault.partition(" ")
            why = "can be written by everybody" if who == "open" else f"belongs to another user (uid {uid})"
            raise UnusableError(f"it {why}; mend that, or set RELAY_TRUST_ANY_OWNER=1 if it is meant to be")
        content = file.content.encode(errors="replace")
        if len(content) > SIZE_LIMIT:
            raise UnusableError(f"it is larger than {SIZE_LIMIT // 1024} KiB")
        return parse(content, file.name.removesuffix(SUFFIX), vouched=not file.fault)

    @asynccontextmanager
    async def connect(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        """Open a way to the port of the relay that `endpoint` names, over the connection that stands.

        Raises:
            TransportError: If ssh does not offer one.
        """
        if self._master is None or not await anyio.to_thread.run_sync(self._master.is_socket):
            raise TransportError(
                "Sessions of instances on the relay need ssh's multiplexing, which RELAY_SSH_CMD "
                f"(`{self._settings.ssh_shown}`) does not offer. Take options like ControlPath out of it, or "
                "run this on the relay."
            )
        way = self._master.with_name(str(next(self._numbers)))
        forward = ("-L", f"{way}:127.0.0.1:{urlsplit(endpoint.url).port}")
        try:
            if not await control.request(self._master, "forward", *forward):
                if self._shell.over:
                    raise ended(self._settings, self._shell)
                raise TransportError("The ssh to the relay does not forward its ports to here.")
            transport = await anyio.to_thread.run_sync(_http_over, way)
            yield Route(base_url=endpoint.url, transport=transport)
        except OpenCodeMCPError:
            if await self._is_prohibited():
                raise TransportError(
                    "The relay does not let its ports be reached over ssh. Its sshd needs AllowTcpForwarding "
                    "`yes` (and no narrow PermitOpen), and the key no `restrict` or `no-port-forwarding`."
                ) from None
            raise
        finally:
            with anyio.move_on_after(_TAKE_DOWN_SECONDS, shield=True):
                await control.request(self._master, "cancel", *forward)
                await anyio.to_thread.run_sync(lambda: way.unlink(missing_ok=True))


@asynccontextmanager
async def opened_registry(settings: LocalRelaySettings) -> AsyncGenerator[Transport]:
    """Log in on the relay, and look at its registry for as long as the context is entered.

    Raises:
        TransportError: If that does not work.
    """
    room = await anyio.to_thread.run_sync(control.new_room)
    try:
        master = None if room is None else room / "m"
        async with logged_in(settings, ways(settings, master), _ARRIVE_SECONDS) as (relay, shell, number):
            yield RemoteRegistry(settings, shell, relay, None if number else master)
    finally:
        if room is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(room, ignore_errors=True))


def _http_over(way: Path) -> "httpx2.AsyncHTTPTransport":
    """Make a transport; blocks, by what is imported first of all."""
    import httpx2  # not for finding

    # Plain HTTP uses no certificates, and to load them takes long.
    verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx2.AsyncHTTPTransport(uds=str(way), verify=verify, trust_env=False)
