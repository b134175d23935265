"""How an instance stands, judged by how its connections end: when to try again, and when it is gone."""

import time

from opencode_mcp.errors import (
    CredentialsError,
    OpenCodeMCPError,
    ProtocolError,
    TransportError,
    UnreachableError,
)
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.model import Status
from opencode_mcp.text import clean_line

_LONGEST_GAP = 60.0
"""Seconds between two failures that count at most: time in which nobody looked is no evidence."""


class Health:
    """Online, unreachable, offline: one failure changes little, and only evidence counts against a record.

    Attributes:
        status: How it stands.
        detail: Why it is not online, in one line; or empty.
    """

    def __init__(self, pace: Pace) -> None:
        self.status = Status.CONNECTING
        self.detail = ""
        self._pace = pace
        self._attempts = 0
        self._failures = 0
        self._failing_seconds = 0.0
        self._failed_at: float | None = None

    def answers(self) -> None:
        """Take note that it answers as an OpenCode. After a failure more is needed to call it online."""
        self._no_evidence()
        if not self._failures:
            self._online()

    def works(self) -> None:
        """Take note that all that is asked of it works."""
        self._failures = 0
        self._online()

    def withdrawn(self) -> None:
        """Take note that its transport lists it no more."""
        self.status, self.detail = Status.OFFLINE, "It was withdrawn."

    def failed(self, error: OpenCodeMCPError, *, lasted: float) -> float:
        """Take note of a failure and return how long to wait before the next try, in seconds.

        Args:
            error: What went wrong.
            lasted: How long the connection had lasted, in seconds.
        """
        self.detail = clean_line(str(error), 300)
        if isinstance(error, CredentialsError):
            self.status, self._failures = Status.NEEDS_CREDENTIALS, 0
        else:
            self._failures += 1
            gone = self._failures >= self._pace.failures_to_offline
            self.status = Status.OFFLINE if gone else Status.UNREACHABLE
        if isinstance(error, UnreachableError | ProtocolError | TransportError):
            now = time.monotonic()
            if self._failed_at is not None:
                self._failing_seconds += min(now - self._failed_at, _LONGEST_GAP)
            self._failed_at = now
        else:  # it answers with an error, or this machine is at fault
            self._no_evidence()
        self._attempts = 0 if lasted > self._pace.stable else self._attempts
        wait = self._pace.retries[min(self._attempts, len(self._pace.retries) - 1)]
        self._attempts += 1
        return wait

    def is_gone(self, seconds: float) -> bool:
        """Whether it has failed for `seconds` without one success; said once, then the time runs anew."""
        if self._failing_seconds < seconds:
            return False
        self._failing_seconds = 0.0
        return True

    def _online(self) -> None:
        self.status, self.detail = Status.ONLINE, ""

    def _no_evidence(self) -> None:
        self._failing_seconds, self._failed_at = 0.0, None
