"""Fixtures of the tests of opencode-connected: a place to run it in, which must be empty at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.connected import PROMPTLY, Connected, eventually


@pytest.fixture
def connected(tmp_path: Path) -> Iterator[Connected]:
    """With the light OpenCode."""
    yield from _used(Connected(tmp_path / "connected"))


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Connected]:
    """With a light OpenCode of 2.x, whose background service is ended at the end."""
    connected = Connected(tmp_path / "connected", does="version=2.1.2")
    for _ in _used(connected, connected.stop_service):
        yield connected


@pytest.fixture
def really_connected(tmp_path: Path) -> Iterator[Connected]:
    """With the real OpenCode."""
    yield from _used(Connected(tmp_path / "connected", real=True))


def _used(connected: Connected, last: Callable[[], None] = lambda: None) -> Iterator[Connected]:
    yield connected
    try:
        last()
        eventually(lambda: not connected.processes(), PROMPTLY)  # a terminal closes in its own time
    finally:
        assert connected.end() == {}
