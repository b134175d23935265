"""What the tests of local-relay share: registration files to write, and sets to wait for."""

import json
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from opencode_mcp import Endpoint
from opencode_mcp_local_relay import LocalRelay, LocalRelaySettings

ORIGINAL = {
    "name": "laptop-project",
    "hostname": "laptop",
    "port": 41001,
    "localPort": 4096,
    "cwd": "/home/me/project",
    "connectedAt": "2025-01-02T03:04:05.678Z",
}
"""A registration as the original tool writes it."""


def relay(directory: Path, **settings: Any) -> LocalRelay:
    return LocalRelay(LocalRelaySettings(registry_dir=directory, **settings))


def register(directory: Path, stem: str, /, **changes: Any) -> Path:
    """Write a registration file in one step; a key set to None is left out."""
    content = {key: value for key, value in {**ORIGINAL, **changes}.items() if value is not None}
    path = directory / f"{stem}.json"
    temporary = directory / f".{stem}.part"
    temporary.write_text(json.dumps(content, indent=2))
    temporary.chmod(0o600)
    temporary.replace(path)
    return path


def put(directory: Path, name: str, content: bytes, *, age: float = 60) -> Path:
    """Write a file as it is, by default long ago, so that nobody takes it for half-written."""
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o600)
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))
    return path


class Published:
    """Takes what a transport publishes, and lets a test wait for it."""

    def __init__(self) -> None:
        self.sets: list[Sequence[Endpoint]] = []
        self._arrived = anyio.Event()

    def __call__(self, endpoints: Sequence[Endpoint]) -> None:
        self.sets.append(endpoints)
        self._arrived.set()
        self._arrived = anyio.Event()

    async def until(
        self, wanted: Callable[[Sequence[Endpoint]], bool], seconds: float = 5
    ) -> Sequence[Endpoint]:
        with anyio.fail_after(seconds):
            while not self.sets or not wanted(self.sets[-1]):
                await self._arrived.wait()
        return self.sets[-1]

    async def until_ids(self, *ids: str, seconds: float = 5) -> Sequence[Endpoint]:
        return await self.until(lambda found: ids_of(found) == sorted(ids), seconds)


def ids_of(endpoints: Sequence[Endpoint]) -> list[str]:
    return sorted(endpoint.id for endpoint in endpoints)


def urls_of(endpoints: Sequence[Endpoint]) -> list[str]:
    return sorted(endpoint.url for endpoint in endpoints)


@asynccontextmanager
async def watching(transport: LocalRelay) -> AsyncGenerator[Published, None]:
    published = Published()
    async with anyio.create_task_group() as group:
        group.start_soon(transport.watch, published)
        yield published
        group.cancel_scope.cancel()


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for something that gives no notice."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)
