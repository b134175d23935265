"""Reads the newest messages of a session, and fewer where those are too large together."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from opencode_mcp.errors import TooLargeError
from opencode_mcp.opencode.api import Message, OpenCode

_IF_LARGE = (10, 3, 1)


class Stored(NamedTuple):
    """Messages, oldest first.

    Attributes:
        messages: The newest ones.
        fewer: How many were asked for instead of those wanted, or 0.
    """

    messages: Sequence[Message]
    fewer: int = 0


async def newest(api: OpenCode, session_id: str, limit: int) -> Stored:
    """Read the newest `limit` messages, or as many of them as can be read at once.

    Raises:
        TooLargeError: Not even the newest can.
        OpenCodeMCPError: They cannot be had.
    """
    *more, least = (limit, *(fewer for fewer in _IF_LARGE if fewer < limit))
    for wanted in more:
        with suppress(TooLargeError):
            return Stored(await api.messages(session_id, wanted), 0 if wanted == limit else wanted)
    return Stored(await api.messages(session_id, least), 0 if least == limit else least)
