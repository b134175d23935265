"""The background service of OpenCode 2.x: started if it is not there, and followed as it restarts."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from opencode_mcp.connect.known import Known, known_service
from opencode_mcp.connect.presence import Presence
from opencode_mcp.errors import CredentialsError, ProtocolError, UnreachableError
from opencode_mcp.opencode.probe import probe
from opencode_mcp.state.services import LocalService, local_services, nobody_listens
from opencode_mcp.text import clean_line

logger = logging.getLogger(__name__)

_START_SECONDS = 20.0
_SETTLE_SECONDS = 3.0
"""How long its file may take to be there after the command that starts it has ended, and it to answer."""
_STEP_SECONDS = 0.05
_FILE_SECONDS = 2.0
"""Between two looks at its file while it is announced."""
_ASK_SECONDS = 10.0
_PATIENCE_SECONDS = 3.0
"""How long one may take to restart without its being withdrawn, if it comes back at the same address."""
_FAILURES = 3
_GLANCE_SECONDS = 0.2
"""How long one may take to show that it is not the service."""

_Stamp = tuple[int, int, int] | None


def find_service(version: str) -> LocalService:
    """Return the background service of this user. It blocks.

    Args:
        version: That of the OpenCode which is to use it. Of several services, one of the same version counts
            first, then that of the usual channel; but before all, one that is there.

    Raises:
        UnreachableError: There is none; says why.
    """
    try:
        found, rejected = local_services()
    except OSError as error:
        raise UnreachableError(f"Its service files cannot be read: {error.strerror or error}.") from None
    if found:
        best = sorted(found, key=lambda one: (one.version != version, one.path.name != "service.json"))
        # One that was killed leaves its file, which must not hide one that runs.
        return next((one for one in best if len(best) > 1 and not _is_gone(one)), best[0])
    if rejected:
        raise UnreachableError(f"{rejected[0].source} is left out: {rejected[0].reason}")
    raise UnreachableError("The background service of OpenCode does not run.")


def ensure_service(program: Sequence[str], version: str, environment: Mapping[str, str]) -> str:
    """See to it that there is a background service; return why there is none, or nothing. It blocks.

    One that is there is left as it is, whatever its version; one that is starting is waited for. It outlives
    us.
    """
    if not _settles(version, started=False):
        return ""
    from opencode_mcp.connect.running import run_briefly  # seldom needed

    ran = run_briefly([*program, "service", "start"], environment, seconds=_START_SECONDS)
    if ran.code == 0:
        problem = _settles(version, started=True)
        return problem and f"`opencode service start` has ended well, but: {problem}"
    said = [line for line in ran.err.splitlines() if line.strip()]
    why = clean_line(said[-1], 300).rstrip(".") if said else "it does not say why"
    how = f" (code {ran.code})" if ran.code is not None else ""
    return f"`opencode service start` has failed{how}: {why}."


def _settles(version: str, *, started: bool) -> str:
    """Wait a moment until it is there; return why it is not, or nothing. It blocks.

    Args:
        version: As for `find_service`.
        started: Whether its file is waited for as well.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            service = find_service(version)
        except UnreachableError as error:
            problem, waits = str(error), started
        else:
            if not _is_gone(service):
                return ""
            problem, waits = f"It does not answer at {service.url}, where {service.path} has it.", True
        if not waits or time.monotonic() > deadline:
            return problem
        time.sleep(_STEP_SECONDS)


def _is_gone(service: LocalService) -> bool:
    """Whether it is sure that nobody, or somebody else, answers where its file has it. It blocks."""
    if nobody_listens(service.url):
        return True
    known = known_service(service)
    try:
        probe(
            known.url,
            seconds=_GLANCE_SECONDS,
            username=known.username,
            password=known.password,
            pid=known.pid,
            users=known.users,
        )
    except ProtocolError:
        return True
    except (UnreachableError, CredentialsError):  # slow, or not to be told from the service
        pass
    return False


class ServicePresence(Presence):
    """The background service of this user, wherever it is at the moment.

    Args:
        version: That of the OpenCode which uses it.
        username: The user name that goes with its password.

    Attributes:
        file: Its file's name; empty until it was found.
    """

    def __init__(self, version: str, *, username: str) -> None:
        super().__init__("", username=username, password=None, started_here=False)
        self.problem = "The background service of OpenCode was not looked for."
        self.file = ""
        self._program_version = version
        self._seen: tuple[Path, _Stamp] | None = None

    async def vanishes(self) -> None:
        """Return once it is gone, or somewhere else."""
        announced = self.url, self.version
        failures, asked = 0, anyio.current_time()
        while failures < _FAILURES:
            await anyio.sleep(_FILE_SECONDS)
            if await anyio.to_thread.run_sync(self._changed, abandon_on_cancel=True):
                with anyio.move_on_after(_PATIENCE_SECONDS) as patience:
                    await self.appears()
                if patience.cancelled_caught:
                    return
                failures, asked = 0, anyio.current_time()
            elif anyio.current_time() - asked >= _ASK_SECONDS:
                asked = anyio.current_time()
                failures = 0 if await self._answers(_PATIENCE_SECONDS) else failures + 1
            if (self.url, self.version) != announced:
                self.problem = f"It has restarted, with OpenCode {self.version}."
                return

    def _find(self) -> Known:
        before = self._seen and _stamp(self._seen[0])  # before it is read: it may be replaced meanwhile
        service = find_service(self._program_version)
        same = self._seen is not None and self._seen[0] == service.path
        self._seen = service.path, before if same else _stamp(service.path)
        self.file = service.path.name
        self.announced = service.url
        return known_service(service)

    def _locked(self, error: CredentialsError) -> bool:
        """Whoever does not know the password of the file has not shown that it is the service."""
        self.problem = (
            f"What answers at the address in {self.file} wants another password than its file says."
        )
        return False

    def _changed(self) -> bool:
        return self._seen is not None and _stamp(self._seen[0]) != self._seen[1]


def _stamp(path: Path) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 - a second later it is done again
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
