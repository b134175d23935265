"""Learns which generation of the OpenCode API a server speaks."""

from typing import Any

from opencode_mcp.errors import ProtocolError, RequestError, TooLargeError
from opencode_mcp.opencode.api import OpenCode
from opencode_mcp.opencode.fields import HEALTH_1, HEALTHS_2, number, text
from opencode_mcp.opencode.http import Http
from opencode_mcp.opencode.v1 import V1
from opencode_mcp.opencode.v2 import V2
from opencode_mcp.text import clean_line

_HEALTH_BYTES = 64 * 1024
_NOT_FOUND = 404


async def detect(http: Http, *, pid: int | None = None, version: str = "") -> OpenCode:
    """Return the client for the server behind `http`.

    Args:
        http: Where to ask.
        pid: The process that has to answer, an OpenCode 2.x; None for any.
        version: The version that it has to say; empty for any.

    OpenCode 1.x answers every unknown path with its web page and status 200, so a status proves nothing: what
    comes must be JSON and hold a version (as run on 1.18.33); of 2.x also the number of its process.

    Raises:
        CredentialsError: It is an OpenCode, and wants a password.
        ProtocolError: Something else answers, as if all were well; or another process.
        RequestError: It answers with an error.
        UnreachableError: Nothing answers.
    """
    health, failure = await _health(http, HEALTH_1)
    if said := text(health, "version"):
        if pid is not None:
            raise ProtocolError(f"OpenCode {clean_line(said, 40)} answers there, not process {pid}.")
        return V1(http, clean_line(said, 40))
    if not isinstance(failure, TooLargeError):
        for path in HEALTHS_2:
            health, _ = await _health(http, path)
            said, process = clean_line(text(health, "version"), 40), number(health, "pid")
            if not said or process <= 0:
                continue
            if pid not in (None, process) or version not in ("", said):
                wanted = f"{pid} with {version or 'any version'}"
                raise ProtocolError(f"Process {process} with OpenCode {said} answers there, not {wanted}.")
            return V2(http, said, path)
    if isinstance(failure, RequestError):
        raise RequestError("What answers there is not an OpenCode server.", failure.status)
    raise failure or ProtocolError("What answers there is not an OpenCode server: its health has no version.")


async def _health(http: Http, path: str) -> tuple[Any, ProtocolError | RequestError | None]:
    """Return what is there, or why it says nothing."""
    try:
        return await http.get(path, max_bytes=_HEALTH_BYTES), None
    except RequestError as error:
        if error.status != _NOT_FOUND:
            raise
        return None, error
    except ProtocolError as error:
        return None, error
