"""Admits only instances on hosts of an allow list, `ALLOWED_HOSTS=laptop,10.0.0.5`."""

import os
from urllib.parse import urlsplit

from opencode_mcp import Endpoint, hookimpl

VARIABLE = "ALLOWED_HOSTS"
"""Host names and addresses with commas between. While it is not set, this policy has no opinion."""


@hookimpl
def opencode_mcp_instance_admit(endpoint: Endpoint) -> bool | None:
    """Keep out whoever is not on the list.

    The others get None, not True: the first answer wins, and another plugin may still say no.
    """
    listed = os.environ.get(VARIABLE)
    if not listed:
        return None
    allowed = {host.strip().lower() for host in listed.split(",")}
    hosts = {urlsplit(endpoint.url).hostname}  # where requests really go
    if endpoint.vouched:  # anybody can announce any name
        hosts.add(endpoint.hostname.lower())
    return None if allowed & (hosts - {""}) else False
