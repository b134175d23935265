"""Looks at one file of the registry directory: safely, only if it changed, and with patience for a writer."""

import dataclasses
import errno
import hashlib
import os
import stat
import time
from contextlib import suppress

from opencode_mcp_local_relay.directory import Directory, distrust, temporary_name
from opencode_mcp_local_relay.registration import SUFFIX, Registration, UnusableError, file_names, parse

SIZE_LIMIT = 64 * 1024
"""Bytes; a registration is some hundred bytes long."""
GRACE_SECONDS = 2.0
"""For how long a file that does not parse may be one that is just being written."""

# Errors that are the file's own fault; any other means that nothing can be read at present.
_FILE_IS_BAD = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP}

Version = tuple[int, int, int, int, int]
"""Device, inode, time of the last change of the content, the same of anything else, size."""


@dataclasses.dataclass(kw_only=True, slots=True)
class KnownFile:
    """What is known of one file.

    Attributes:
        version: Device, inode, times and size when it was read.
        seen: When this version was seen first, by the monotonic clock.
        group_writable: Whether its group can write it.
        digest: Of its content.
        settled: Whether an equal version means equal content.
        registration: What it says, or said last while it is half-written.
        reason: Why it is rejected, or empty.
        doubtful_since: Since when it has not parsed, by the monotonic clock; None once judged.
    """

    version: Version
    seen: float
    group_writable: bool = False
    digest: bytes = b""
    settled: bool = True
    registration: Registration | None = None
    reason: str = ""
    doubtful_since: float | None = None


def look_at(directory: Directory, name: str, before: KnownFile | None) -> KnownFile:
    """Find out what the file `name` says now; one that is as it was `before` is not read again.

    Raises:
        FileNotFoundError: If it is gone.
        OSError: If files cannot be read at present.
    """
    status = directory.stat(name)
    target: str | None = name
    if stat.S_ISLNK(status.st_mode):
        target, status = _follow(directory, name, status)
    version = _version(status)
    same = before if before is not None and before.version == version else None
    if same is not None and same.settled and same.doubtful_since is None:
        return same
    now = time.monotonic()
    age = abs(time.time() - status.st_mtime)
    # Two writes within one step of the file system's clock leave the same times.
    file = KnownFile(version=version, seen=now, settled=age > 1)
    try:
        status, content = _content(directory, target, status)
        file.digest = hashlib.sha256(content).digest()
        if same is not None and same.digest == file.digest:
            file.seen = same.seen
        file.registration = parse(content, name.removesuffix(SUFFIX), vouched=distrust(status) is None)
        file.group_writable = bool(status.st_mode & stat.S_IWGRP)
    except UnusableError as error:
        file.reason = str(error)
        since = _doubtful_since(before, same, now, age) if error.unfinished else None
        if since is not None and now - since < GRACE_SECONDS:
            file.reason = ""
            file.doubtful_since = since
            file.registration = before.registration if before is not None else None
    return file


def remove_unchanged(directory: Directory, name: str, known: KnownFile) -> bool:
    """Remove the file `name` if it is, byte for byte and by its times, the one that is known.

    Raises:
        FileNotFoundError: If it is gone.
        OSError: If it cannot be read or removed.
    """
    if not _is_unchanged(directory, name, known):
        return False
    # Somebody may put a new registration there at any moment, so what is removed is first taken aside.
    aside = temporary_name()
    directory.replace(name, aside)
    removed = False
    try:
        if _is_unchanged(directory, aside, known, renamed=True):
            directory.remove(aside)
            removed = True
    finally:
        if not removed:
            _put_back(directory, aside, name)
    return removed


def _put_back(directory: Directory, aside: str, name: str) -> None:
    """Give a file its name again; if another one has taken it meanwhile, a name beside it."""
    for other in file_names(name.removesuffix(SUFFIX)):
        with suppress(FileExistsError):
            directory.settle(aside, other)
            return


def _is_unchanged(directory: Directory, name: str, known: KnownFile, *, renamed: bool = False) -> bool:
    status = directory.stat(name)
    target: str | None = name
    if stat.S_ISLNK(status.st_mode):
        target, status = _follow(directory, name, status)
    found, wanted = _version(status), known.version
    if renamed:  # which counts as a change of its own on many file systems
        found, wanted = (*found[:3], 0, *found[4:]), (*wanted[:3], 0, *wanted[4:])
    if found != wanted:
        return False
    try:
        _, content = _content(directory, target, status)
    except UnusableError:
        return False
    return hashlib.sha256(content).digest() == known.digest


def read_registration(directory: Directory, name: str) -> Registration:
    """Read the file `name`, whatever was known of it.

    Raises:
        UnusableError: If it is no usable registration.
        OSError: If it cannot be read.
    """
    _, content = _content(directory, name, directory.stat(name))
    return parse(content, name.removesuffix(SUFFIX))


def _version(status: os.stat_result) -> Version:
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _doubtful_since(before: KnownFile | None, same: KnownFile | None, now: float, age: float) -> float | None:
    """Since when it may be half-written; None if it has had its time.

    The file's own time counts only at first sight: another machine's clock may have set it.
    """
    if before is not None and before.doubtful_since is not None:
        return before.doubtful_since
    if same is not None and same.reason:
        return None
    return now if before is not None or age < GRACE_SECONDS else None


def _follow(directory: Directory, name: str, status: os.stat_result) -> tuple[str | None, os.stat_result]:
    """Where a symbolic link leads, within the directory; None for elsewhere or nowhere."""
    target = directory.link_target(name)
    if target is None:
        return None, status
    try:
        found = directory.stat(target)
    except FileNotFoundError:
        return None, status
    return (None, status) if stat.S_ISLNK(found.st_mode) else (target, found)


def _content(directory: Directory, name: str | None, status: os.stat_result) -> tuple[os.stat_result, bytes]:
    """Read a regular file that nobody else can write; its name is None for a link that leads nowhere.

    Raises:
        UnusableError: If it is something else.
        OSError: If files cannot be read at present.
    """
    if name is None:
        raise UnusableError("it is a symbolic link to nothing, or out of the directory; remove it")
    # Asked before opening it, because to open a device can have effects; and after, because it may be
    # another file by then.
    _accept(directory, status)
    try:
        status, content = directory.read(name, SIZE_LIMIT + 1)
    except OSError as error:
        if error.errno not in _FILE_IS_BAD:
            raise
        raise UnusableError(
            f"it cannot be read: {error.strerror}; run `chmod u+r` on it, or remove it"
        ) from None
    _accept(directory, status)
    if len(content) > SIZE_LIMIT:
        raise UnusableError(f"it is larger than {SIZE_LIMIT // 1024} KiB; remove it")
    return status, content


def _accept(directory: Directory, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("it is not a regular file; remove it")
    if not directory.trust_any_owner and (problem := distrust(status)) is not None:
        why, mend = problem
        raise UnusableError(
            f"it {why}; run `{mend}` on it, or set RELAY_TRUST_ANY_OWNER=1 if that is meant to be"
        )
