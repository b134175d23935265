"""What the tests on a LAN share: the MCP server as the gateway, and OpenCodes, each on a host of its own."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from support import fake_process
from support.command import MODULE
from support.connected import PROGRAM
from support.lan import Host, end, wait_for
from support.real_opencode import opencode_binary

Row = dict[str, Any]

PATIENCE = 60.0
"""Seconds for what takes a real OpenCode moments, on a busy machine."""
_PASSED_ON = ("PATH", "TMPDIR", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
_LOOK_SECONDS = 0.05


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Build an environment that nothing leaks into, with a home of its own."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        **variables,
    }


class Gateway:
    """The MCP server on a host, and everything it has listed since it started.

    Attributes:
        process: The server.
        errors: What it writes on stderr.
    """

    def __init__(self, host: Host, home: Path, **variables: str) -> None:
        self.errors = home / "gateway.log"
        own = environment(home, TRANSPORT="mdns", **variables)
        with self.errors.open("wb") as log:
            self.process: subprocess.Popen[str] = host.popen(
                *MODULE,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=own,
                cwd=home,
            )
        self._lock = threading.Lock()
        self._asked = 0
        self._history: list[tuple[float, list[Row]]] = []
        client = {"name": "a test", "version": "1"}
        self._ask("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client})
        self._tell({"method": "notifications/initialized"})

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool; return its structured answer."""
        answer = self._ask("tools/call", {"name": tool, "arguments": arguments})
        assert not answer.get("isError"), answer
        return answer["structuredContent"]

    def rows(self) -> list[Row]:
        """What is listed now."""
        rows: list[Row] = self.call("instances")["instances"]
        self._history.append((time.monotonic(), rows))
        return rows

    def notes(self) -> list[str]:
        """What was found and left out."""
        return self.call("instances")["notes"]

    def until(self, wanted: Callable[[list[Row]], Any], seconds: float = PATIENCE) -> list[Row]:
        """Look again and again until the list is as wanted; return it.

        Args:
            wanted: Whether it is.
            seconds: How long at most.
        """
        deadline = time.monotonic() + seconds
        while True:
            rows = self.rows()
            if wanted(rows):
                return rows
            if time.monotonic() > deadline:
                log = self.errors.read_text()[-2000:]
                shown = json.dumps(rows, indent=1)
                raise AssertionError(f"Not within {seconds} s. Listed: {shown} {self.notes()} {log}")
            time.sleep(_LOOK_SECONDS)

    def during(self, seconds: float) -> None:
        """Look again and again for some time: only what `longest_gap` says then counts."""
        with self.watched():
            time.sleep(seconds)

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """Look again and again while the block runs."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_SECONDS):
                self.rows()

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()

    def longest_gap(self, wanted: Callable[[Row], Any], since: float) -> float:
        """Return for how many seconds, at most, no such row was listed from a moment on."""
        longest, seen = 0.0, since
        for when, rows in self._history:
            if when < since:
                continue
            longest = max(longest, when - seen)
            if any(map(wanted, rows)):
                seen = when
        return longest

    def memory(self) -> int:
        """Its resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024

    def _ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._asked += 1
            self._tell({"id": self._asked, "method": method, "params": params})
            assert self.process.stdout is not None
            while line := self.process.stdout.readline():
                message = json.loads(line)
                if message.get("id") == self._asked:
                    return message["result"]
        raise AssertionError(f"The gateway ended: {self.errors.read_text()}")

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def gateway(host: Host, home: Path, **variables: str) -> Generator[Gateway]:
    """Run the MCP server with TRANSPORT=mdns on a host until the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    one = Gateway(host, home, **variables)
    try:
        yield one
    finally:
        end(one.process)


def fake_opencode(
    host: Host, port: int = 4096, *, listen: str = "0.0.0.0", password: str = "", directory: str = "/srv/web"
) -> subprocess.Popen[Any]:
    """Run a FakeOpenCode on a host; it listens when this returns. Nobody announces it."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, fake_process.__file__, str(port), listen, password, directory]
    process = host.popen(*words, stdout=subprocess.PIPE, text=True, env=own)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


class RealServer:
    """A real `opencode serve --mdns` on a host; it listens when this is made.

    Attributes:
        process: Its process.
        ready: When it said that it listens, on the clock `time.monotonic`.
    """

    def __init__(self, host: Host, project: Path, port: int = 4096, password: str = "") -> None:
        project.mkdir(parents=True, exist_ok=True)
        home = project.with_name(f"{project.name}-home")
        given = {"OPENCODE_SERVER_PASSWORD": password} if password else {}
        log = home / "serve.log"
        own = environment(home, **given)
        words = [opencode_binary(), "serve", "--mdns", "--port", str(port)]
        with log.open("wb") as file:
            self.process = host.popen(*words, cwd=project, env=own, stdout=file, stderr=subprocess.STDOUT)
        wait_for(
            lambda: "server listening" in log.read_text(), PATIENCE, f"OpenCode listens: {log.read_text()}"
        )
        self.ready = time.monotonic()


@contextlib.contextmanager
def connected(
    host: Host, home: Path, *arguments: str, **variables: str
) -> Generator["subprocess.Popen[Any]"]:
    """Run `opencode-connected` with TRANSPORT=mdns on a host until the block ends, with the real OpenCode.

    Args:
        host: Where.
        home: Its home directory; it works in `project` below it.
        arguments: For opencode-connected; without `--attach` it starts the server alone, without a terminal.
        variables: Further environment variables.
    """
    project = home / "project"
    own = environment(home, TRANSPORT="mdns", **variables)
    project.mkdir(parents=True, exist_ok=True)
    own.setdefault("OPENCODE_MCP_COMMAND", str(opencode_binary()))
    words = [*PROGRAM, *([] if "--attach" in arguments else ["--headless"]), *arguments]
    with (home / "connected.log").open("ab") as log:
        process = host.popen(*words, cwd=project, env=own, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        end(process)


def password_of(home: Path) -> str:
    """Return the password that `opencode-connected` has made up."""
    path = home / "state" / "opencode-mcp" / "password"
    wait_for(path.exists, PATIENCE, f"{path} is there")
    return path.read_text().strip()


def is_online(rows: list[Row], *hosts: str) -> bool:
    """Whether there is exactly one row for each of these hosts, all of them online."""
    return sorted(row["host"] for row in rows) == sorted(hosts) and all(
        row["status"] == "online" for row in rows
    )
