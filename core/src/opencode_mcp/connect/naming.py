"""What an instance is called."""

import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from opencode_mcp.text import clean_line

_LIMIT = 190


def instance_name(chosen: str, directory: Path) -> str:
    """Return the name that was chosen, or else `<host>-<folder>`, as one safe line."""
    return chosen or clean_line(f"{_host()}-{directory.name or 'root'}", _LIMIT)


def machine_name(chosen: str) -> str:
    """Return the name that was chosen, or else `<host>`, for a server that works in many folders."""
    return chosen or clean_line(_host(), _LIMIT)


def numbered(name: str) -> Iterator[str]:
    """Yield `name`, then `name-2`, `name-3` and so on."""
    yield name
    for number in count(2):
        yield f"{name}-{number}"


def _host() -> str:
    return socket.gethostname().partition(".")[0] or "localhost"
