"""tailscaled's bus: a line of JSON, of megabytes at times, for everything that changes."""

import re
from collections.abc import AsyncIterator, Callable

from opencode_mcp import TransportError
from opencode_mcp_tailscale.loose import mapping, parsed, text

_RELEVANT = re.compile(
    rb'"(?:State|Prefs|SelfChange|NetMap|PeersChanged|PeersRemoved|PeerChanges|Online|KeyExpiry)"\s*:\s*(?!null|\s)'
)
_LONGEST_MATCH = 64
_FIRST_LINE = 1 << 20


class Bus:
    """What tailscaled tells of changes, for as long as it tells.

    Lines are not taken apart: what they say differs with each version of tailscaled. That they name something
    of which a status tells is enough to read the status again. A key within a text has its quotes escaped.

    Args:
        parts: The body of the answer.

    Attributes:
        session: The id of this watching, to which a serve config can be bound.
    """

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""
        self.session = ""

    async def open(self) -> None:
        """Read the first line.

        Raises:
            TransportError: It is none, or the bus ended.
        """
        read = b""
        while b"\n" not in read:
            part = await anext(self._parts, b"")
            if not part or len(read) > _FIRST_LINE:
                raise TransportError("tailscaled tells nothing of what changes.")
            read += part
        line, _, self._rest = read.partition(b"\n")
        first = mapping(parsed(line))
        if not first:
            raise TransportError("tailscaled tells of changes in words that are not understood.")
        self.session = text(first.get("SessionID"))

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` after whatever may have changed the status, until tailscaled ends the bus."""
        kept = self._rest
        while True:
            matches = list(_RELEVANT.finditer(kept))
            if matches:
                changed()
                kept = kept[matches[-1].end() :]
            kept = kept[-_LONGEST_MATCH:]
            part = await anext(self._parts, b"")
            if not part:
                return
            kept += part
