"""What the tests of announcing share: announcers in tasks and in processes, and who looks at what they say.

As a program it announces one instance, again and again, and says so on stdout:
`announcing_parts.py SOCKET NAME URL [ALLOWED]`.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskGroup, TaskStatus

from opencode_mcp import Endpoint, OpenCodeMCPError, TransportError
from opencode_mcp.errors import ours
from opencode_mcp_tailscale import Tailscale, TailscaleSettings
from opencode_mcp_tailscale.index import PATH
from opencode_mcp_tailscale.localapi import Dialling, LocalApi
from opencode_mcp_tailscale.serving import members
from opencode_mcp_tailscale.through import Through

Row = dict[str, Any]

PORT = 14096
SECONDS = 5.0
"""For what takes moments, on a busy machine."""
MARK = f"opencode-mcp.invalid:{PORT}"
_ABROAD = Path(__file__)


def settings(socket: Path | str | None, **given: Any) -> TailscaleSettings:
    """Settings by their fields' names, nothing from the environment."""
    return TailscaleSettings(socket=str(socket), **given)


def endpoint(name: str = "shop", url: str = "http://127.0.0.1:4096", **labels: str) -> Endpoint:
    return Endpoint(id=name, name=name, url=url, labels=labels)


class Announcer:
    """One announcement, in a task of its own.

    Attributes:
        announced: Whether it ever was visible.
        ended: Set once it is over.
        error: What it ended with; None if it was cancelled.
    """

    def __init__(self, transport: Tailscale, endpoint: Endpoint) -> None:
        self.transport = transport
        self.endpoint = endpoint
        self.announced = anyio.Event()
        self.ended = anyio.Event()
        self.error: Exception | None = None
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    await group.start(self._announce)
                    self.announced.set()
        finally:
            self.ended.set()

    async def _announce(self, *, task_status: TaskStatus[None]) -> None:
        try:
            await self.transport.announce(self.endpoint, task_status=task_status)
        except Exception as error:
            self.error = error
            self._scope.cancel()

    async def until_announced(self, seconds: float = SECONDS) -> None:
        """Wait until it is visible; raise what it ends with."""
        with anyio.fail_after(seconds):
            while not self.announced.is_set():
                self._reraise()
                await anyio.sleep(0.002)

    async def failure(self, seconds: float = SECONDS) -> str:
        """Wait until it ends with one of our errors; return what that says."""
        with anyio.fail_after(seconds):
            await self.ended.wait()
        assert self.error is not None
        known = ours(self.error)
        assert isinstance(known, TransportError), repr(self.error)
        return str(known)

    async def leave(self) -> None:
        """Cancel it, and wait until it is over, as long as core waits."""
        self._scope.cancel()
        with anyio.fail_after(2):
            await self.ended.wait()
        self._reraise()

    def _reraise(self) -> None:
        if self.error is not None:
            raise ours(self.error) or self.error


class Desk:
    """A process with announcers, as tasks."""

    def __init__(self, group: TaskGroup, socket: Path | str | None, api: LocalApi) -> None:
        self.api = api
        self._group = group
        self._socket = socket

    def start(self, name: str = "shop", url: str = "http://127.0.0.1:4096", **given: Any) -> Announcer:
        """Start announcing an instance; `given` are settings."""
        return self.start_endpoint(endpoint(name, url), **given)

    def start_endpoint(self, endpoint: Endpoint, **given: Any) -> Announcer:
        one = Announcer(Tailscale(settings(self._socket, **given), self.api), endpoint)
        self._group.start_soon(one.run)
        return one

    async def announce(
        self, name: str = "shop", url: str = "http://127.0.0.1:4096", **given: Any
    ) -> Announcer:
        """Announce an instance; return once it is visible."""
        one = self.start(name, url, **given)
        await one.until_announced()
        return one


@contextlib.asynccontextmanager
async def desk_at(socket: Path | str | None) -> AsyncGenerator[Desk]:
    """Open a place to announce from, beside a tailscaled; all announcements end with it."""
    async with LocalApi(settings(socket)) as api, anyio.create_task_group() as group:
        yield Desk(group, socket, api)
        group.cancel_scope.cancel()


# Looking


