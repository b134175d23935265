"""Which OpenCode a command starts: asked for once, remembered for as long as it can be trusted."""

import json
import os
import stat
import time
from pathlib import Path

import pytest

from opencode_mcp.connect import generation, running
from opencode_mcp.connect.generation import Versions, generation_of


class Program:
    """A program that says a version, and counts how often it was asked."""

    def __init__(self, directory: Path, name: str = "opencode", body: str = "echo 1.18.33") -> None:
        self.path = directory / name
        self.asked = directory / "asked"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write(body)

    def write(self, body: str) -> None:
        beside = self.path.with_name("beside")
        beside.write_text(f"#!/bin/sh\necho $* >> '{self.asked}'\n{body}\n")
        beside.chmod(0o755)
        os.utime(beside, (499162500, 499162500))  # as npm does
        beside.replace(self.path)

    @property
    def times(self) -> int:
        return len(self.asked.read_text().splitlines()) if self.asked.exists() else 0


def found(state: Path, *program: str | Path) -> str:
    return Versions(state, [str(word) for word in program]).find(dict(os.environ))


@pytest.mark.parametrize(
    ("version", "generation"),
    [
        ("", 1),
        ("1.18.33", 1),
        ("0.9.1", 1),
        ("2.0.0-preview.3", 2),
        ("2.1.2", 2),
        ("3.0", 2),
        ("2", 2),
        ("10.0", 2),
    ],
)
def test_a_version_tells_the_generation(version: str, generation: int) -> None:
    assert generation_of(version) == generation


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("echo 2.1.2", "2.1.2"),
        ("echo opencode v2.1.2", "2.1.2"),
        ("echo; echo A new version is there.; echo ' 2.0.0-next.4+abc '", "2.0.0-next.4+abc"),
        ("echo local", ""),
        ("echo usage: opencode 1 2.0", ""),
        ("echo 2.1.2; exit 1", ""),
        ("echo 2.1.2 >&2", ""),
        ("printf '\\377\\000'", ""),
        ("printf '9%.0s' $(seq 1 5000); echo .1", ""),
        ("yes | head -c 1000000", ""),
        ("kill -9 $$", ""),
    ],
)
def test_what_a_program_says_counts_only_if_it_is_a_version(tmp_path: Path, says: str, version: str) -> None:
    assert found(tmp_path, Program(tmp_path, body=says).path) == version


def test_one_that_does_not_end_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_SECONDS", 0.3)
    program = Program(tmp_path, body=f"sleep 300 & echo $! > '{tmp_path}/pid'; echo 2.1.2; wait")
    began = time.monotonic()
    assert found(tmp_path, program.path) == ""
    assert time.monotonic() - began < 5
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    program = Program(tmp_path, body=f"sleep 300 & echo $! > '{tmp_path}/pid'; echo 2.1.2")
    began = time.monotonic()
    assert found(tmp_path, program.path) == "2.1.2"
    assert time.monotonic() - began < 5
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_it_is_asked_once_until_its_file_is_another(tmp_path: Path) -> None:
    program = Program(tmp_path)
    for _ in range(3):
        assert found(tmp_path, program.path) == "1.18.33"
    assert program.times == 1
    program.write("echo 2.1.2;  ")  # of another content, but of the same time
    for _ in range(2):
        assert found(tmp_path, program.path) == "2.1.2"
    assert program.times == 2
    link = tmp_path / "bin" / "opencode"
    link.parent.mkdir()
    link.symlink_to(program.path)
    assert found(tmp_path, link) == "2.1.2"
    assert program.times == 2
    kept = tmp_path / "versions"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"opencode", "asked", "bin", "versions"}


def test_a_script_is_asked_again_after_a_day_and_a_binary_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, now = Program(tmp_path), time.time()
    found(tmp_path, program.path)
    monkeypatch.setattr("time.time", lambda: now + 25 * 3600)
    found(tmp_path, program.path)
    assert program.times == 2
    monkeypatch.setattr(generation, "_is_script", lambda _: False)
    monkeypatch.setattr("time.time", lambda: now + 1000 * 3600)
    found(tmp_path, program.path)
    assert program.times == 2


@pytest.mark.parametrize("name", ["shims/opencode", "manager", "bin/mise"])
def test_one_behind_which_another_program_stands_is_asked_each_time(tmp_path: Path, name: str) -> None:
    program = Program(tmp_path, name)
    link = tmp_path / "path" / "opencode"
    link.parent.mkdir()
    link.symlink_to(program.path)
    for _ in range(2):
        assert found(tmp_path, link) == "1.18.33"
    assert program.times == 2


def test_a_command_of_several_words_is_asked_each_time_as_a_whole(tmp_path: Path) -> None:
    program = Program(tmp_path)
    for _ in range(2):
        assert found(tmp_path, program.path, "-y", "opencode-ai") == "1.18.33"
    assert program.asked.read_text() == "-y opencode-ai --version\n" * 2


@pytest.mark.parametrize("pinned", ["2", "2.1.2", "1.18.33", "v1.2"])
def test_a_command_that_names_the_version_is_not_asked(tmp_path: Path, pinned: str) -> None:
    program = Program(tmp_path)
    assert found(tmp_path, program.path, "-y", f"opencode-ai@{pinned}") == pinned.removeprefix("v")
    assert program.times == 0
    assert found(tmp_path, program.path, "-y", "opencode-ai@latest") == "1.18.33"
    assert program.times == 1


def test_what_was_remembered_wrongly_can_be_forgotten(tmp_path: Path) -> None:
    program, other = Program(tmp_path), Program(tmp_path / "other")
    for one in (program, other):
        found(tmp_path, one.path)
    Versions(tmp_path, [str(program.path)]).forget()
    for one in (program, other):
        found(tmp_path, one.path)
    assert (program.times, other.times) == (2, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"PATH": 1}',
        b'{"PATH": ["STAMP", "2.1.2"]}',
        b'{"PATH": ["STAMP", "\\u001b[31m", 1]}',
        b'{"PATH": [1, 2, 3]}',
        b"\xff",
        b"[" * 50_000,
    ],
)
def test_a_spoiled_memory_is_none(tmp_path: Path, content: bytes) -> None:
    program = Program(tmp_path)
    found(tmp_path, program.path)
    kept = tmp_path / "versions"
    [stamp, _, _] = json.loads(kept.read_bytes())[str(program.path)]
    kept.write_bytes(content.replace(b"PATH", str(program.path).encode()).replace(b"STAMP", stamp.encode()))
    assert found(tmp_path, program.path) == "1.18.33"
    assert program.times == 2


def test_it_does_without_a_memory_that_cannot_be_written(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (tmp_path / "versions").mkdir()
    for _ in range(2):
        assert found(tmp_path, program.path) == "1.18.33"


def test_no_more_than_some_programs_are_remembered(tmp_path: Path) -> None:
    for number in range(40):
        found(tmp_path, Program(tmp_path / str(number)).path)
    assert len(json.loads((tmp_path / "versions").read_text())) == 32


def test_a_program_that_cannot_be_run_says_nothing(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.path.write_text("#!/nonexistent\n")
    assert found(tmp_path, program.path) == ""
    ran = running.run_briefly([str(tmp_path / "none")], {}, seconds=1)
    assert (ran.code, ran.err) == (None, "No such file or directory")
