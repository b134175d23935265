"""What people and models are told of an instance and its agent, in sentences, and how much text they get."""

from opencode_mcp.fleet import Monitor
from opencode_mcp.model import Session, Status

MOST_REPLY = 400_000
"""Characters of an answer that are passed on."""
MOST_MESSAGE = 50_000
"""Characters of one message in a transcript."""


def stands(monitor: Monitor) -> str:
    """Say how an instance stands, as the end of a sentence that begins with its name."""
    status = monitor.instance.status
    return status.value if status is Status.NEEDS_CREDENTIALS else f"is {status.value}"


def away(monitor: Monitor) -> str:
    """Say why an instance cannot be talked to."""
    instance = monitor.instance
    seen = f", last seen {monitor.last_seen.isoformat()}" if monitor.last_seen else ""
    why = instance.detail or "Try again in a moment."
    return f"{instance.name} {stands(monitor)}{seen}. {why}"


def busy(monitor: Monitor, session: Session) -> str:
    """Say why nothing was sent."""
    what = monitor.picture.waiting_for(session.id)
    doing = f"it waits for a person ({what})" if what else monitor.picture.doing(session.id)
    about = f', "{session.title}"' if session.title else ""
    return (
        f"{monitor.name} is busy{about}{f': {doing}' if doing else ''}. Nothing was sent. "
        "Wait and `read`, send into another session (`new` for a fresh one), or stop it with abort."
    )


def doing(monitor: Monitor, session_id: str, seconds: float) -> str:
    """Say in a line what an agent does that has been silent, `seconds` after it was asked."""
    picture, waited = monitor.picture, f"{round(seconds)} s"
    if what := picture.waiting_for(session_id):
        return f"[waits for a person to decide: {what}; {waited}]"
    if monitor.instance.status is not Status.ONLINE:
        return f"[the instance {stands(monitor)}; {waited}]"
    if not monitor.stocked:
        return f"[was at work when last heard of; {waited}]"
    tool = picture.doing(session_id)
    return f"[at work{f': {tool}' if tool else ''}; {waited}]"


def still_running(monitor: Monitor, session_id: str, seconds: float) -> str:
    """Say how things stand when the waiting ends before the answer is there, and how to go on."""
    what = monitor.picture.waiting_for(session_id)
    if monitor.instance.status is not Status.ONLINE:
        state = f"The instance {stands(monitor)} at present. {monitor.instance.detail}".rstrip()
    elif what:
        state = f"It waits for a person to decide: {what}."
    elif not monitor.stocked:
        state = "The agent was at work when last heard of."
    else:
        state = "The agent is still at work."
    waited = f"Waited {round(seconds)} s."
    return f"{state} {waited} `read` shows how it goes on; the answer will be there."


def parked(monitor: Monitor) -> str:
    """Say that a message waits on a server behind a turn that somebody stopped."""
    return (
        f"Somebody stopped the turn before it, so the message waits on {monitor.name}: its agent takes it up "
        "with the next one. Do not send it again."
    )


def fewer_read(count: int) -> str:
    """Say that only the newest `count` messages were read."""
    shown = "the newest message is" if count == 1 else f"the newest {count} messages are"
    return f"Only {shown} shown: more are too large to be read at once."


def shortened(text: str, limit: int) -> tuple[str, str]:
    """Cut `text` to `limit` characters; also returns a note about that, or an empty string."""
    if len(text) <= limit:
        return text, ""
    return text[:limit] + "…", f"The text is cut: {limit} of {len(text)} characters."
