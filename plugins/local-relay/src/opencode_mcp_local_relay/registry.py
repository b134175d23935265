"""What is registered: the files of the registry directory as one set of endpoints; removes one on request.

Everything here blocks; `transport.py` calls it from a worker thread.
"""

import dataclasses
import logging
import os
import stat
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from opencode_mcp import Endpoint, Rejection, TransportError, clean_line
from opencode_mcp_local_relay.directory import Directory
from opencode_mcp_local_relay.file import KnownFile, look_at, remove_unchanged
from opencode_mcp_local_relay.registration import SUFFIX, Registration

logger = logging.getLogger(__name__)

COUNT_LIMIT = 10_000
"""Files; what is beyond is left out."""
_PATIENCE_SECONDS = 2.0
"""How long one call waits for another."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one look at the directory found.

    Attributes:
        endpoints: The complete set, ordered by file name.
        rejections: What was left out, ordered by file name.
        unfinished: Whether a file seems half-written, so that another look is due shortly.
    """

    endpoints: tuple[Endpoint, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    unfinished: bool = False


class Registry:
    """The registration files of a directory, and what they said last."""

    def __init__(self, path: Path, *, trust_any_owner: bool) -> None:
        self._path = path
        self._shown = clean_line(str(path), 1000)
        self._trust_any_owner = trust_any_owner
        self._files: dict[str, KnownFile] = {}
        self._published: dict[str, tuple[str, Endpoint]] = {}  # by id: the file's name, what was published
        self._warned: dict[str, str] = {}  # by what it is about: what was said, until it is mended
        self._cannot_remove = False
        self._busy = threading.Lock()

    def look(self) -> Look:
        """Read what is new, and return the whole set.

        Raises:
            TransportError: If the directory cannot be used, or not at present.
        """
        with self._alone():
            try:
                directory = self._open()
            except FileNotFoundError:
                self._files, self._published, self._warned = {}, {}, {}
                return Look()
            with directory:
                try:
                    return self._look(directory)
                except OSError as error:
                    raise directory.failure("read", error) from None

    def forget(self, endpoint: Endpoint, *, unchanged_seconds: float) -> None:
        """Remove the file behind `endpoint`, if it still says so and has not changed for that long."""
        name, published = self._published.get(endpoint.id, ("", None))
        file = self._files.get(name)
        if file is None or published != endpoint or file.doubtful_since is not None or file.reason:
            return
        if time.monotonic() - file.seen < unchanged_seconds:
            return  # written again meanwhile, so somebody looks after it
        try:
            with self._alone(), self._open() as directory:
                if not remove_unchanged(directory, name, file):
                    return
        except FileNotFoundError:
            return
        except (OSError, TransportError) as error:
            if not self._cannot_remove:
                logger.warning(
                    "The registration file %s cannot be removed, though its instance is gone: %s",
                    self._path_of(name),
                    (isinstance(error, OSError) and error.strerror) or error,
                )
            self._cannot_remove = True
        else:
            logger.info("Removed the registration file %s: its instance is gone.", self._path_of(name))

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep out of the way of a look that was given up, but may still be under way in its thread."""
        if not self._busy.acquire(timeout=_PATIENCE_SECONDS):
            raise TransportError(
                f"The registry directory {self._shown} does not answer: an earlier look at it still hangs. "
                "See whether its file system is there; it is tried again."
            )
        try:
            yield
        finally:
            self._busy.release()

    def _open(self) -> Directory:
        return Directory(self._path, trust_any_owner=self._trust_any_owner)

    def _path_of(self, name: str) -> str:
        return clean_line(f"{self._path}{os.sep}{name}", 1000)

    def _look(self, directory: Directory) -> Look:
        names, more = directory.names(suffix=SUFFIX, limit=COUNT_LIMIT)
        files: dict[str, KnownFile] = {}
        for name in names:
            try:
                files[name] = look_at(directory, name, self._files.get(name))
            except FileNotFoundError:
                continue  # gone since it was listed
        self._files = files
        self._warn(directory, more=more)
        found = {
            name: (file.registration, file.version[2]) for name, file in files.items() if file.registration
        }
        self._published = merge(found, vouched=directory.trusted)
        return Look(
            endpoints=tuple(endpoint for _, endpoint in sorted(self._published.values(), key=_by_name)),
            rejections=tuple(
                Rejection(source=self._path_of(name), reason=file.reason)
                for name, file in files.items()
                if file.reason
            ),
            unfinished=any(file.doubtful_since is not None for file in files.values()),
        )

    def _warn(self, directory: Directory, *, more: bool) -> None:
        """Say what is wrong, each thing once until it is mended."""
        warnings = {
            name: f"The registration file {self._path_of(name)} is left out: {file.reason}."
            for name, file in self._files.items()
            if file.reason
        }
        if more:
            warnings["more"] = (
                f"The registry directory {self._shown} holds more than {COUNT_LIMIT} registration files; "
                "the others are left out. Remove those of instances that are gone."
            )
        if os.name == "posix" and not self._trust_any_owner:
            open_ones = [name for name, file in self._files.items() if file.group_writable]
            if directory.status.st_mode & stat.S_IWGRP:
                warnings["group"] = f"The registry directory {self._shown} can be written by its group."
            elif open_ones:  # one sentence for all of them: under the usual umask 002 it is every file
                warnings["group"] = (
                    f"Of the registration files in {self._shown}, {len(open_ones)} can be written by their "
                    f"group, {clean_line(open_ones[0])} among them."
                )
            if "group" in warnings:
                warnings["group"] += " Run `chmod g-w` there, unless you trust everyone in that group."
        for about, text in warnings.items():
            if self._warned.get(about) != text and not (about == "group" and about in self._warned):
                logger.warning("%s", text)
        self._warned = warnings


def _by_name(published: tuple[str, Endpoint]) -> str:
    return published[0]


def merge(found: Mapping[str, tuple[Registration, int]], *, vouched: bool) -> dict[str, tuple[str, Endpoint]]:
    """Make one set of what the files say: of two that mean the same server, the newer one counts.

    Args:
        found: What each file says, and when it was changed, by its name.
        vouched: Whether the directory is to be trusted; if not, no file in it is.

    Returns:
        For each id, the file's name and what to publish.
    """
    newest_first = sorted(
        (
            (registration.connected_at, changed, name, registration)
            for name, (registration, changed) in found.items()
        ),
        key=lambda item: item[:3],
        reverse=True,
    )
    explicit = {registration.endpoint.id for registration, _ in found.values() if registration.explicit_id}
    published: dict[str, tuple[str, Endpoint]] = {}
    urls: set[str] = set()
    for _, _, name, registration in newest_first:
        endpoint = registration.endpoint
        if not registration.explicit_id and endpoint.id in explicit:
            endpoint = endpoint.model_copy(
                update={"id": name}
            )  # another one's id happens to be this file's name
        if endpoint.vouched and not vouched:
            endpoint = endpoint.model_copy(update={"vouched": False})
        if endpoint.id not in published and endpoint.url not in urls:
            published[endpoint.id] = (name, endpoint)
            urls.add(endpoint.url)
    return published
