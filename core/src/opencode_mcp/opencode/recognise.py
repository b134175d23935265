"""Asks whether an OpenCode answers somewhere, for transports that find addresses and not instances."""

import dataclasses
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from opencode_mcp.errors import (
    CredentialsError,
    LocalError,
    OpenCodeMCPError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from opencode_mcp.model import Route, server_url
from opencode_mcp.text import clean_line, printable

if TYPE_CHECKING:
    from opencode_mcp.opencode.http import Http

_loaded = threading.Event()
"""Set once the HTTP client is there: importing it takes a tenth of a second, so a thread does it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recognised:
    """What an OpenCode server says of itself to anybody.

    Attributes:
        version: Its version, one line of at most 40 characters; empty if it wants a password first.
        guarded: Whether it wants a password.
        directory: The project it serves, one line of at most 4096 characters; empty if it does not say, or
            wants a password first.
    """

    version: str = ""
    guarded: bool = False
    directory: str = ""


async def recognise(route: Route, *, seconds: float = 2.0) -> Recognised:
    """Ask, without any credentials, whether an OpenCode server answers behind `route`.

    For a transport that finds addresses, to publish those where an instance is. That something speaks as
    OpenCode does says nothing of whose it is.

    Sends one or two GET requests with the headers of `route` over one connection, follows no redirect, and
    reads at most 64 KiB of an answer. Many may run at once; 16 is a good number.

    Args:
        route: Where to ask. A transport in it is closed in the end.
        seconds: How long it may take in all, but for loading the HTTP client, once in a process.

    Returns:
        What it says of itself.

    Raises:
        UnreachableError: Nothing answers, or not in time, or this machine cannot ask (no network, too many
            open files): whether there is an OpenCode is not known.
        ProtocolError: Something else answers, or stands in front of it: with a web page, an error, a
            redirect, or a demand for a password that is not OpenCode's.
    """
    if not _loaded.is_set():
        await anyio.to_thread.run_sync(_load)
    from opencode_mcp.opencode.detect import detect

    found: Recognised | None = None
    with anyio.move_on_after(seconds):
        async with _http(route, seconds) as http:
            try:
                api = await detect(http)
            except CredentialsError as error:
                if not error.as_opencode:
                    raise ProtocolError("It refuses us, and not as an OpenCode does.") from None
                return Recognised(guarded=True)
            except RequestError as error:
                raise ProtocolError(
                    f"It answers with HTTP status {error.status}."
                ) from None  # not with its words
            except LocalError as error:
                raise UnreachableError(str(error)) from None
            found = Recognised(version=api.version)
            with suppress(OpenCodeMCPError):
                found = dataclasses.replace(found, directory=printable(await api.directory()))
    if found is None:
        raise UnreachableError("It did not answer in time.")
    return found


def _http(route: Route, seconds: float) -> "Http":
    import httpx2

    from opencode_mcp.opencode.http import Http

    try:
        server_url(route.base_url)
        return Http(route, seconds=seconds, vouched=False)
    except (ValueError, httpx2.InvalidURL) as error:
        shown = clean_line(route.base_url)
        raise UnreachableError(f"Nothing can be asked at {shown!r}: {clean_line(str(error))}.") from None


def _load() -> None:
    from opencode_mcp.opencode.http import warm_up

    import_module("opencode_mcp.opencode.detect")
    warm_up()
    _loaded.set()
