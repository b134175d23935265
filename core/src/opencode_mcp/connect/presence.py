"""Whether the OpenCode to be announced is there: asks it, often until it answers, then now and then."""

import logging
import os
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from opencode_mcp.errors import CredentialsError, OpenCodeMCPError, ProtocolError
from opencode_mcp.opencode.probe import Health, probe, project
from opencode_mcp.state.listening import listening_user
from opencode_mcp.text import printable

logger = logging.getLogger(__name__)

_STEP_SECONDS = 0.05
_ANSWER_SECONDS = 0.4
"""OpenCode 1.18 was seen to accept a request while it starts and never to answer it: so ask again soon."""
_LOOK_SECONDS = 10.0
_PATIENCE_SECONDS = 3.0
_FAILURES = 3


class Presence:
    """The OpenCode at `url`.

    Args:
        url: Where it answers on this machine.
        username: The user name that goes with the password.
        password: The password, or None.
        started_here: Whether it was started by us, so that a listener of another user is an impostor.

    Attributes:
        url: Where it answers on this machine.
        version: What it called itself last.
        directory: Its project, of one that was not started here; empty if that is no printable path.
        answered: Whether it has ever answered.
        guarded: Whether it wants a password.
        problem: Why it does not answer as it should, or empty.
    """

    def __init__(self, url: str, *, username: str, password: str | None, started_here: bool) -> None:
        self.url = url
        self.version = self.directory = ""
        self.answered = False
        self.guarded = False
        self.problem = f"{url} was not asked."
        self._username = username
        self._password = password
        self._started_here = started_here

    async def appears(self) -> None:
        """Return as soon as it answers, if only that it wants another password: the gateway may have that."""
        while not await self._answers(_ANSWER_SECONDS):  # noqa: ASYNC110 - it is in another process
            await anyio.sleep(_STEP_SECONDS)

    async def vanishes(self) -> None:
        """Return once it has not answered several times in a row."""
        failures = 0
        while failures < _FAILURES:
            await anyio.sleep(_LOOK_SECONDS)
            failures = 0 if await self._answers(_PATIENCE_SECONDS) else failures + 1

    async def _answers(self, seconds: float) -> bool:
        def ask() -> tuple[Health, str]:
            port = urlsplit(self.url).port or 0
            if self._started_here and (uid := listening_user(self.url)) not in (None, os.geteuid()):
                raise ProtocolError(
                    f"Port {port} was taken by another user (uid {uid}) before OpenCode had it."
                )
            asking: Any = {"seconds": seconds, "username": self._username, "password": self._password}
            health, directory = probe(self.url, **asking), self.directory
            if not (self._started_here or self.answered):
                with suppress(OpenCodeMCPError):  # gateways will ask it themselves
                    directory = printable(project(self.url, **asking))
            return health, directory

        try:
            with anyio.move_on_after(2 * seconds):
                health, self.directory = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)
                self.version, self.guarded = health
                self.problem = ""
                self.answered = True
                return True
            self.problem = f"{self.url} does not answer in time."
        except CredentialsError as error:
            self.guarded = self.answered = True
            if self.problem != str(error):
                logger.warning("%s", error)
            self.problem = str(error)
            return True
        except OpenCodeMCPError as error:
            self.problem = str(error)
        return False
