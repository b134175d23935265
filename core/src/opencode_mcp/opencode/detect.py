"""Learns which generation of the OpenCode API a server speaks."""

from typing import Any, cast

from opencode_mcp.errors import ProtocolError, RequestError
from opencode_mcp.opencode.api import OpenCode
from opencode_mcp.opencode.http import Http
from opencode_mcp.opencode.v1 import V1
from opencode_mcp.text import clean_line

_HEALTH_BYTES = 64 * 1024
_NOT_FOUND = 404


async def detect(http: Http) -> OpenCode:
    """Return the client for the server behind `http`.

    OpenCode 1.x answers every unknown path with its web page and status 200, so a status proves nothing:
    `/global/health` must be JSON and hold a version (as run on 1.18.33).

    Raises:
        CredentialsError: It is an OpenCode, and wants a password.
        ProtocolError: Something else answers, as if all were well.
        RequestError: It answers with an error; an OpenCode 2.x does not know the path.
        UnreachableError: Nothing answers.
    """
    try:
        health: Any = await http.get("/global/health", max_bytes=_HEALTH_BYTES)
    except RequestError as error:
        if error.status != _NOT_FOUND:
            raise
        raise RequestError("What answers there is not an OpenCode 1.x server.", error.status) from None
    if isinstance(health, dict):
        version = cast("dict[str, Any]", health).get("version")
        if isinstance(version, str) and version:
            return V1(http, clean_line(version, 40))
    raise ProtocolError("What answers there is not an OpenCode 1.x server: its health has no version.")