async def get(
    socket: Path | str | None,
    name: str,
    path: str = PATH,
    *,
    method: str = "GET",
    port: int = PORT,
    headers: Mapping[str, str] | None = None,
) -> httpx2.Response:
    """Make a request to a machine of the tailnet, through another one's tailscaled."""
    async with LocalApi(settings(socket)) as api:
        transport = Through(Dialling(api))
        async with httpx2.AsyncClient(transport=transport, timeout=SECONDS, trust_env=False) as client:
            return await client.request(method, f"http://{name}:{port}{path}", headers=headers)


async def index(socket: Path | str | None, name: str) -> set[str]:
    """The names in the index of a machine, as another one reads it; empty if it has none."""
    try:
        response = await get(socket, name)
    except httpx2.TransportError:
        return set()
    if response.status_code != 200:
        return set()
    return {one["name"] for one in json.loads(response.text)["instances"]}


async def until_index(socket: Path | str | None, name: str, *names: str, seconds: float = SECONDS) -> None:
    """Wait until the index of a machine, as another one reads it, holds these names and no others."""
    found: set[str] = set()
    with anyio.move_on_after(seconds):
        while (found := await index(socket, name)) != set(names):
            await anyio.sleep(0.01)
        return
    raise AssertionError(f"Not within {seconds} s: {found} instead of {set(names)}")


def announced(config: Mapping[str, Any] | None) -> set[str]:
    """The names that announcers have put into a serve config."""
    return {one.entry.name for one in members(config or {}, PORT)}


def listed(config: Mapping[str, Any] | None, name: str) -> set[str]:
    """The names in the index of a serve config, if whoever serves it does so by a text."""
    for part in (config or {}).get("Foreground", {}).values():
        handler = part.get("Web", {}).get(f"{name}:{PORT}", {}).get("Handlers", {}).get(PATH)
        if handler is not None:
            return {one["name"] for one in json.loads(handler["Text"])["instances"]}
    return set()


def holders(config: Mapping[str, Any] | None) -> list[str]:
    """The sessions that serve the index port."""
    parts = (config or {}).get("Foreground", {}).items()
    return [session for session, part in parts if str(PORT) in part.get("TCP", {})]


def holder_name(config: Mapping[str, Any] | None) -> str:
    """The name of the instance whose announcer serves the index; empty if there is not exactly one."""
    serving = holders(config)
    found = [one.entry.name for one in members(config or {}, PORT) if serving == [one.session]]
    return found[0] if found else ""


# In other processes


class Process:
    """An announcer in a process of its own."""

    def __init__(self, socket: Path | str | None, name: str, url: str, *allowed: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        words = [sys.executable, str(_ABROAD), str(socket), name, url, *allowed]
        self.name = name
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )

    async def until_announced(self) -> None:
        """Wait for its word."""
        assert self._process.stdout is not None
        with anyio.fail_after(20):
            said = await anyio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        assert said == "announced\n", said + self.output()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it as nothing else can be killed, and wait until it is dead."""
        self._process.kill()
        self._process.wait(10)

    def output(self) -> str:
        """What it says on stderr until its end, which this is."""
        self.kill()
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def close(self) -> None:
        self.kill()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def processes(
    socket: Path | str | None, *names: str, urls: Sequence[str] = (), allowed: Sequence[str] = ()
) -> Generator[list[Process]]:
    """Start announcers in processes of their own, all at the same time; kill them in the end."""
    running: list[Process] = []
    try:
        for name, url in itertools.zip_longest(names, urls, fillvalue="http://127.0.0.1:4096"):
            running.append(Process(socket, name, url, *allowed))
        yield running
    finally:
        for one in running:
            one.close()


async def _announce_on_and_on(socket: str, name: str, url: str, allowed: Sequence[str]) -> None:
    own = settings(socket, allow_users=tuple(allowed))

    async def say(transport: Tailscale) -> None:
        async with anyio.create_task_group() as group:
            await group.start(
                lambda *, task_status: transport.announce(endpoint(name, url), task_status=task_status)
            )
            print("announced", flush=True)

    async with LocalApi(own) as api:
        while True:
            try:
                await say(Tailscale(own, api))
            except* OpenCodeMCPError as errors:
                print("lost", errors.exceptions, file=sys.stderr, flush=True)
            await anyio.sleep(0.2)


if __name__ == "__main__":
    anyio.run(_announce_on_and_on, sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
