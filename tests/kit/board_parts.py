"""What the suites of the board's transports share: the publisher, and the fixtures."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from kit.board import write
from opencode_mcp.testing import Publisher, TransportSuite, TransportUnderTest


class BoardPublisher(Publisher):
    def __init__(self, directory: Path, *, breaks: bool = True) -> None:
        self.directory = directory
        self.breaks = breaks
        directory.mkdir()

    async def publish(self, url: str, *, key: str = "one", name: str = "one") -> None:
        write(self.directory / f"{key}.json", {"name": name, "url": url})

    async def withdraw(self, key: str = "one") -> None:
        (self.directory / f"{key}.json").unlink()

    def broken(self) -> AbstractAsyncContextManager[None]:
        return self.without_board() if self.breaks else super().broken()

    @asynccontextmanager
    async def without_board(self) -> AsyncGenerator[None]:
        elsewhere = self.directory.with_name("elsewhere")
        self.directory.rename(elsewhere)
        yield
        elsewhere.rename(self.directory)


class BoardSuite(TransportSuite):
    """The suite for a transport of the board.

    Attributes:
        named: The name of the entry point.
        able: What it claims: everything, or nothing.
        breaks: Whether its publisher can let looking fail.
    """

    named = "board"
    able = True
    breaks = True

    @pytest.fixture
    def transport(self, tmp_path: Path) -> TransportUnderTest:
        return TransportUnderTest(self.named, {"BOARD_DIRECTORY": str(tmp_path / "board")})

    @pytest.fixture
    def publisher(self, tmp_path: Path) -> Publisher:
        return BoardPublisher(tmp_path / "board", breaks=self.breaks)

    @property
    def watches_natively(self) -> bool:
        return self.able

    @property
    def announces(self) -> bool:
        return self.able

    @property
    def expires(self) -> bool:
        return self.able

    @property
    def expires_within_seconds(self) -> float:
        return 5.0
