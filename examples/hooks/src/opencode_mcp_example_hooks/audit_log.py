"""Writes all that is done to instances into the file `AUDIT_LOG`: a line of JSON at its beginning and end."""

import hashlib
import json
import os
from datetime import UTC, datetime

from opencode_mcp import Action, hookimpl

FILE = "AUDIT_LOG"
"""Names the file. While it is not set, nothing is written."""
WITH_TEXT = "AUDIT_LOG_TEXT"
"""Set to 1, it lets the messages themselves be written; else only their length and digest are."""


@hookimpl
def opencode_mcp_instance_audit(action: Action) -> None:
    """Append a line. What fails is raised: core logs it with the name of this plugin."""
    path = os.environ.get(FILE)
    if not path:
        return
    entry: dict[str, str | int] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": action.id,
        "caller": action.caller,
        "action": action.kind,
        "instance": action.instance.name,
        "url": action.instance.endpoint.url,
        "session": action.session,
        "outcome": action.outcome or "begins",
        "detail": action.detail,
    }
    if action.kind == "send":
        entry["characters"] = len(action.text)
        entry["sha256"] = hashlib.sha256(action.text.encode("utf-8", "surrogatepass")).hexdigest()
        if os.environ.get(WITH_TEXT) == "1":
            entry["text"] = action.text
    line = json.dumps(entry) + "\n"  # ASCII only: what a message holds cannot begin another line
    # In one write at the end of the file, so that the lines of several processes do not mix.
    with open(path, "ab", opener=_for_this_user_only) as file:
        file.write(line.encode())


def _for_this_user_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
