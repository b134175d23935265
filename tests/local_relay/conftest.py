"""Fixtures of the local-relay tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opencode_mcp_local_relay import directory as directories

STRANGER = 54321


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
