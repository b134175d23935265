"""Picks the session that is meant."""

from opencode_mcp.errors import ConversationError, RequestError
from opencode_mcp.fleet import Monitor
from opencode_mcp.fleet.names import listed
from opencode_mcp.model import Session
from opencode_mcp.opencode.fields import is_identifier
from opencode_mcp.text import clean_line


async def choose(monitor: Monitor, wanted: str | None) -> Session | None:
    """Return the session of an instance that `wanted` means; None if a new one is to be made.

    Args:
        monitor: The instance.
        wanted: An id, a part of a title, or `new`; None for the session used last.

    Raises:
        ConversationError: None or several fit.
    """
    wanted = (wanted or "").strip()
    if wanted == "new":
        return None
    if not wanted and monitor.stocked:
        return monitor.picture.session
    sessions = await monitor.api.sessions()
    if not wanted:
        return sessions[0] if sessions else None
    for session in sessions:
        if session.id == wanted:
            return session
    if wanted.startswith("ses_") and is_identifier(wanted):
        try:
            return await monitor.api.session(wanted)
        except RequestError as error:
            raise ConversationError(f"{monitor.name} has no session {wanted}: {error}") from error
    folded = wanted.casefold()
    found = [one for one in sessions if one.title.casefold() == folded]
    found = found or [one for one in sessions if folded in one.title.casefold()]
    if len(found) == 1:
        return found[0]
    asked = clean_line(wanted, 80)
    titles = listed(f"{one.title!r} ({one.id})" for one in found or sessions)
    if found:
        raise ConversationError(
            f"{asked!r} fits several sessions of {monitor.name}: {titles}. Say which one."
        )
    raise ConversationError(f"{monitor.name} has no session like {asked!r}. It has: {titles or 'none'}.")
