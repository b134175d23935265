"""Takes the password for each host from the system's keyring: `keyring set opencode-mcp laptop`."""

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import keyring

from opencode_mcp import Endpoint, hookimpl, opencode_auth

if TYPE_CHECKING:
    import httpx2

SERVICE = "opencode-mcp"
"""What the passwords are kept under. The user name there is the host."""


@hookimpl
def opencode_mcp_instance_auth(endpoint: Endpoint) -> "httpx2.Auth | None":
    """Return the password that is kept for the host of `endpoint`, or None if there is none.

    A keyring that is locked, or missing, raises. Core logs that with the name of this plugin.
    """
    hosts = [urlsplit(endpoint.url).hostname]  # where the password would be sent
    if endpoint.vouched:  # anybody can announce any name, to be sent its password
        hosts.insert(0, endpoint.hostname)
    for host in filter(None, hosts):
        password = keyring.get_password(SERVICE, host)
        if password:
            username = os.environ.get("OPENCODE_SERVER_USERNAME") or "opencode"
            return opencode_auth(password, username)
    return None
