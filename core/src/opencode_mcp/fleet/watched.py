"""Runs one transport for good: what its code raises is told, and goes no further."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import anyio

from opencode_mcp import packages
from opencode_mcp.errors import TransportError, ours
from opencode_mcp.fleet.foreign import contained
from opencode_mcp.fleet.publication import sound
from opencode_mcp.model import Endpoint, Rejection
from opencode_mcp.settings import Settings
from opencode_mcp.text import clean_line
from opencode_mcp.transport import Transport, TransportPlugin

logger = logging.getLogger(__name__)

_MOST_LEFT_OUT = 1_000
_RETRIES = (1.0, 2.0, 5.0, 10.0, 30.0)
_SLOW_SECONDS = 10.0
_LOGGED_AGAIN_SECONDS = 3600.0
_SHOWN = 500

Key = tuple[str, str]
"""An endpoint within the fleet: its transport's name and its id."""


class Watched:
    """A selected transport, and what it published last.

    Args:
        plugin: Its descriptor.
        settings: Its settings.
        rescan_seconds: How often it looks again.
        published: Called after each publication.

    Attributes:
        name: What `TRANSPORT` calls it.
        named: The same with the package that brings it.
        mend: What helps if its code fails.
        endpoints: What it published last, complete; kept while it fails.
        looked: Set once it has published, or failed.
    """

    def __init__(
        self,
        plugin: TransportPlugin[Any],
        settings: Settings,
        *,
        rescan_seconds: float,
        published: Callable[[], None],
    ) -> None:
        self.name = plugin.name
        self.endpoints: Mapping[Key, Endpoint] = {}
        self.looked = anyio.Event()
        self._plugin = plugin
        self._settings = settings
        self._rescan_seconds = rescan_seconds
        self._published = published
        self._transport: Transport | None = None
        self.named = plugin.name + (f" (from {plugin.package})" if plugin.package else "")
        self._source = f"transport {self.named}"
        package = plugin.package.partition(" ")[0]
        self.mend = (
            f"Update it: {packages.update(package)}" if package else "Update the package that brings it."
        )
        self._failure = ""
        self._flaw = ""
        self._began: float | None = None
        self._logged: dict[str, float] = {}

    async def run(self) -> None:
        """Open it and watch until cancelled; one that fails is reported, and tried again."""
        failures = 0
        while True:
            began = self._began = anyio.current_time()
            failure = mend = ""
            async with anyio.create_task_group() as group:
                group.start_soon(self._tell_if_slow)
                failure, mend = await self._run_until_it_fails()
                group.cancel_scope.cancel()
            self._began = None
            failures = 0 if anyio.current_time() - began > _RETRIES[-1] else failures
            wait = _RETRIES[min(failures, len(_RETRIES) - 1)]
            failures += 1
            self._log(f"{failure} It is tried again. {mend}".rstrip())
            self._failure = f"{failure} {mend}".rstrip()
            self.looked.set()
            await anyio.sleep(wait)

    async def _run_until_it_fails(self) -> tuple[str, str]:
        """Open it and watch; return why that ended, and what helps."""
        try:
            with contained():
                async with self._plugin.open(self._settings) as transport:
                    self._transport = transport
                    transport.rescan_seconds = self._rescan_seconds
                    await transport.watch(self._publish)
        except (Exception, SystemExit) as error:  # foreign code: its failure must not stop the others
            logger.debug("Transport %s failed.", self.name, exc_info=error)
            if (known := ours(error)) is not None:
                return clean_line(str(known), _SHOWN), ""
            how = f"It failed with {type(error).__name__}; OPENCODE_MCP_LOG_LEVEL=DEBUG tells more."
            return how, self.mend
        return "Its watch ended without an error.", self.mend

    async def _tell_if_slow(self) -> None:
        await anyio.sleep(_SLOW_SECONDS)
        if slow := self._slow():
            self._log(slow)

    def _slow(self) -> str:
        """Say for how long it has not published anything since it was opened; or nothing."""
        seconds = 0.0 if self._began is None else anyio.current_time() - self._began
        return f"It has been starting for {seconds:.0f} s. {self.mend}" if seconds >= _SLOW_SECONDS else ""

    def _publish(self, endpoints: Sequence[Endpoint]) -> None:
        self._failure, self._began = "", None
        known = {endpoint.id: endpoint for endpoint in self.endpoints.values()}
        found, flaw = sound(endpoints, known)
        self._flaw = f"{flaw} {self.mend}" if flaw else ""
        if flaw:
            self._log(self._flaw)
        self.endpoints = {(self.name, endpoint.id): endpoint for endpoint in found}
        self._published()
        self.looked.set()

    def _log(self, message: str) -> None:
        """Log a message, unless it was logged lately."""
        now, before = time.monotonic(), self._logged.get(message)
        self._logged = {one: at for one, at in self._logged.items() if now - at < _LOGGED_AGAIN_SECONDS}
        if before is None or now - before > _LOGGED_AGAIN_SECONDS:
            self._logged[message] = now
            logger.warning("Transport %s: %s", self.named, message)

    def opened(self) -> Transport:
        """Return the transport as it was opened last.

        Raises:
            TransportError: It is not open yet.
        """
        if self._transport is None:
            raise TransportError("The transport is not open.")
        return self._transport

    @property
    def invitation(self) -> str:
        """How to put an instance on it, as safe text; or nothing."""
        try:
            return "" if self._transport is None else clean_line(self._transport.invitation, 1000)
        except (Exception, SystemExit):  # foreign code, which may be a property
            return ""

    @property
    def problems(self) -> Sequence[Rejection]:
        """Why it does not work at present, and what it found and left out, as safe text."""
        found = [Rejection(source=self._source, reason=why) for why in (self._failure, self._flaw) if why]
        if not found and self._began is not None:
            reason = self._slow() or ("" if self.looked.is_set() else "It is still starting.")
            found += [Rejection(source=self._source, reason=reason)] if reason else []
        return [*found, *self._left_out()]

    def _left_out(self) -> Sequence[Rejection]:
        """What it found and left out, as safe text; of very many the first."""
        if self._transport is None:
            return ()
        told: list[Rejection] = []
        try:
            for one in islice(self._transport.rejected(), _MOST_LEFT_OUT):
                source, reason = clean_line(one.source, _SHOWN), clean_line(one.reason, _SHOWN)
                told.append(Rejection(source=source, reason=reason))
        except (Exception, SystemExit) as error:  # foreign code: the others are to be seen all the same
            reason = f"It cannot say what it left out: {type(error).__name__}."
            told.append(Rejection(source=self._source, reason=reason))
        return told
