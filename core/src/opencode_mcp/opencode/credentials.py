"""Credentials for an OpenCode server, for plugins that know them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


def opencode_auth(password: str, username: str = "opencode") -> "httpx2.Auth":
    """Make credentials that are sent only once a server asks for them in the way OpenCode does.

    So whoever has taken over an address, and is no OpenCode, is not handed the password unasked. It does not
    tell a false OpenCode from a true one.

    Args:
        password: `OPENCODE_SERVER_PASSWORD` of the server.
        username: `OPENCODE_SERVER_USERNAME` of the server.
    """
    from opencode_mcp.opencode.http import OpenCodeAuth  # httpx2 takes long to import

    return OpenCodeAuth(username, password)
