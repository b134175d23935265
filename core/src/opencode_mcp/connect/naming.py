"""What an instance is called."""

import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from opencode_mcp.text import clean_line

_LIMIT = 190


def instance_name(chosen: str, directory: Path) -> str:
    """Return the name that was chosen, or else `<host>-<folder>`, as one safe line."""
    host = socket.gethostname().partition(".")[0] or "localhost"
    return chosen or clean_line(f"{host}-{directory.name or 'root'}", _LIMIT)


def numbered(name: str) -> Iterator[str]:
    """Yield `name`, then `name-2`, `name-3` and so on."""
    yield name
    for number in count(2):
        yield f"{name}-{number}"
