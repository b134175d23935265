"""The background service of OpenCode 2.x on this machine, listed as if it were registered.

Its file says where it is and what password it wants, to this user only: see `opencode_mcp.local_services`.
"""

import logging
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio
import anyio.to_thread

from opencode_mcp import (
    Endpoint,
    LocalService,
    Rejection,
    Route,
    TransportError,
    clean_line,
    local_services,
    opencode_auth,
    services_directory,
)
from opencode_mcp_local_relay.users import ours

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 2.0
_ID = "service/"
"""How an id begins that is a service file's; no name of a registration file holds a slash."""


class Services:
    """The service files of this user, and what they said last.

    Attributes:
        rejected: Those that the last look left out, with reasons.
    """

    def __init__(self) -> None:
        self.rejected: Sequence[Rejection] = ()
        self._known: Mapping[str, LocalService] | None = None  # by id
        self._lock = anyio.Lock()
        self._busy = threading.Lock()

    async def look(self) -> None:
        """Read the files. What is wrong with them is told once, and stops nobody: see `rejected`."""
        read = _Read(None, [_no_answer()])
        with anyio.move_on_after(_PATIENCE_SECONDS):
            async with self._lock:
                read = await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        told = set(self.rejected)
        for one in read.rejected:
            if one not in told:
                logger.warning("The service file %s is left out: %s", one.source, one.reason)
        self.rejected = read.rejected
        if read.services is not None:
            self._known = read.services

    def beside(self, registered: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Return what is registered and, of the services, those that are not.

        A service that is registered by itself has a better name there. Only a registration that is vouched
        for counts as one, and none may take the id of a service.
        """
        known = self._known or {}
        urls = {endpoint.url for endpoint in registered if endpoint.vouched}
        found = [endpoint for endpoint in registered if endpoint.id not in known]
        found += [_endpoint(key, one) for key, one in known.items() if one.url not in urls]
        return tuple(found)

    async def route(self, endpoint: Endpoint) -> Route | None:
        """Return how to reach a service, with what its file says now; None if `endpoint` is none.

        Raises:
            TransportError: It is not there now.
        """
        listed = endpoint.id.startswith(_ID)
        if self._known is None or listed or self._of(endpoint):
            await self.look()
        if one := self._of(endpoint):
            # In a thread, since it may be the first to import httpx2.
            auth = await anyio.to_thread.run_sync(opencode_auth, one.password) if one.password else None
            return Route(base_url=one.url, auth=auth, pid=one.pid, version=one.version, users=ours())
        if not listed:
            return None
        name = endpoint.id.removeprefix(_ID)
        why = next((one.reason for one in self.rejected if one.source.endswith(name)), "Its file is gone.")
        raise TransportError(f"The background service of OpenCode is not there: {why}")

    def _of(self, endpoint: Endpoint) -> LocalService | None:
        """The service behind an endpoint: one that is listed as such, or registered by somebody trusted."""
        known = self._known or {}
        if endpoint.id in known or not endpoint.vouched:
            return known.get(endpoint.id)
        return next((one for one in known.values() if one.url == endpoint.url), None)

    def _read(self) -> "_Read":
        if not self._busy.acquire(blocking=False):
            return _Read(None, [_no_answer()])  # an earlier look hangs
        try:
            found, rejected = local_services()
        except OSError as error:
            why = f"It cannot be read: {error.strerror or error}."
            return _Read(None, [Rejection(source=_shown(), reason=why)])
        finally:
            self._busy.release()
        return _Read({f"{_ID}{clean_line(one.path.name, 200)}": one for one in found}, rejected)


class _Read(NamedTuple):
    services: Mapping[str, LocalService] | None  # None if that could not be learnt
    rejected: Sequence[Rejection]


def _no_answer() -> Rejection:
    return Rejection(source=_shown(), reason="Its file system does not answer; it is tried again.")


def _shown() -> str:
    try:
        return clean_line(str(services_directory()), 1000)
    except OSError:
        return "~/.local/state/opencode"


def _endpoint(key: str, service: LocalService) -> Endpoint:
    """Describe a service; its process is told, so that a restart at the same address is a change."""
    hostname = clean_line(socket.gethostname(), 255)
    file = service.path.name
    channel = file.removeprefix("service").removesuffix(".json").strip("-")
    host = hostname.partition(".")[0] or "localhost"
    labels = {"service": clean_line(file, 200), "pid": str(service.pid), "auth": "basic"}
    if service.version:
        labels["version"] = service.version
    return Endpoint(
        id=key,
        name=clean_line(f"{host}-{channel}" if channel else host, 200),
        url=service.url,
        hostname=hostname,
        labels=labels,
        vouched=True,
    )
