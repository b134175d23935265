"""The background service of OpenCode 2.x that belongs to this user: what its file says, and if it is true.

OpenCode writes `service.json`, or `service-<channel>.json`, below `$XDG_STATE_HOME/opencode`, mode 0600, with
the address and the password. It removes the file as it ends, but not if it is killed.
"""

import dataclasses
import ipaddress
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opencode_mcp.model import Rejection, server_url
from opencode_mcp.state.listening import listening_user
from opencode_mcp.text import clean_line

_MOST_BYTES = 64 * 1024
_MOST_FILES = 32
_MOST_PASSWORD = 1024
_STARTING_SECONDS = 10.0
"""So long after its file was written nobody need listen yet."""
_REFUSAL_SECONDS = 0.05
"""How long this machine may take to refuse a connection to itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalService:
    """What a service file says.

    Attributes:
        path: The file.
        url: `http://address:port`, on loopback.
        pid: The process that has to answer there.
        version: The version that it has to say; empty if the file does not.
        password: What it wants; empty if the file does not say.
    """

    path: Path
    url: str
    pid: int
    version: str = ""
    password: str = dataclasses.field(default="", repr=False)


def services_directory() -> Path:
    """Return where OpenCode 2.x keeps its service files; it need not be there.

    Raises:
        OSError: There is no home directory.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    # A relative path is to be ignored (XDG Base Directory Specification 0.8).
    try:
        root = Path(base) if Path(base).is_absolute() else Path("~/.local/state").expanduser()
    except RuntimeError as error:
        raise OSError(str(error)) from None
    return root / "opencode"


def local_services() -> tuple[Sequence[LocalService], Sequence[Rejection]]:
    """Read this user's service files; which of them count, and why the others do not.

    A file counts if it is this user's, nobody else may read it, its process runs, and whoever listens at its
    address, which must be on loopback, is this user's too (known on Linux only). So its password goes to
    no program of another user. Where nobody listens, it counts as long as it is new: the service may still
    be starting. It blocks: call it from a thread.

    Returns:
        The services, that of the usual channel first, then the one whose file was written last; and what was
        left out.

    Raises:
        OSError: The directory cannot be read. That it is not there is no error: there is no service then.
    """
    found: list[LocalService] = []
    rejected: list[Rejection] = []
    directory = services_directory()
    try:
        paths = sorted(directory.glob("service*.json"), key=_newest_last, reverse=True)
    except FileNotFoundError:
        paths = []
    if len(paths) > _MOST_FILES:
        reason = (
            f"It holds more than {_MOST_FILES} service files, and the older ones are not read: remove those "
            "of services that do not run."
        )
        rejected.append(Rejection(source=clean_line(str(directory), 1000), reason=reason))
    for path in paths[:_MOST_FILES]:
        try:
            found.append(_read(path))
        except FileNotFoundError:
            continue  # it ended meanwhile
        except _UnusableError as error:
            rejected.append(Rejection(source=clean_line(str(path), 1000), reason=str(error)))
        except OSError as error:
            reason = f"It cannot be read: {error.strerror or error}."
            rejected.append(Rejection(source=clean_line(str(path), 1000), reason=reason))
    return found, rejected


def nobody_listens(url: str) -> bool:
    """Whether it is sure that nobody listens at `url`. It blocks, for an instant.

    Args:
        url: `http://address:port`, an address of this machine as a number.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as asking:
            asking.settimeout(_REFUSAL_SECONDS)
            asking.connect((host, parts.port or 80))
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


class _UnusableError(Exception):
    pass


def _newest_last(path: Path) -> tuple[bool, float, str]:
    try:
        written = path.lstat().st_mtime
    except OSError:
        written = 0.0
    return path.name == "service.json", written, path.name


def _read(path: Path) -> LocalService:
    told = _parsed(_content(path))
    pid, url, version = told.get("pid"), told.get("url"), told.get("version", "")
    password = told.get("password", "")
    if not (isinstance(url, str) and isinstance(pid, int) and not isinstance(pid, bool) and pid > 0):
        raise _UnusableError("It has no url or no pid: it is no service file of OpenCode 2.x.")
    if not isinstance(version, str) or not isinstance(password, str) or not _can_be_sent(password):
        raise _UnusableError("Its version or its password is no text.")
    service = LocalService(
        path=path, url=_loopback(url), pid=pid, version=clean_line(version, 40), password=password
    )
    if not _runs(pid):
        raise _UnusableError(
            f"Its process {pid} is gone: the service was killed. `opencode service start` starts it again."
        )
    user = listening_user(service.url)
    if hasattr(os, "geteuid") and user is not None and user != os.geteuid():
        raise _UnusableError(f"Whoever listens at {service.url} belongs to another user (uid {user}).")
    if sys.platform == "linux" and user is None and not _is_new(path) and nobody_listens(service.url):
        raise _UnusableError(
            f"Nobody listens at {service.url}: the service was killed, and process {pid} is another one now. "
            "`opencode service start` starts it again."
        )
    return service


def _is_new(path: Path) -> bool:
    return abs(time.time() - path.lstat().st_mtime) < _STARTING_SECONDS


def _content(path: Path) -> bytes:
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_CLOEXEC", 0)
    )
    descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _UnusableError("It is no regular file.")
        if hasattr(os, "geteuid"):
            if status.st_uid != os.geteuid():
                raise _UnusableError(f"It belongs to another user (uid {status.st_uid}).")
            if status.st_mode & 0o077:
                raise _UnusableError("Others may read or write it, and its password with it: chmod 600.")
        return file.read(_MOST_BYTES + 1)


def _parsed(content: bytes) -> dict[str, Any]:
    if len(content) > _MOST_BYTES:
        raise _UnusableError(f"It is larger than {_MOST_BYTES} bytes.")
    try:
        told: object = json.loads(content)
    except (ValueError, RecursionError):
        raise _UnusableError("It is no JSON; it may be half written.") from None
    if not isinstance(told, dict):
        raise _UnusableError("It is no JSON object.")
    return told  # pyright: ignore[reportUnknownVariableType] - JSON


def _loopback(url: str) -> str:
    """Check an address of this machine; `localhost` is written as a number, since names can lie."""
    try:
        url = server_url(url)
        parts = urlsplit(url)
        host = parts.hostname or ""
        if host in ("localhost", "0.0.0.0"):  # noqa: S104 - where it listens; not where it is asked
            host = "127.0.0.1"
        address = ipaddress.ip_address("::1" if host == "::" else host)
    except ValueError:
        raise _UnusableError("Its url is none.") from None
    if not address.is_loopback or parts.scheme != "http" or not parts.port or parts.path:
        raise _UnusableError("Its url is not http on loopback, with a port.")
    return f"http://[{address}]:{parts.port}" if address.version == 6 else f"http://{address}:{parts.port}"


def _can_be_sent(password: str) -> bool:
    try:
        return len(password.encode()) <= _MOST_PASSWORD
    except UnicodeEncodeError:
        return False


def _runs(pid: int) -> bool:
    if not hasattr(os, "geteuid"):
        return True  # on Windows this question would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # with that it is another user's, which ours cannot be
        return False
    except (OSError, OverflowError):
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1]
    except OSError:  # no Linux
        return True
    return state not in ([b"Z"], [b"X"])  # ended; nobody has asked how, as in containers without an init
