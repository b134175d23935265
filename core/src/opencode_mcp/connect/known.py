"""Where a server of this machine answers, and what is known of it before it is asked."""

import dataclasses
import os
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from opencode_mcp.opencode.fields import USERNAME
from opencode_mcp.state.services import LocalService, local_services
from opencode_mcp.transport import LOOPBACK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """A server.

    Attributes:
        url: Where it answers on this machine.
        password: What it wants, or None.
        username: The user name that goes with it; empty for that of the settings.
        pid: The process that has to answer, an OpenCode 2.x; None for any.
        version: The version that it has to say; empty for any.
        users: The users, by id, whose programs may get the password; None for all.
    """

    url: str
    password: str | None = dataclasses.field(default=None, repr=False)
    username: str = ""
    pid: int | None = None
    version: str = ""
    users: Collection[int] | None = None


def known_at(url: str, password: str | None, owner: int | None = None) -> Known:
    """Return what is known of the server at `url`. It blocks.

    The background service of OpenCode 2.x tells its user its password and its process. For others it is the
    password that instances of this machine may have.

    Args:
        url: `http://host:port`.
        password: What it may want, or None.
        owner: The id of the user whose program it is; None for this user.
    """
    for service in services():
        if service.url == _numeric(url):
            return known_service(service)
    users = only_us()
    if users is not None:
        users |= {0} if owner is None else {0, owner}
    return Known(url=url, password=password, users=users)


def known_service(service: LocalService) -> Known:
    """Return what is known of a background service."""
    return Known(
        url=service.url,
        password=service.password or None,
        username=USERNAME,
        pid=service.pid,
        version=service.version,
        users=only_us(),
    )


def only_us() -> frozenset[int] | None:
    """Return the id of the user whose process this is, as a set; None where users have no such ids."""
    return frozenset({os.geteuid()}) if hasattr(os, "geteuid") else None


def services() -> Sequence[LocalService]:
    """Return the background services of this user; none if they cannot be known."""
    try:
        return local_services()[0]
    except OSError:
        return ()


def _numeric(url: str) -> str:
    parts = urlsplit(url)
    return f"http://{LOOPBACK}:{parts.port}" if parts.hostname == "localhost" else url
