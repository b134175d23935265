"""Tables and live text for a terminal."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from opencode_mcp.conversation import Reply
from opencode_mcp.plugins import InstalledTransport

_WHOLE_LINES = 10_000
_STYLES = {"online": "green", "idle": "green", "busy": "yellow", "connecting": "dim", "offline": "dim"}


def instances(data: dict[str, Any]) -> None:
    """Print the overview as a table, the notes below it."""
    console = _console()
    rows: list[dict[str, Any]] = data["instances"]
    if rows:
        table = _table("name", "state", "host", "directory", "session", "version", "last seen")
        for row in rows:
            state = row["activity"] or row["status"] if row["status"] == "online" else row["status"]
            about = row["waiting_for"] and f"waits for you: {row['waiting_for']}"
            table.add_row(
                Text(row["name"], "bold"),
                Text(state, _STYLES.get(state, "red")),
                Text(f"{row['host']} ({row['identity']})" if row["identity"] else row["host"]),
                Text(row["directory"]),
                Text(about or row["session"] or row["detail"]),
                Text(row["version"]),
                Text("" if row["status"] == "online" else (row["last_seen"] or "never")),
            )
        console.print(table)
    else:
        console.print("No OpenCode instance is connected.")
    for note in data["notes"]:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def transports(rows: Sequence[InstalledTransport], missing: Sequence[InstalledTransport]) -> None:
    """Print the installed transports, and which selected ones are missing."""
    console = _console()
    table = _table("transport", "selected", "package", "what it does")
    for row in rows:
        about = Text(f"broken: {row.problem}", "red") if row.problem else Text(row.summary)
        table.add_row(
            Text(row.name, "bold"), "yes" if row.selected else "", f"{row.distribution} {row.version}", about
        )
    console.print(table)
    for row in missing:
        console.print(Text(row.problem, "red"), soft_wrap=True)  # so that a command can be copied


def transport_row(row: InstalledTransport) -> dict[str, Any]:
    """Return a row for `--json`."""
    return {**dataclasses.asdict(row), "broken": bool(row.problem)}


def _console() -> Console:
    # Who reads lines, not a screen, gets each row as one line.
    return Console(width=None if sys.stdout.isatty() else _WHOLE_LINES)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


class SignsOnly:
    """Where the answer is for a program: what goes on is shown on stderr, if a person sees that."""

    async def text(self, piece: str) -> None:
        """Wait for the whole answer."""

    async def sign_of_life(self, what: str) -> None:
        """Show a line."""
        if sys.stderr.isatty():
            sys.stderr.write(f"{what}\n")

    def end(self, reply: Reply) -> None:
        """Print the answer on stdout, the note on stderr."""
        if reply.text:
            sys.stdout.write(reply.text.rstrip("\n") + "\n")
        if reply.note:
            sys.stderr.write(f"{reply.note}\n")


class Typing(SignsOnly):
    """Writes the answer on a terminal as it comes."""

    def __init__(self) -> None:
        self._written = ""

    async def text(self, piece: str) -> None:
        """Write it at once."""
        self._written += piece
        sys.stdout.write(piece)
        sys.stdout.flush()

    def end(self, reply: Reply) -> None:
        """Close the line; if the answer differs from what was typed, the answer counts."""
        if self._written:
            sys.stdout.write("\n")
        shown = self._written.rstrip().endswith(reply.text.rstrip())
        super().end(reply.model_copy(update={"text": ""}) if shown else reply)
