"""The instance's side: writes a registration file, keeps it alive, and removes it on the way out."""

import logging
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, TransportError, clean_line
from opencode_mcp_local_relay.directory import Directory, temporary_name
from opencode_mcp_local_relay.file import read_registration
from opencode_mcp_local_relay.registration import SUFFIX, UnusableError, file_names, serialise, stem_of
from opencode_mcp_local_relay.remembered import Remembered
from opencode_mcp_local_relay.wake import Wake

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

logger = logging.getLogger(__name__)

_WITHDRAW_SECONDS = 1.5
_ABANDONED_SECONDS = 3600.0
_LOOKED_AT = 10_000
_HERE = ("localhost", "0.0.0.0", "::")  # noqa: S104 - where a server may say it listens, never bound by us


def address_here(endpoint: Endpoint) -> tuple[str, int]:
    """The host, `127.…`, and the port of an instance on this machine.

    Raises:
        TransportError: If a registration file cannot say where it is.
    """
    url = urlsplit(endpoint.url)
    host = url.hostname or ""
    if url.scheme != "http" or url.path or not (host in _HERE or host.startswith("127.")):
        raise TransportError(
            f"local-relay cannot announce {endpoint.url}: a registration "
            "says only a port of this machine. Start the instance on http://127.0.0.1:<port>."
        )
    return (host if host.startswith("127.") else "127.0.0.1"), url.port or 80


class Announcement:
    """The registration file of one instance. Its methods block; `keep_announced` calls them in a thread."""

    def __init__(
        self,
        path: Path,
        endpoint: Endpoint,
        remembered: Remembered | None = None,
        *,
        trust_any_owner: bool,
    ) -> None:
        """Prepare to announce `endpoint`; nothing is written yet.

        Raises:
            TransportError: If a registration file cannot say where it is.
        """
        self.path = path
        self._remembered = Remembered() if remembered is None else remembered
        self._lock = threading.Lock()
        self._written = False
        self._withdrawn = False
        self._endpoint = endpoint
        _, self._port = address_here(endpoint)
        self._trust_any_owner = trust_any_owner
        self._since = datetime.now(UTC)

    def write(self) -> None:
        """Write the file, or write it anew, in one step and never over another instance's.

        Raises:
            TransportError: If that is not possible.
        """
        with self._lock:
            if not self._withdrawn:
                self._write()

    def _write(self) -> None:
        with self._open() as directory:
            temporary = temporary_name()
            try:
                held = () if self._written else self._sweep(directory)
                name = self._remembered.name = self._place(directory, temporary, held)
                self._written = True
            except OSError as error:
                with suppress(OSError):
                    directory.remove(temporary)
                raise directory.failure("written", error) from None
            for other in set(held) - {name}:
                try:
                    directory.remove(other)
                except OSError as error:
                    shown = clean_line(str(self.path / other), 1000)
                    logger.warning(
                        "%s, an earlier registration, cannot be removed: %s", shown, error.strerror
                    )

    def is_there(self) -> bool:
        """Whether the file is there and still ours.

        Raises:
            TransportError: If the directory cannot be used.
        """
        with self._open() as directory:
            name = self._remembered.name
            return name is not None and self._owner(directory, name) == self._endpoint.id

    def withdraw(self) -> None:
        """Remove the file, if it is still ours, and write no more.

        Raises:
            TransportError: If it cannot be removed.
        """
        with self._lock:
            self._withdrawn = True
            name = self._remembered.name
            if not self._written or name is None:
                return
            try:
                with Directory(self.path, trust_any_owner=self._trust_any_owner) as directory:
                    if self._owner(directory, name) == self._endpoint.id:
                        directory.remove(name)
            except FileNotFoundError:
                return
            except (OSError, TransportError) as error:
                raise self.left((isinstance(error, OSError) and error.strerror) or str(error)) from None

    def left(self, why: str) -> TransportError:
        """Put into a sentence that the file could not be removed."""
        shown = clean_line(str(self.path / (self._remembered.name or "")), 1000)
        return TransportError(f"The registration file {shown} could not be removed: {why.rstrip('.')}.")

    def _open(self) -> Directory:
        try:
            # mkdir's own `parents=True` would leave the parents open to whatever the umask allows.
            for folder in reversed([self.path, *self.path.parents]):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)
            return Directory(self.path, trust_any_owner=self._trust_any_owner)
        except OSError as error:
            raise TransportError(
                f"The registry directory {clean_line(str(self.path), 1000)} cannot be created: "
                f"{error.strerror}. Set RELAY_REGISTRY_DIR to a directory that you may write."
            ) from None

    def _sweep(self, directory: Directory) -> Collection[str]:
        """See to what a process of ours left behind when it was killed.

        Removes its temporary files, and returns the names of the registrations of this instance.
        """
        for name in list(directory.abandoned(since=time.time() - _ABANDONED_SECONDS)):
            with suppress(OSError):
                directory.remove(name)
        names, _ = directory.names(suffix=SUFFIX, limit=_LOOKED_AT)
        return {name for name in names if self._owner(directory, name) == self._endpoint.id}

    def _content(self, name: str) -> bytes:
        text = serialise(
            self._endpoint,
            file_name=name,
            port=self._port,
            connected_at=self._since,
            heartbeat_at=datetime.now(UTC),
        )
        return text.encode() + b"\n"

    def _place(self, directory: Directory, temporary: str, held: Collection[str]) -> str:
        for name in self._names(held):
            owner = self._owner(directory, name)
            if owner != self._endpoint.id and directory.has(name):
                continue
            directory.create(temporary, self._content(name))
            if owner == self._endpoint.id:
                directory.replace(temporary, name)
                return name
            try:
                directory.settle(temporary, name)
            except FileExistsError:  # taken at this very moment
                directory.remove(temporary)
            else:
                return name
        raise FileExistsError("every name is taken")

    def _names(self, held: Collection[str]) -> Iterator[str]:
        candidates = list(file_names(stem_of(self._endpoint.name)))
        if self._remembered.name in candidates:
            yield self._remembered.name
        yield from (name for name in candidates if name in held)
        yield from candidates

    @staticmethod
    def _owner(directory: Directory, name: str) -> str | None:
        """The id that the file `name` states; None if there is none or it is no registration."""
        try:
            registration = read_registration(directory, name)
        except (FileNotFoundError, UnusableError):
            return None
        return registration.endpoint.id if registration.explicit_id else None


