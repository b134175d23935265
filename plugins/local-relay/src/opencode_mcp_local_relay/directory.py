"""A registry directory, held open: whose it is, and access to its files that nothing can redirect.

Owners and modes exist on POSIX only; on Windows these checks are left out.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from opencode_mcp import TransportError, clean_line

_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_HAS_DIR_FD = os.open in os.supports_dir_fd
_LINKS_FOLLOWED = os.link not in os.supports_follow_symlinks  # where that cannot be chosen

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def current_uid() -> int | None:
    """The user whose files are ours; None where there are no such users."""
    return os.geteuid() if hasattr(os, "geteuid") else None


def distrust(status: os.stat_result) -> tuple[str, str] | None:
    """Why others can decide what a file or directory holds, and the mend; None if they cannot.

    Root may do so anyway, so what belongs to root is fine. A symbolic link is its owner's; it has no mode.
    """
    us = current_uid()
    if us is None:
        return None
    if status.st_uid not in (us, 0):
        return f"belongs to another user (uid {status.st_uid}, you are {us})", f"chown {us}"
    if status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode):
        return "can be written by everybody", "chmod o-w"
    return None


def temporary_name() -> str:
    """A new name for a file on its way elsewhere, which nobody takes for a registration."""
    return f".{secrets.token_hex(8)}.tmp"


class Directory:
    """A directory, open until the `with` block ends; names are those of files directly in it.

    Attributes:
        status: What it was when it was opened.
        trusted: Whether only we and root decide what it holds.
    """

    def __init__(self, path: Path, *, trust_any_owner: bool) -> None:
        """Open `path` and check whose it is.

        Raises:
            FileNotFoundError: If there is none.
            TransportError: If it cannot be used, saying why and how to mend it.
        """
        self.path = path
        self.trust_any_owner = trust_any_owner
        self._shown = clean_line(str(path), 1000)
        self._fd: int | None = None
        try:
            if _HAS_DIR_FD:
                self._fd = os.open(path, os.O_RDONLY | _DIRECTORY)
            self.status = path.stat() if self._fd is None else os.fstat(self._fd)
            link = path.lstat()
        except FileNotFoundError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise self.failure("opened", error) from None
        if not stat.S_ISDIR(self.status.st_mode):
            self.close()
            raise self._no_directory()
        problem = distrust(self.status) or distrust(link)
        self.trusted = problem is None
        if not trust_any_owner:
            self._refuse(problem)

    def _refuse(self, problem: tuple[str, str] | None) -> None:
        if problem is not None:
            self.close()
            why, mend = problem
            raise TransportError(
                f"The registry directory {self._shown} {why}, so that others could send your messages "
                f"elsewhere. Run `{mend} {self._shown}`, or set RELAY_REGISTRY_DIR to a directory of your "
                "own; or set RELAY_TRUST_ANY_OWNER=1 if that is meant to be, as in a container."
            )

    def _no_directory(self) -> TransportError:
        return TransportError(
            f"The registry directory {self._shown} is not a directory. Remove it, or set "
            "RELAY_REGISTRY_DIR to a directory."
        )

    def failure(self, done: str, error: OSError) -> TransportError:
        """Put into a sentence that the directory could not be `done` (opened, read, written)."""
        if isinstance(error, NotADirectoryError):
            return self._no_directory()
        if isinstance(error, PermissionError):
            mend = (
                f"Run `chmod u+rwx {self._shown}`, or set RELAY_REGISTRY_DIR to a directory that you may use."
            )
        elif done == "written":
            mend = "Make room there, or set RELAY_REGISTRY_DIR to a directory that can be written."
        else:
            mend = "It is tried again."
        why = error.strerror or type(error).__name__
        return TransportError(f"The registry directory {self._shown} cannot be {done}: {why}. {mend}")

    def close(self) -> None:
        """Let go of the directory."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _at(self, name: str) -> str:
        return name if self._fd is not None else os.path.join(self.path, name)  # noqa: PTH118 - names are str

    def names(self, *, suffix: str, limit: int) -> tuple[list[str], bool]:
        """At most `limit` names that end in `suffix` and are not temporary ones; and if there are more."""
        found: list[str] = []
        with os.scandir(self.path if self._fd is None else self._fd) as entries:
            for entry in entries:
                if entry.name.endswith(suffix) and not entry.name.startswith((".", "~", "#")):
                    if len(found) == limit:
                        return sorted(found), True
                    found.append(entry.name)
        return sorted(found), False

    def abandoned(self, *, since: float) -> Iterator[str]:
        """The temporary files of ours that nobody has touched after `since`, in seconds since the epoch."""
        us = current_uid()
        with os.scandir(self.path if self._fd is None else self._fd) as entries:
            for entry in entries:
                if not _TEMPORARY.fullmatch(entry.name):
                    continue
                with suppress(FileNotFoundError):  # somebody else was faster
                    status = entry.stat(follow_symlinks=False)
                    # A rename, which leaves the time of the content alone, counts as well.
                    if us in (None, status.st_uid) and max(status.st_mtime, status.st_ctime) < since:
                        yield entry.name

    def stat(self, name: str) -> os.stat_result:
        """What `name` is, without following a link."""
        return os.stat(self._at(name), dir_fd=self._fd, follow_symlinks=False)

    def has(self, name: str) -> bool:
        """Whether there is anything called `name`."""
        with suppress(FileNotFoundError):
            self.stat(name)
            return True
        return False

    def link_target(self, name: str) -> str | None:
        """Which file of this directory the symbolic link `name` leads to; None if it leads out."""
        target = os.path.realpath(os.path.join(self.path, name))  # noqa: PTH118
        folder, base = os.path.split(target)
        return base if folder == os.path.realpath(self.path) else None

    def read(self, name: str, limit: int) -> tuple[os.stat_result, bytes]:
        """The status and up to `limit` bytes of the file `name`; never blocks, follows no link."""
        fd = os.open(self._at(name), _READ, dir_fd=self._fd)
        with os.fdopen(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return status, b""
            content = bytearray()
            while len(content) < limit and (chunk := file.read(limit - len(content))):
                content += chunk
            return status, bytes(content)

    def remove(self, name: str) -> None:
        """Remove the file `name`."""
        os.unlink(self._at(name), dir_fd=self._fd)

    def create(self, name: str, content: bytes) -> None:
        """Write a new file that only its owner may read, and have it on disk on return."""
        fd = os.open(self._at(name), _CREATE, 0o600, dir_fd=self._fd)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)

    def replace(self, source: str, target: str) -> None:
        """Rename `source` to `target`, in one step, whether or not there is one."""
        os.replace(self._at(source), self._at(target), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def settle(self, source: str, target: str) -> None:
        """Rename `source` to `target`, unless there is one.

        Raises:
            FileExistsError: If there is one.
        """
        try:
            os.link(
                self._at(source),
                self._at(target),
                src_dir_fd=self._fd,
                dst_dir_fd=self._fd,
                follow_symlinks=_LINKS_FOLLOWED,
            )
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if self.has(target):
                raise FileExistsError(target) from None
            self.replace(source, target)
        else:
            self.remove(source)
