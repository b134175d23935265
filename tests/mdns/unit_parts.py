"""What the unit tests of mdns share: networks that are not there, and settings made by hand."""

import functools
import ipaddress
import time
from typing import Any

from opencode_mcp_mdns import MDnsSettings
from opencode_mcp_mdns.advert import Place
from opencode_mcp_mdns.network import Address, Attached, Network
from opencode_mcp_mdns.service import Service

SECRET = "correct horse battery staple"
VARIABLES = [
    "MDNS_TYPES",
    "MDNS_INTERFACES",
    "MDNS_PORTS",
    "MDNS_MAX_SERVICES",
    "MDNS_FORGET_AFTER_MS",
    "MDNS_CREDENTIALS_FOR",
    "MDNS_SECRET",
    "MDNS_REQUIRE_SECRET",
    "MDNS_PUBLISH_CWD",
]
ESCAPES = ["\x1b[31m", "\x00", "\n", "\r\n", "\u202e", "\u2066", "\u200b", "\x9b2J", "\u2028", "\x7f"]
"""What steers a terminal, breaks a line, or hides from a reader."""


def attached(name: str, index: int, *addresses: str) -> list[Attached]:
    return [Attached(name, index, ipaddress.ip_interface(one)) for one in addresses]


def lan() -> Network:
    """A machine with one cable, one address of each kind."""
    return Network(
        attached("eth0", 2, "192.168.1.10/24", "fd00:1::10/64", "2001:db8:1::10/64", "fe80::10/64"),
        own=[ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")],
    )


def address(text: str) -> Address:
    return ipaddress.ip_address(text)


def place(text: str, port: int = 4096) -> Place:
    return Place(address(text), port)


@functools.cache
def settings(**given: Any) -> MDnsSettings:
    """Settings by their fields' names, nothing from the environment; the key of a secret takes its time."""
    return MDnsSettings(**given)


def goodbye(service: Service, *, ago: float = 0.0) -> None:
    service.gone_at = time.monotonic() - ago
