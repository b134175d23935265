"""An OpenCode 2.x that runs as our child: it says on its stdout where it listens."""

import json
import threading
from contextlib import suppress
from typing import IO, Any
from urllib.parse import urlsplit

from opencode_mcp.connect.known import Known, only_us
from opencode_mcp.connect.launch import announced_url, is_loopback, local_url
from opencode_mcp.connect.presence import Presence
from opencode_mcp.errors import ProtocolError, UnreachableError
from opencode_mcp.model import server_url
from opencode_mcp.opencode.fields import text

_LINE_BYTES = 64 * 1024
_MOST_LINES = 100
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - where it may say it listens, never bound by us


class ServePresence(Presence):
    """The OpenCode 2.x that `opencode serve --stdio` runs.

    Args:
        url: Where it is to answer; it may choose another port.
        output: Its stdout, which is read to its end so that it never waits for us.
        address: Where it was told to listen.
        username: The user name that goes with the password.
        password: The password.
    """

    def __init__(
        self, url: str, output: IO[bytes], address: str, *, username: str, password: str | None
    ) -> None:
        super().__init__(url, username=username, password=password, started_here=True)
        self.problem = "OpenCode has not said where it listens."
        self._address = address
        self._why = self.problem
        self._port = 0
        threading.Thread(target=self._read, args=(output,), name="stdout of opencode", daemon=True).start()

    def _find(self) -> Known:
        if not self._port:
            raise UnreachableError(self._why)
        self.announced = announced_url(self._address, self._port)
        url = local_url(self._address, self._port)
        return Known(url=url, password=self._password, users=only_us())

    def _read(self, output: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            for _ in range(_MOST_LINES):
                line = output.readline(_LINE_BYTES)
                if not line:
                    break
                with suppress(ProtocolError):
                    self._port = self._port_in(line)
                    break
            while output.read(_LINE_BYTES):
                pass

    def _port_in(self, line: bytes) -> int:
        try:
            told: Any = json.loads(line)
            parts = urlsplit(server_url(text(told, "url")))
            host, port = parts.hostname or "", parts.port
        except (ValueError, RecursionError):
            raise ProtocolError("no URL") from None
        if not port:
            raise ProtocolError("no port")
        everywhere = self._address in _EVERYWHERE
        here = everywhere or is_loopback(self._address)
        if host == self._address or (here and is_loopback(host)) or (everywhere and host in _EVERYWHERE):
            return port
        self._why = f"OpenCode was told to listen at {self._address}, and says that it does elsewhere."
        raise ProtocolError(self._why)
