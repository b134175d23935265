"""Which instances this machine announces itself: read from what `opencode-connected` keeps, never made."""

import dataclasses
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opencode_mcp import Endpoint, announced_here
from opencode_mcp.connect.slots import Slot, claim
from opencode_mcp.state.places import state_directory
from opencode_mcp.state.records import Record


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the state directory is, or would be."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "opencode-mcp"


def announce(slot: Slot, **changes: Any) -> None:
    endpoint = Endpoint(id=slot.id, name=slot.name, url="http://127.0.0.1:4096")
    record = Record.of(endpoint, url=endpoint.url, log=slot.log, places={"mdns": ""})
    slot.write(dataclasses.replace(record, **changes))


@pytest.fixture
def one(home: Path) -> Iterator[Slot]:
    """Announce an instance."""
    with claim(state_directory(), "one") as slot:
        announce(slot)
        slot.keep = None
        yield slot


def test_the_instances_that_run_are_told_by_the_ids_of_their_endpoints(one: Slot, home: Path) -> None:
    with claim(home, "two") as two:
        announce(two)
        two.keep = None
        assert announced_here().keys() == {one.id, two.id}
    assert announced_here().keys() == {one.id}


def test_what_a_killed_process_left_is_announced_no_more(one: Slot, home: Path) -> None:
    killed = claim(home, "killed")
    announce(killed)
    killed.keep = killed.written
    killed.release()
    assert (home / "killed.json").exists()
    assert announced_here().keys() == {one.id}


def test_an_instance_of_another_machine_with_the_same_home_is_not_of_here(one: Slot, home: Path) -> None:
    with claim(home, "far") as far:
        announce(far, machine="far.example.org")
        assert announced_here().keys() == {one.id}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b'{"id": "x"}'], ids=range(4))
def test_a_damaged_record_hides_no_other(one: Slot, home: Path, content: bytes) -> None:
    (home / "damaged.json").write_bytes(content)
    assert announced_here().keys() == {one.id}


def test_where_nothing_was_ever_announced_there_is_none_and_nothing_is_made(home: Path) -> None:
    assert announced_here() == {}
    assert not home.parent.exists()


def test_a_file_in_its_place_says_nothing(home: Path) -> None:
    home.parent.write_text("I am a file")
    assert announced_here() == {}


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_what_others_could_have_written_says_nothing(one: Slot, home: Path, mode: int) -> None:
    home.chmod(mode)
    assert announced_here() == {}
    assert stat.S_IMODE(home.stat().st_mode) == mode, "it is left as it is"
    home.chmod(0o700)
    assert announced_here().keys() == {one.id}


def test_what_belongs_to_another_user_says_nothing(one: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert announced_here() == {}


def test_who_has_no_home_has_announced_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")
    assert announced_here() == {}


def test_a_share_that_is_gone_says_nothing(one: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> list[Path]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "glob", stale)
    assert announced_here() == {}


def test_where_there_are_no_locks_nothing_is_announced(one: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.delitem(sys.modules, "opencode_mcp.state.records")
    assert announced_here() == {}
