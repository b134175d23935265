"""The instance's side: writes a registration file, keeps it alive, and removes it on the way out."""

import logging
import time
from collections.abc import Iterator
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
from opencode_mcp_local_relay.registration import UnusableError, file_names, serialise, stem_of
from opencode_mcp_local_relay.wake import Wake

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

logger = logging.getLogger(__name__)

_WITHDRAW_SECONDS = 2.0
_ABANDONED_SECONDS = 3600.0
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

    def __init__(self, path: Path, endpoint: Endpoint, *, trust_any_owner: bool) -> None:
        """Prepare to announce `endpoint`; nothing is written yet.

        Raises:
            TransportError: If a registration file cannot say where it is.
        """
        self.path = path
        self.name: str | None = None
        self._endpoint = endpoint
        _, self._port = address_here(endpoint)
        self._trust_any_owner = trust_any_owner
        self._since = datetime.now(UTC)

    def write(self) -> None:
        """Write the file, or write it anew, in one step and never over another instance's.

        Raises:
            TransportError: If that is not possible.
        """
        with self._open() as directory:
            temporary = temporary_name()
            try:
                if self.name is None:
                    self._sweep(directory)
                self.name = self._place(directory, temporary)
            except OSError as error:
                with suppress(OSError):
                    directory.remove(temporary)
                raise directory.failure("written", error) from None

    def is_there(self) -> bool:
        """Whether the file is there and still ours.

        Raises:
            TransportError: If the directory cannot be used.
        """
        with self._open() as directory:
            return self.name is not None and self._owner(directory, self.name) == self._endpoint.id

    def withdraw(self) -> None:
        """Remove the file, if it is still ours; one that cannot be removed is left to pruning."""
        if self.name is None:
            return
        try:
            with Directory(self.path, trust_any_owner=self._trust_any_owner) as directory:
                if self._owner(directory, self.name) == self._endpoint.id:
                    directory.remove(self.name)
        except FileNotFoundError:
            return
        except (OSError, TransportError) as error:
            logger.warning(
                "The registration file %s could not be removed: %s",
                clean_line(str(self.path / self.name), 1000),
                error,
            )

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

    @staticmethod
    def _sweep(directory: Directory) -> None:
        """Remove the temporary files that a process of ours left behind when it was killed."""
        for name in list(directory.abandoned(since=time.time() - _ABANDONED_SECONDS)):
            with suppress(OSError):
                directory.remove(name)

    def _content(self, name: str) -> bytes:
        text = serialise(
            self._endpoint,
            file_name=name,
            port=self._port,
            connected_at=self._since,
            heartbeat_at=datetime.now(UTC),
        )
        return text.encode() + b"\n"

    def _place(self, directory: Directory, temporary: str) -> str:
        for name in self._names():
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

    def _names(self) -> Iterator[str]:
        if self.name is not None:
            yield self.name
        yield from file_names(stem_of(self._endpoint.name))

    @staticmethod
    def _owner(directory: Directory, name: str) -> str | None:
        """The id in the file `name`; None if there is none or it is no registration."""
        try:
            return read_registration(directory, name).endpoint.id
        except (FileNotFoundError, UnusableError):
            return None


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
        TransportError: If it cannot be written at first; later failures are logged and tried again.
    """
    try:
        await anyio.to_thread.run_sync(announcement.write)
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
                    await anyio.to_thread.run_sync(announcement.write)
                    beat = anyio.current_time()
                failing = False
            except TransportError as error:
                if not failing:
                    logger.warning("An instance is not announced at present: %s", error)
                failing = True
    finally:
        with anyio.move_on_after(_WITHDRAW_SECONDS, shield=True):
            await anyio.to_thread.run_sync(announcement.withdraw, abandon_on_cancel=True)
