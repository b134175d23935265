"""Asks a server on this machine for its health with nothing but the standard library.

`opencode-connected` stays beside every OpenCode, for which the whole client would be too much memory.
"""

import base64
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opencode_mcp.errors import CredentialsError, ProtocolError, UnreachableError
from opencode_mcp.opencode.fields import HEALTH_1, HEALTHS_2, REALM, number, text
from opencode_mcp.text import clean_line

_BODY_BYTES = 64 * 1024


class Health(NamedTuple):
    """What a server says of itself: its version, whether it asked for the password, and its process.

    OpenCode 1.x does not say its process: then it is 0.
    """

    version: str
    guarded: bool
    pid: int = 0


def probe(
    url: str,
    *,
    seconds: float,
    username: str = "",
    password: str | None = None,
    pid: int | None = None,
    version: str = "",
) -> Health:
    """Ask the OpenCode server at `url` for its health. It blocks.

    The password is held back until the server asks for it the way OpenCode does.

    Args:
        url: `http://host:port`.
        seconds: How long each step may take.
        username: The user name that goes with the password.
        password: The password, or None.
        pid: The process that has to answer, an OpenCode 2.x; None for any.
        version: The version that it has to say, if `pid` is given; empty for any.

    Raises:
        UnreachableError: Nothing answers, or not in time.
        CredentialsError: It wants a password, and another one than this.
        ProtocolError: Something else answers, or another process.
    """
    status = 0
    if pid is None:
        status, health, guarded = _ask(url, HEALTH_1, seconds, username, password)
        if said := text(health, "version"):
            return Health(clean_line(said, 40), guarded)
    for path in HEALTHS_2:
        status, health, guarded = _ask(url, path, seconds, username, password)
        said, process = clean_line(text(health, "version"), 40), number(health, "pid")
        if not said or process <= 0:
            continue
        if pid not in (None, process) or version not in ("", said):
            wanted = f"process {pid}" + (f" with OpenCode {version}" if version else "")
            raise ProtocolError(f"At {url} answers process {process} with OpenCode {said}, and not {wanted}.")
        return Health(said, guarded, process)
    raise ProtocolError(
        f"What answers at {url} is not an OpenCode server (status {status}). If it is an old one, "
        "update it: opencode upgrade"
    )


def project(url: str, *, seconds: float, username: str = "", password: str | None = None) -> str:
    """Return the directory that the OpenCode 1.x server at `url` works in, or nothing if it does not say.

    Arguments and errors as for `probe`.
    """
    return text(_ask(url, "/path", seconds, username, password)[1], "directory")


def _ask(url: str, path: str, seconds: float, username: str, password: str | None) -> tuple[int, Any, bool]:
    status, asks, content = _get(url, path, seconds, {})
    guarded = status == http.client.UNAUTHORIZED and asks == REALM
    if guarded and password is not None:
        secret = base64.b64encode(f"{username}:{password}".encode()).decode()
        status, asks, content = _get(url, path, seconds, {"authorization": f"Basic {secret}"})
    if status == http.client.UNAUTHORIZED and asks == REALM:
        raise CredentialsError(f"The OpenCode at {url} wants another password: set OPENCODE_SERVER_PASSWORD.")
    try:
        return status, json.loads(content) if status == http.client.OK else None, guarded
    except (ValueError, RecursionError):
        return status, None, guarded


def _get(url: str, path: str, seconds: float, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise ProtocolError(f"{url} cannot be asked from here: only http:// is known.")
    host, port = parts.hostname or "", parts.port or 80
    connection = http.client.HTTPConnection(host, port)
    try:
        # Not by name, as http.client would: for that Python loads Unicode's tables.
        connection.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        connection.sock.settimeout(seconds)
        connection.sock.connect((host, port))
        connection.request("GET", path, headers={"accept": "application/json", **headers})
        with connection.getresponse() as response:  # which may have taken the socket over
            return response.status, response.getheader("www-authenticate", ""), response.read(_BODY_BYTES)
    except http.client.HTTPException as error:
        raise ProtocolError(f"What answers at {url} does not speak HTTP ({type(error).__name__}).") from None
    except OSError as error:
        raise UnreachableError(f"{url} does not answer ({error.strerror or 'in time'}).") from None
    finally:
        connection.close()
