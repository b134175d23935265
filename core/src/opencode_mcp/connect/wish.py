"""What the user wants of `opencode-connected`, and how it went."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opencode_mcp.connect.child import Child
from opencode_mcp.connect.generation import generation_of
from opencode_mcp.connect.selection import Selection
from opencode_mcp.settings import ConnectSettings


class Wish(NamedTuple):
    """What is to be started, and where that is announced.

    Attributes:
        settings: The settings.
        selection: The transports.
        state: The state directory.
        directory: The working directory.
        program: The command that starts OpenCode; none if nothing is started.
        version: The version that the program says; empty if it says none.
        headless: Whether the server alone is wanted.
        attach: The URL of a server that runs already, or None.
        port: The port it is to listen on; None for any.
        passed_on: Arguments for OpenCode.
    """

    settings: ConnectSettings
    selection: Selection
    state: Path
    directory: Path
    program: Sequence[str]
    version: str
    headless: bool
    attach: str | None
    port: int | None
    passed_on: Sequence[str]

    @property
    def interactive(self) -> bool:
        """Whether a person uses what is started here."""
        return self.attach is None and not self.headless

    @property
    def second(self) -> bool:
        """Whether OpenCode 2.x is started."""
        return generation_of(self.version) == 2


class Ended(NamedTuple):
    """How it went.

    Attributes:
        child: What was started here, or None.
        said: The version that answered last; empty if none did.
        told: The signal that told us to leave, or None.
        problem: Why nothing was announced, or empty.
        remarks: What a person has to be told.
        log: Where the log is.
    """

    child: Child | None
    said: str
    told: int | None
    problem: str
    remarks: Sequence[str]
    log: Path
