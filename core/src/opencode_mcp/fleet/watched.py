"""Runs one transport for good: what its code raises is told, and goes no further."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from opencode_mcp.errors import TransportError, ours
from opencode_mcp.model import Endpoint, Rejection
from opencode_mcp.settings import Settings
from opencode_mcp.text import clean_line
from opencode_mcp.transport import Transport, TransportPlugin

logger = logging.getLogger(__name__)

_MAX_ENDPOINTS = 5_000
_RETRIES = (1.0, 2.0, 5.0, 10.0, 30.0)
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
        self._problem = ""

    async def run(self) -> None:
        """Open it and watch until cancelled; one that fails is reported, and tried again."""
        failures = 0
        while True:
            began = anyio.current_time()
            try:
                async with self._plugin.open(self._settings) as transport:
                    self._transport = transport
                    transport.rescan_seconds = self._rescan_seconds
                    await transport.watch(self._publish)
                problem = "Its watch ended without an error."
            except Exception as error:  # foreign code: its failure must not stop the others
                known = ours(error)
                why = f"It failed with {type(error).__name__}; OPENCODE_MCP_LOG_LEVEL=DEBUG tells more."
                problem = clean_line(str(known), _SHOWN) if known else why
                logger.debug("Transport %s failed.", self.name, exc_info=error)
            failures = 0 if anyio.current_time() - began > _RETRIES[-1] else failures
            wait = _RETRIES[min(failures, len(_RETRIES) - 1)]
            failures += 1
            if problem != self._problem:
                logger.warning("Transport %s: %s It is tried again.", self.name, problem)
            self._problem = problem
            self.looked.set()
            await anyio.sleep(wait)

    def _publish(self, endpoints: Sequence[Endpoint]) -> None:
        self._problem = ""
        if len(endpoints) > _MAX_ENDPOINTS:
            self._problem = f"It publishes {len(endpoints)} endpoints; only the first {_MAX_ENDPOINTS} count."
            logger.warning("Transport %s: %s", self.name, self._problem)
            endpoints = endpoints[:_MAX_ENDPOINTS]
        self.endpoints = {(self.name, endpoint.id): endpoint for endpoint in endpoints}
        self._published()
        self.looked.set()

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
        return "" if self._transport is None else clean_line(self._transport.invitation, 1000)

    @property
    def problems(self) -> Sequence[Rejection]:
        """Why it does not work at present, and what it found and left out, as safe text."""
        here = f"transport {self.name}"
        found: list[Rejection] = []
        if self._problem:
            found.append(Rejection(source=here, reason=self._problem))
        elif not self.looked.is_set():
            found.append(Rejection(source=here, reason="It is still starting."))
        if self._transport is None:
            return found
        try:
            for one in self._transport.rejected():
                source, reason = clean_line(one.source, _SHOWN), clean_line(one.reason, _SHOWN)
                found.append(Rejection(source=source, reason=reason))
        except Exception as error:  # foreign code: the others are to be seen all the same
            reason = f"It cannot say what it left out: {type(error).__name__}."
            found.append(Rejection(source=here, reason=reason))
        return found
