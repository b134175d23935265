"""Whether the OpenCode to be announced is there: asks it, often until it answers, then now and then."""

import logging
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from opencode_mcp.connect.known import Known, known_at, only_us
from opencode_mcp.errors import CredentialsError, OpenCodeMCPError, ProtocolError, StrangerError
from opencode_mcp.opencode.probe import Health, probe, project
from opencode_mcp.state.listening import listening_user
from opencode_mcp.text import printable

logger = logging.getLogger(__name__)

_STEP_SECONDS = 0.05
_ANSWER_SECONDS = 0.4
"""OpenCode 1.18 was seen to accept a request while it starts and never to answer it: so ask again soon."""
_SOON_SECONDS = 60.0
_LATER_SECONDS = 1.0
"""Between two questions to one that has not answered for `_SOON_SECONDS`."""
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
        announced: The URL that says to others where it listens; empty for the one that was to be expected.
        version: What it called itself last.
        directory: Its project, of one that was not started here; empty if that is no printable path.
        answered: Whether it has ever answered.
        guarded: Whether it wants a password.
        problem: Why it does not answer as it should, or empty.
        owner: The id of the user whose program it is, and who gets the password besides this one and root: of
            one that was not started here, whoever had the port when it was first asked. None if unknown.
    """

    def __init__(self, url: str, *, username: str, password: str | None, started_here: bool) -> None:
        self.url = url
        self.announced = self.version = self.directory = ""
        self.answered = False
        self.guarded = False
        self.problem = f"{url} was not asked."
        self.owner: int | None = None
        self._username = username
        self._password = password
        self._started_here = started_here

    async def appears(self) -> None:
        """Return as soon as it answers, if only that it wants another password: the gateway may have that."""
        began = anyio.current_time()
        while not await self._answers(_ANSWER_SECONDS):
            soon = anyio.current_time() - began < _SOON_SECONDS
            await anyio.sleep(_STEP_SECONDS if soon else _LATER_SECONDS)

    async def vanishes(self) -> None:
        """Return once it has not answered several times in a row."""
        failures = 0
        while failures < _FAILURES:
            await anyio.sleep(_LOOK_SECONDS)
            failures = 0 if await self._answers(_PATIENCE_SECONDS) else failures + 1

    def _find(self) -> Known:
        """Return where to ask it, and what is known of it; called in a thread, each time before it is asked.

        Raises:
            OpenCodeMCPError: It is not there.
        """
        if self._started_here:
            return Known(url=self.url, password=self._password, users=only_us())
        if self.owner is None:
            self.owner = listening_user(self.url)
        return known_at(self.url, self._password, self.owner)

    async def _answers(self, seconds: float) -> bool:
        def ask() -> tuple[str, Health, str]:
            known = self._find()
            port = urlsplit(known.url).port or 0
            uid = listening_user(known.url) if self._started_here else None
            if uid is not None and uid not in (only_us() or ()):
                raise ProtocolError(
                    f"Port {port} was taken by another user (uid {uid}) before OpenCode had it."
                )
            username = known.username or self._username
            asking: Any = {
                "seconds": seconds,
                "username": username,
                "password": known.password,
                "users": known.users,
            }
            health = probe(known.url, **asking, pid=known.pid, version=known.version)
            directory = self.directory
            # OpenCode 2.x works in many directories, so it has none of its own.
            if not (self._started_here or self.answered or health.pid):
                with suppress(OpenCodeMCPError):  # gateways will ask it themselves
                    directory = printable(project(known.url, **asking))
            return known.url, health, directory

        try:
            with anyio.move_on_after(2 * seconds):
                found = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)
                self.url, health, self.directory = found
                self.version, self.guarded = health.version, health.guarded
                self.problem = ""
                self.answered = True
                return True
            self.problem = f"{self.url} does not answer in time."
        except StrangerError as error:  # so it is not the one that was announced
            self.problem = str(error)
        except CredentialsError as error:
            return self._locked(error)
        except OpenCodeMCPError as error:
            self.problem = str(error)
        return False

    def _locked(self, error: CredentialsError) -> bool:
        """Whether one counts as there that wants another password."""
        self.guarded = self.answered = True
        if self.problem != str(error):
            logger.warning("%s", error)
        self.problem = str(error)
        return True
