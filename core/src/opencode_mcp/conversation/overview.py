"""The list of all instances, from memory: no request to anyone."""

from typing import Any

from opencode_mcp.fleet import Fleet, Monitor
from opencode_mcp.model import Status

_NOTES_SHOWN = 20


def overview(fleet: Fleet) -> dict[str, Any]:
    """Return the picture as plain data in the shape of `Overview`, which validates it.

    Plain data because it is asked for often and may have hundreds of rows.
    """
    problems = fleet.problems
    notes = [f"{one.source}: {one.reason}" for one in problems[:_NOTES_SHOWN]]
    if len(problems) > _NOTES_SHOWN:
        notes.append(f"{len(problems) - _NOTES_SHOWN} more were left out; `opencode-mcp doctor` names them.")
    rows = [_row(monitor) for monitor in fleet.monitors]
    if not rows:
        notes.extend(fleet.invitations)
    return {"instances": rows, "notes": notes}


def _row(monitor: Monitor) -> dict[str, Any]:
    instance = monitor.instance
    seen = monitor.last_seen
    return {
        "name": instance.name,
        "status": instance.status.value,
        "activity": instance.activity.value if instance.activity else None,
        "host": instance.endpoint.hostname,
        "identity": instance.endpoint.labels.get("identity", ""),
        "directory": instance.directory,
        "version": instance.version,
        "session": instance.session.title if instance.session else "",
        "waiting_for": instance.waiting_for,
        "last_seen": seen.isoformat() if seen else None,
        "transport": instance.transport,
        "detail": instance.detail,
    }


def overview_text(data: dict[str, Any]) -> str:
    """Say an overview in words: a line for each instance, and the notes."""
    lines = [_line(row) for row in data["instances"]] or ["No OpenCode instance is connected."]
    lines += [f"note: {note}" for note in data["notes"]]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    online = row["status"] == Status.ONLINE.value
    parts = [row["name"], row["status"] if not online else (row["activity"] or "online")]
    place = ":".join(filter(None, (row["host"], row["directory"])))
    if place:
        parts.append(place)
    if row["identity"]:
        parts.append(row["identity"])
    if row["session"]:
        parts.append(f'"{row["session"]}"')
    if row["waiting_for"]:
        parts.append(f"waits for a person ({row['waiting_for']})")
    if row["version"]:
        parts.append(f"v{row['version']}")
    if not online:
        parts.append(f"last seen {row['last_seen'] or 'never'}")
    if row["detail"]:
        parts.append(row["detail"])
    return " | ".join(parts)
