"""A small transport that does everything right: a directory with a file for each endpoint.

It can all that a transport can, so that each test of the suite has something to test. `mutants` breaks it.
"""

import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import SecretStr, ValidationError

from opencode_mcp import (
    Announcing,
    Endpoint,
    Publish,
    Rejection,
    Route,
    Settings,
    Transport,
    TransportError,
    TransportPlugin,
    clean_line,
    hookimpl,
    variable,
)

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

LOOK_SECONDS = 0.02
EXPIRES_SECONDS = 1.5


class BoardSettings(Settings):
    directory: Path = variable(
        "BOARD_DIRECTORY", Path("board"), takes="the path of a directory", about="Where the files are."
    )
    most: int = variable(
        "BOARD_MOST", 100, takes="a whole number, 1 or more", about="How many are read.", ge=1, le=10_000
    )
    token: SecretStr | None = variable(
        "BOARD_TOKEN", None, takes="a token", about="Sent along with every request."
    )


class Board(Transport):
    """Finds what is on the board, and puts instances there."""

    def __init__(self, settings: BoardSettings) -> None:
        self.settings = settings
        self.left_out: list[Rejection] = []

    async def discover(self) -> Sequence[Endpoint]:
        return self.look()

    def look(self) -> list[Endpoint]:
        found: list[Endpoint] = []
        self.left_out = []
        for path in self.files():
            try:
                written = json.loads(path.read_text())
                if time.time() - path.stat().st_mtime < written.get("expires", float("inf")):
                    found.append(self.endpoint(path, written))
            except FileNotFoundError:  # removed at this very moment
                continue
            except ValidationError as error:
                self.leave_out(path, written, error)
        return found

    def files(self) -> list[Path]:
        try:
            return sorted(path for path in self.settings.directory.iterdir() if path.suffix == ".json")
        except OSError as error:
            raise TransportError(f"The board cannot be read: {error.strerror}.") from None

    def endpoint(self, path: Path, written: Any) -> Endpoint:
        return Endpoint(id=path.stem, name=written["name"], url=written["url"])

    def leave_out(self, path: Path, written: Any, error: ValidationError) -> None:
        why = clean_line(", ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors()), 500)
        self.left_out.append(Rejection(source=path.name, reason=f"{why}. Write the file anew."))

    def rejected(self) -> Sequence[Rejection]:
        return tuple(self.left_out)

    async def watch(self, publish: Publish) -> None:
        published: list[Endpoint] | None = None
        while True:
            found = self.look()
            if found != published:
                self.publish(publish, published, found)
                published = found
            await anyio.sleep(LOOK_SECONDS)

    def publish(self, publish: Publish, before: list[Endpoint] | None, now: list[Endpoint]) -> None:
        publish(now)

    def connect(self, endpoint: Endpoint) -> AbstractAsyncContextManager[Route]:
        return self.connected(endpoint)

    @asynccontextmanager
    async def connected(self, endpoint: Endpoint) -> AsyncGenerator[Route]:
        found = next((one for one in self.look() if one.id == endpoint.id), None)
        if found is None:
            raise TransportError(f"{endpoint.name} is not on the board.")
        token = self.settings.token
        headers = {} if token is None else {"x-token": token.get_secret_value()}
        yield Route(base_url=found.url, headers=headers)

    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        path = self.settings.directory / f"{self.announced_id(endpoint)}.json"
        try:
            self.put(path, endpoint)
            self.began(task_status.started)
            while True:
                await anyio.sleep(EXPIRES_SECONDS / 5)
                self.put(path, endpoint)
        finally:
            await self.withdrawn(path)

    def announced_id(self, endpoint: Endpoint) -> str:
        return endpoint.id

    def began(self, started: Callable[[], None]) -> None:
        started()

    def put(self, path: Path, endpoint: Endpoint) -> None:
        write(path, {"name": endpoint.name, "url": endpoint.url, "expires": EXPIRES_SECONDS})

    async def withdrawn(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def write(path: Path, content: Any) -> None:
    """Write a file in one step."""
    beside = path.with_suffix(f".{os.getpid()}.new")
    beside.write_text(json.dumps(content))
    beside.replace(path)


class BoardPlugin:
    """What the entry point names, for a transport and its settings."""

    def __init__(self, name: str, transport: type[Transport], **changes: Any) -> None:
        @asynccontextmanager
        async def opened(settings: Any) -> AsyncGenerator[Transport]:
            yield transport(settings)  # pyright: ignore[reportCallIssue] - each takes its settings

        fields: dict[str, Any] = {
            "name": name,
            "summary": "OpenCode instances on a board",
            "settings": BoardSettings,
            "open": opened,
            "announcing": lambda settings: Announcing(facts={"Board": str(settings.directory)}),
            **changes,
        }
        self.descriptor = TransportPlugin(**fields)

    @hookimpl
    def opencode_mcp_transports(self) -> Any:
        return [self.descriptor]


class Plain(Transport):
    """The least that a transport can be: it looks, and goes straight to the url."""

    def __init__(self, settings: BoardSettings) -> None:
        self.board = Board(settings)

    async def discover(self) -> Sequence[Endpoint]:
        return self.board.look()

    def rejected(self) -> Sequence[Rejection]:
        return self.board.rejected()


board = BoardPlugin("board", Board)
plain = BoardPlugin("plain", Plain, announcing=None)
