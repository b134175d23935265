"""Tells plugins what is done to an instance: as it begins, and once it is over, however that comes."""

import dataclasses
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

import anyio

from opencode_mcp.errors import ours
from opencode_mcp.fleet import Fleet, Monitor
from opencode_mcp.model import Action, Session
from opencode_mcp.opencode.fields import is_identifier
from opencode_mcp.text import clean_line


class Audited:
    """One action, which nobody is told of before it concerns an instance.

    Args:
        fleet: Knows the plugins.
        kind: What is done.
        caller: Who asked for it.
        text: The message, if one is sent.
    """

    def __init__(
        self, fleet: Fleet, kind: Literal["send", "abort", "read"], *, caller: str, text: str = ""
    ) -> None:
        self._fleet = fleet
        self._kind: Literal["send", "abort", "read"] = kind
        self._caller = caller
        self._text = text
        self._action: Action | None = None

    def begins(self, monitor: Monitor, session: str | None) -> None:
        """Tell that it begins, before anything is sent: also before it is asked which session is meant.

        Args:
            monitor: The instance.
            session: What the caller says of the session; an id is told, and so is the one used last.
        """
        known = session or ""
        if not known and monitor.stocked and (last := monitor.picture.session) is not None:
            known = last.id
        self._action = Action(
            id=uuid.uuid4().hex,
            kind=self._kind,
            instance=monitor.instance,
            caller=clean_line(self._caller),
            began=datetime.now(UTC),
            session=known if known.startswith("ses_") and is_identifier(known) else "",
            text=self._text,
        )
        self._fleet.audit(self._action)

    def concerns(self, session: Session | None) -> None:
        """Take note of the session."""
        if self._action is not None and session is not None:
            self._action = dataclasses.replace(self._action, session=session.id)

    def ended(self, outcome: str, detail: str = "") -> None:
        """Tell that it is over; the first call counts."""
        if self._action is not None:
            self._fleet.audit(
                dataclasses.replace(self._action, outcome=outcome, detail=clean_line(detail, 500))
            )
            self._action = None

    @contextmanager
    def to_the_end(self) -> Generator["Audited"]:
        """Tell of an error, or of being cancelled, that ends it."""
        try:
            yield self
        except Exception as error:
            known = ours(error)  # the words of others might hold a secret
            self.ended("error", str(known) if known else f"It failed with {type(error).__name__}.")
            raise
        except anyio.get_cancelled_exc_class():
            self.ended("cancelled", "The caller stopped waiting; what was sent already goes on.")
            raise
