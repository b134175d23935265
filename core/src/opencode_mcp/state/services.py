"""The background service of OpenCode 2.x that belongs to this user: what its file says, and if it is true.

OpenCode writes `service.json`, or `service-<channel>.json`, below `$XDG_STATE_HOME/opencode`, mode 0600, with
the address and the password. It removes the file as it ends, but not if it is killed.
"""

import dataclasses
import ipaddress
import json
import os
import stat
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
    no program of another user. It blocks: call it from a thread.

    Raises:
        OSError: The directory cannot be read. That it is not there is no error: there is no service then.
    """
    found: list[LocalService] = []
    rejected: list[Rejection] = []
    try:
        paths = sorted(services_directory().glob("service*.json"))[:_MOST_FILES]
    except FileNotFoundError:
        paths = []
    for path in paths:
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


class _UnusableError(Exception):
    pass


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
    return service


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
