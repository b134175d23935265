"""Asks a server on this machine for its health with nothing but the standard library.

`opencode-connected` stays beside every OpenCode, for which the whole client would be too much memory.
"""

import base64
import http.client
import json
import socket
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opencode_mcp.errors import CredentialsError, ProtocolError, UnreachableError
from opencode_mcp.opencode.fields import HEALTH_1, HEALTHS_2, REALM, USERNAME, number, text
from opencode_mcp.opencode.strangers import refuse_stranger
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
    users: Collection[int] | None = None,
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
        users: The users of this machine, by id, whose programs may get the password; None for all.

    Raises:
        UnreachableError: Nothing answers, or not in time.
        CredentialsError: It wants a password, and another one than this; `StrangerError` if it would not be
            sent there.
        ProtocolError: Something else answers, or another process.
    """
    status, ask = 0, partial(_ask, url, seconds, username, password, users)
    if pid is None:
        status, health, guarded = ask(HEALTH_1)
        if said := text(health, "version"):
            return Health(clean_line(said, 40), guarded)
    for path in HEALTHS_2:
        status, health, guarded = ask(path)
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


def project(
    url: str,
    *,
    seconds: float,
    username: str = "",
    password: str | None = None,
    users: Collection[int] | None = None,
) -> str:
    """Return the directory that the OpenCode 1.x server at `url` works in, or nothing if it does not say.

    Arguments and errors as for `probe`.
    """
    return text(_ask(url, seconds, username, password, users, "/path")[1], "directory")


def _ask(
    url: str, seconds: float, username: str, password: str | None, users: Collection[int] | None, path: str
) -> tuple[int, Any, bool]:
    status, answer, content = _get(url, path, seconds, {})
    guarded = status == http.client.UNAUTHORIZED and answer.get("www-authenticate") == REALM
    if guarded and password is not None:
        for name in dict.fromkeys((username, USERNAME)):  # OpenCode 2.x knows the latter alone
            secret = base64.b64encode(f"{name}:{password}".encode()).decode()
            headers = {"authorization": f"Basic {secret}"}
            status, answer, content = _get(url, path, seconds, headers, users)
            if status != http.client.UNAUTHORIZED:
                break
    if status == http.client.UNAUTHORIZED and answer.get("www-authenticate") == REALM:
        raise CredentialsError(f"The OpenCode at {url} wants another password: set OPENCODE_SERVER_PASSWORD.")
    kind = answer.get("content-type", "").partition(";")[0].strip().lower()
    if status != http.client.OK or kind != "application/json":
        return status, None, guarded
    try:
        return status, json.loads(content), guarded
    except (ValueError, RecursionError):
        return status, None, guarded


def _get(
    url: str, path: str, seconds: float, headers: Mapping[str, str], users: Collection[int] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
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
        if users is not None:
            refuse_stranger(connection.sock, users)
        connection.request("GET", path, headers={"accept": "application/json", **headers})
        with connection.getresponse() as response:  # which may have taken the socket over
            return response.status, response.headers, response.read(_BODY_BYTES)
    except http.client.HTTPException as error:
        raise ProtocolError(f"What answers at {url} does not speak HTTP ({type(error).__name__}).") from None
    except OSError as error:
        raise UnreachableError(f"{url} does not answer ({error.strerror or 'in time'}).") from None
    finally:
        connection.close()
