"""Fixtures of the local-relay tests."""

import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_local_relay import directory as directories
from support.real_sshd import RealSshd, end, running_sshd, running_with

STRANGER = 54321


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where OpenCode 2.x would keep its service file: not that of whoever runs the tests."""
    path = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(path))
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry directory as it should be."""
    path = tmp_path / "registry"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def disown(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Give a file or directory to another user; without the right to do so, only seemingly."""

    def really(path: Path) -> None:
        os.chown(path, STRANGER, -1, follow_symlinks=False)

    def seemingly(path: Path) -> None:
        inode = path.lstat().st_ino
        judge = directories.distrust

        def distrust(status: os.stat_result) -> tuple[str, str] | None:
            fields = list(status)
            fields[4] = STRANGER if status.st_ino == inode else fields[4]
            return judge(os.stat_result(fields))

        monkeypatch.setattr("opencode_mcp_local_relay.directory.distrust", distrust)
        monkeypatch.setattr("opencode_mcp_local_relay.file.distrust", distrust)

    return really if os.geteuid() == 0 else seemingly


@pytest.fixture
async def sshd(tmp_path: Path) -> AsyncGenerator[RealSshd]:
    """An sshd that lets us in; afterwards no ssh of ours may be left."""
    async with running_sshd(tmp_path / "sshd") as server:
        yield server
        left = running_with(str(server.home / "user"))
        for pid in left:
            end(pid)
        assert left == []


@pytest.fixture
async def fake() -> AsyncGenerator[FakeOpenCode]:
    """An OpenCode that answers."""
    async with FakeOpenCode().serve() as server:
        yield server
