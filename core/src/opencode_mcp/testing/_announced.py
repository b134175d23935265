"""One announcement, as `opencode-connected` makes it: by a task of this process, or by one to be killed."""

import os
import secrets
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import Process, TaskGroup

from opencode_mcp.model import Endpoint
from opencode_mcp.testing._under_test import TransportUnderTest, environment_for_children
from opencode_mcp.transport import Announcer

VISIBLE = b"visible"
"""What the process says once its instance is announced."""


def endpoint_at(url: str) -> Endpoint:
    """Return what core says of an instance of this machine that wants a password."""
    token = secrets.token_hex(16)
    return Endpoint(
        id=token,
        name=f"laptop-{token[:8]}",
        url=url,
        hostname="laptop",
        directory="/srv/project",
        labels={"auth": "basic", "version": "1.18.33"},
    )


class Announcement:
    """An announcement in a task of its own.

    Attributes:
        failure: What it raised; None while it goes on, or if it was cancelled.
        visible: Whether it has said that it is visible.
        ended: Set once it is over.
    """

    def __init__(self, announcer: Announcer, endpoint: Endpoint) -> None:
        self.failure: Exception | None = None
        self.visible = False
        self.ended = anyio.Event()
        self._announcer = announcer
        self._endpoint = endpoint
        self._scope = anyio.CancelScope()
        self._news = anyio.Event()

    async def begin(self, group: TaskGroup) -> None:
        """Begin in `group`; return once it is visible, or over."""
        group.start_soon(self._run)
        await self._news.wait()

    async def stop(self) -> None:
        """Cancel it, and wait until it is over."""
        self._scope.cancel()
        await self.ended.wait()

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._announcer.announce(self._endpoint, task_status=_Told(self._tell))
        except Exception as error:  # the author's code: its test says what is wrong about it
            self.failure = error
        finally:
            self.ended.set()
            self._news.set()

    def _tell(self) -> None:
        self.visible = True
        self._news.set()


class _Told:
    """The `task_status` of an announcement: calls back."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def started(self, value: None = None) -> None:
        """Take note that it is visible."""
        self._tell()


@asynccontextmanager
async def recorded(endpoint: Endpoint) -> AsyncGenerator[None]:
    """Let `announced_here` know of an instance, as while `opencode-connected` announces it."""
    try:
        from opencode_mcp.connect.slots import Slot
        from opencode_mcp.state.places import state_directory
        from opencode_mcp.state.records import Record
    except ImportError:  # there is no fcntl: nobody announces there
        yield
        return

    def record() -> Slot:
        slot = Slot(state_directory(), endpoint.name)
        slot.write(Record.of(endpoint, url=endpoint.url, log=Path(os.devnull), places={}))
        return slot

    slot = await anyio.to_thread.run_sync(record)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(slot.release)


@asynccontextmanager
async def announcing_process(under_test: TransportUnderTest, endpoint: Endpoint) -> AsyncGenerator[Process]:
    """Announce `endpoint` from a process of its own until the block ends; it is killed then.

    Yields it once it is visible, or over.
    """
    command = [sys.executable, "-m", "opencode_mcp.testing._announcer", under_test.name]
    given = {**environment_for_children(), **under_test.surroundings(under_test.announcing)}
    env = {name: value for name, value in given.items() if value is not None}
    command.append(endpoint.model_dump_json())
    async with await anyio.open_process(command, env=env, stderr=None) as process:
        try:
            said = b""
            while process.stdout is not None and VISIBLE not in said.split():
                try:
                    said += await process.stdout.receive()
                except anyio.EndOfStream:
                    break
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def kill(process: Process) -> None:
    """Kill a process, and wait until it is gone."""
    process.kill()
    await process.wait()
