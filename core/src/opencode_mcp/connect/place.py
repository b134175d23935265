"""What is announced, under a name that is held and, for what is started here, at a port that is free."""

import dataclasses
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from opencode_mcp.connect.launch import announced_url, free_port, is_loopback, listening_address, local_url
from opencode_mcp.connect.selection import Selection
from opencode_mcp.connect.slots import Slot, claim, one_at_a_time
from opencode_mcp.errors import StartError
from opencode_mcp.model import Endpoint
from opencode_mcp.state.records import Record, running
from opencode_mcp.text import clean_line, printable


@dataclasses.dataclass(frozen=True)
class Place:
    """A name that is held, with what is announced under it.

    Attributes:
        slot: The name.
        endpoint: What the transports are told, less what OpenCode itself says once it answers.
        url: Where it will answer on this machine.
    """

    slot: Slot
    endpoint: Endpoint
    url: str


@contextmanager
def held_place(
    state: Path, name: str, selection: Selection, directory: Path, port: int | None, attach: str | None
) -> Generator[Place]:
    """Hold a name and a port until the block ends.

    Args:
        state: The state directory.
        name: What the instance is to be called.
        selection: Who announces it.
        directory: Its project, if it is started here.
        port: The port that is wanted; None for any.
        attach: The URL of a server that runs already.
    """
    with ExitStack() as stack:
        try:
            with one_at_a_time(state):
                slot = stack.enter_context(claim(state, name))
                if attach is None:
                    address = listening_address(selection.addresses)
                    taken = {urlsplit(record.url).port or 0 for record in running(state)}
                    chosen = free_port(address, port, taken)
                    endpoint = endpoint_of(slot, announced_url(address, chosen), printable(str(directory)))
                    url = local_url(address, chosen)
                else:
                    endpoint = _attached(slot, attach, selection)
                    url = endpoint.url
                slot.write(Record.of(endpoint, url=url, log=slot.log, places=selection.places))
        except OSError as error:
            raise StartError(f"The state directory {state} cannot be used: {error.strerror}.") from None
        yield Place(slot, endpoint, url)


def endpoint_of(slot: Slot, url: str, directory: str) -> Endpoint:
    """Describe an instance of this machine."""
    host = clean_line(socket.gethostname(), 255)
    return Endpoint(id=slot.id, name=slot.name, url=url, hostname=host, directory=directory)


def _attached(slot: Slot, url: str, selection: Selection) -> Endpoint:
    """Return the endpoint of a server that runs already; its project is its own to tell."""
    shown = clean_line(url, 100)
    try:
        endpoint = endpoint_of(slot, url, "")
    except ValidationError as error:
        why = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        why = why.removeprefix("Value error, ")
        raise StartError(f"--attach {shown!r} cannot be used: it {why}.", 2) from None
    parts = urlsplit(endpoint.url)
    if parts.scheme != "http" or parts.path or parts.port is None:
        raise StartError(f"--attach {shown!r} cannot be used: it must look like http://host:port.", 2)
    if not is_loopback(parts.hostname or "") and all(map(is_loopback, selection.addresses)):
        raise StartError(
            f"--attach {shown!r} cannot be used: {', '.join(selection.needs)} announces servers of this "
            "machine, at http://127.0.0.1:<port>. Run opencode-connected on the machine of that server.",
            2,
        )
    return endpoint
