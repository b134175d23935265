"""For whom the user vouches: MDNS_CREDENTIALS_FOR, whose names are never taken from an advertisement."""

import logging
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address

import anyio
import anyio.to_thread

from opencode_mcp import clean_line
from opencode_mcp_mdns.advert import Place
from opencode_mcp_mdns.settings import MDnsSettings

logger = logging.getLogger(__name__)

_LOOK_UP_SECONDS = 30.0


class Vouching:
    """The hosts that the user vouches for.

    Args:
        settings: Name them.
        changed: Called when they are others.
    """

    def __init__(self, settings: MDnsSettings, *, changed: Callable[[], None]) -> None:
        self._networks = settings.vouched_networks
        self._scoped = settings.vouched_scoped
        self._names = settings.vouched_names
        self._changed = changed
        self._found: dict[str, frozenset[str]] = {}
        self._failed: set[str] = set()

    def vouched(self, place: Place) -> bool:
        """Whether the user vouches for whoever is at a place."""
        address = str(place.address)
        bare = ip_address(address.partition("%")[0])
        return (
            address in self._scoped
            or any(bare in network for network in self._networks)
            or any(str(bare) in addresses for addresses in self._found.values())
        )

    async def run(self, every_seconds: float) -> None:
        """Look the names up, again and again; one that cannot be found keeps what it meant before."""
        while self._names:
            for name in self._names:
                await self._look_up(name)
            await anyio.sleep(max(every_seconds, _LOOK_UP_SECONDS))

    async def _look_up(self, name: str) -> None:
        try:
            ask = partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
            answers = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except OSError as error:
            if name not in self._failed:
                self._failed.add(name)
                why = error.strerror or "no answer"
                logger.warning("%s of MDNS_CREDENTIALS_FOR cannot be found: %s.", clean_line(name), why)
            return
        self._failed.discard(name)
        addresses = frozenset(str(answer[4][0]).partition("%")[0] for answer in answers)
        if addresses != self._found.get(name):
            self._found[name] = addresses
            self._changed()
