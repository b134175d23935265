"""Asks a server on this machine for its health with nothing but the standard library.

`opencode-connected` stays beside every OpenCode, for which the whole client would be too much memory.
"""

import base64
import http.client
import json
from typing import Any, cast
from urllib.parse import urlsplit

from opencode_mcp.errors import CredentialsError, ProtocolError, UnreachableError
from opencode_mcp.text import clean_line

_HEALTH_BYTES = 64 * 1024


def probe(url: str, *, seconds: float, username: str = "", password: str | None = None) -> str:
    """Return the version of the OpenCode 1.x server at `url`. It blocks.

    Credentials are sent unasked, so `url` must be the user's own.

    Args:
        url: `http://host:port`.
        seconds: How long each step may take.
        username: The user name that goes with the password.
        password: The password, or None.

    Raises:
        UnreachableError: Nothing answers, or not in time.
        CredentialsError: It wants another password.
        ProtocolError: Something else answers.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=seconds)
    headers = {"accept": "application/json"}
    if password is not None:
        headers["authorization"] = f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"
    try:
        connection.request("GET", "/global/health", headers=headers)
        with connection.getresponse() as response:  # which may have taken the socket over
            status, content = response.status, response.read(_HEALTH_BYTES)
    except http.client.HTTPException as error:
        raise ProtocolError(f"What answers at {url} does not speak HTTP ({type(error).__name__}).") from None
    except OSError as error:
        raise UnreachableError(f"{url} does not answer ({error.strerror or 'in time'}).") from None
    finally:
        connection.close()
    if status == http.client.UNAUTHORIZED:
        raise CredentialsError(f"The OpenCode at {url} wants another password: set OPENCODE_SERVER_PASSWORD.")
    try:
        health: Any = json.loads(content) if status == http.client.OK else None
    except (ValueError, RecursionError):
        health = None
    version = cast("dict[str, Any]", health).get("version") if isinstance(health, dict) else None
    if not isinstance(version, str) or not version:
        raise ProtocolError(
            f"What answers at {url} is not an OpenCode 1.x server (status {status}). If it is an older one, "
            "update it: opencode upgrade"
        )
    return clean_line(version, 40)
