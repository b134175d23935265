"""Folders and names from hell, several instances at a place, and what is kept over a restart."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from opencode_mcp import Endpoint
from support.connected import PROMPTLY, Connected, Started, eventually

pytestmark = pytest.mark.slow

FOLDERS = [
    "x'; touch PWNED; '",
    'x"; touch PWNED; "',
    "$(touch PWNED)",
    "`touch PWNED`",
    "a\nb\ttouch PWNED",
    "\x1b]0;PWNED\x07",
    "日本語 ü \u202e \u200b",
    "-rf --port 1",
    "   ",
    "&& touch PWNED #",
    "%s%n{name}\\",
    "x" * 255,
    "/".join(["nested" * 30] * 6),
    b"\xff\xfe not UTF-8",
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: repr(folder)[:30])
def test_in_any_folder_it_starts_and_nothing_executes(connected: Connected, folder: str | bytes) -> None:
    place = connected.home / os.fsdecode(folder)
    place.mkdir(parents=True)
    path = os.fsencode(place)
    with connected.announced(cwd=path) as started:
        registration = connected.registration()
        run = connected.run()
        said = started.said
    assert os.fsencode(run["cwd"]) == path
    assert run["argv"] == ["serve", "--port", str(registration["port"]), "--hostname", "127.0.0.1"]
    Endpoint(id="x", name=registration["name"], url="http://127.0.0.1:1", directory=registration["cwd"])
    printable = os.fsdecode(path).isprintable()
    assert registration["cwd"] == (os.fsdecode(path) if printable else "")
    assert len(said.splitlines()) == 9, "each value of the banner is one line"
    assert "\x1b" not in said
    assert not list(connected.home.rglob("PWNED"))


@pytest.mark.parametrize(
    "name", ["my shop", "x'; touch PWNED; '", "-rf", "日本語", "../../up", "x" * 98, "."]
)
def test_a_chosen_name_is_used_as_it_is(connected: Connected, name: str) -> None:
    with connected.announced(INSTANCE_NAME=name), connected.announced(INSTANCE_NAME=name):
        names = [one["name"] for one in connected.registrations()]
        assert names == [name, f"{name}-2"]
        assert [path.parent for path in connected.files()] == [connected.registry] * 2
    assert not list(connected.home.rglob("PWNED"))


def test_the_longest_name_is_used_as_it_is(connected: Connected) -> None:
    with connected.announced(INSTANCE_NAME="x" * 190):
        assert connected.registration()["name"] == "x" * 190


def test_further_ones_in_a_folder_get_numbers_and_free_numbers_are_used_again(connected: Connected) -> None:
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(connected.announced()) for _ in range(3))
        [name, *others] = [one["name"] for one in connected.registrations()]
        assert others == [f"{name}-2", f"{name}-3"]
        ids = {one["name"]: one["id"] for one in connected.registrations()}
        assert len(set(ids.values())) == 3
        second.signal(signal.SIGTERM)
        second.code()
        assert [one["name"] for one in connected.registrations()] == [name, f"{name}-3"]
        stack.enter_context(connected.announced())
        assert {one["name"]: one["id"] for one in connected.registrations()} == ids
        assert first.process.poll() is third.process.poll() is None


def test_after_a_kill_the_next_start_takes_name_and_id_over(connected: Connected) -> None:
    with connected.announced() as killed:
        before = connected.registration()
        killed.signal(signal.SIGKILL)
        killed.code()
    eventually(lambda: connected.processes() == {}, PROMPTLY)
    assert len(connected.files()) == 1, "nobody could remove it"
    with connected.started("--headless"):
        after = eventually(lambda: [one for one in connected.registrations() if one != before])
        assert [(one["name"], one["id"]) for one in after] == [(before["name"], before["id"])]
        assert after[0]["port"] != before["port"]
    assert connected.files() == []


TWENTY = 20


@pytest.fixture
def twenty(connected: Connected) -> Iterator[list[Started]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connected.started("--headless")) for _ in range(TWENTY)]


def test_twenty_at_once_do_not_get_in_each_others_way(connected: Connected, twenty: list[Started]) -> None:
    eventually(lambda: len(connected.files()) == TWENTY, 60, show=lambda: [one.said for one in twenty])
    found = connected.registrations()
    for key in ("name", "id", "port"):
        assert len({one[key] for one in found}) == TWENTY
    for one in found:
        health: Any = httpx2.get(f"http://127.0.0.1:{one['port']}/global/health", trust_env=False).json()
        assert health["healthy"] is True
    assert len({path.stem for path in connected.state.glob("*.log")}) == TWENTY
    for one in twenty:
        one.signal(signal.SIGTERM)
    assert [one.code(20) for one in twenty] == [-signal.SIGTERM] * TWENTY
    connected.gone(seconds=0.5)
    assert list(connected.state.glob("*.json")) == []


def test_a_registration_is_plain_json_for_the_user_only(connected: Connected) -> None:
    folder = connected.home / "x'; touch PWNED; '日"
    folder.mkdir()
    with connected.announced(cwd=folder):
        [path] = connected.files()
        content = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert content.isascii()
    assert json.loads(content)["cwd"] == str(folder)
    assert Path(path.name).stem.isascii()