async def keep_announced(
    announcement: Announcement,
    *,
    heartbeat_seconds: float,
    check_seconds: float,
    woken: Wake,
    task_status: "TaskStatus[None]",
) -> None:
    """Write the file, renew it at each heartbeat, when woken and when it is gone; withdraw it when cancelled.

    Raises:
        TransportError: If it cannot be written at first; later failures are logged and tried again. Also if
            it cannot be withdrawn, even while this is cancelled.
    """
    try:
        await anyio.to_thread.run_sync(announcement.write, abandon_on_cancel=True)
        task_status.started()
        beat = anyio.current_time()
        failing = False
        while True:
            due = False
            with anyio.move_on_after(min(check_seconds, heartbeat_seconds)):
                await woken.wait()
                woken.clear()
                due = True
            due = due or anyio.current_time() - beat >= heartbeat_seconds
            try:
                if due or not await anyio.to_thread.run_sync(announcement.is_there, abandon_on_cancel=True):
                    await anyio.to_thread.run_sync(announcement.write, abandon_on_cancel=True)
                    beat = anyio.current_time()
                failing = False
            except TransportError as error:
                if not failing:
                    logger.warning("An instance is not announced at present: %s", error)
                failing = True
    finally:
        with anyio.move_on_after(_WITHDRAW_SECONDS, shield=True) as patience:
            await anyio.to_thread.run_sync(announcement.withdraw, abandon_on_cancel=True)
        if patience.cancelled_caught:
            raise announcement.left(f"its file system has not answered within {_WITHDRAW_SECONDS:.0f} s")
