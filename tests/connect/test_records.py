"""Records: who runs under which name, and what a killed process leaves."""

import dataclasses
import json
import multiprocessing
import os
import stat
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from opencode_mcp import Endpoint
from opencode_mcp.connect.slots import Slot, claim, left_behind
from opencode_mcp.errors import StartError
from opencode_mcp.state.records import Record, running


def record_of(slot: Slot, **changes: Any) -> Record:
    endpoint = Endpoint(id=slot.id, name=slot.name, url="http://127.0.0.1:4096", directory="/srv/project")
    made = Record.of(
        endpoint,
        url=endpoint.url,
        log=slot.log,
        places={"local-relay": "/tmp/registry"},
        transports={"local-relay": "announced"},
        owner=4711,
    )
    return dataclasses.replace(made, **changes)


def leave_behind(directory: Path, name: str, **changes: Any) -> Record:
    """Do as a process does that is killed: its lock goes, its record stays."""
    slot = Slot(directory, name)
    record = record_of(slot, **changes)
    slot.write(record)
    slot.keep = slot.written
    slot.release()
    return record


def test_what_was_left_behind_stays_on_record_until_it_is_dealt_with(tmp_path: Path) -> None:
    old = leave_behind(tmp_path, "one", places={"local-relay": "relay:far:away"})
    with Slot(tmp_path, "one") as slot:
        slot.write(record_of(slot, pid=1))
    assert [record for _, record in left_behind(tmp_path)] == [old]
    with Slot(tmp_path, "one") as slot:
        slot.keep = None
    assert list(left_behind(tmp_path)) == []


def test_a_name_that_is_held_gets_a_number_and_a_free_one_is_used_again(tmp_path: Path) -> None:
    first, second, third = (claim(tmp_path, "laptop-shop") for _ in range(3))
    assert [one.name for one in (first, second, third)] == ["laptop-shop", "laptop-shop-2", "laptop-shop-3"]
    assert len({one.id for one in (first, second, third)}) == 3
    second.release()
    with claim(tmp_path, "laptop-shop") as again:
        assert (again.name, again.id) == ("laptop-shop-2", second.id)
    first.release()
    third.release()


def test_an_id_goes_with_its_name_for_ever(tmp_path: Path) -> None:
    with claim(tmp_path, "one") as slot:
        known = slot.id
    with claim(tmp_path, "one") as slot, claim(tmp_path, "two") as other:
        assert slot.id == known != other.id


@pytest.mark.parametrize("content", ["", "short", "x" * 64, "../../../../../../../../etc/passwd", "\udcff"])
def test_a_damaged_id_is_made_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "one.lock"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with claim(tmp_path, "one") as slot:
        assert len(slot.id) == 32
        assert slot.id.isalnum()
        assert path.read_text() == slot.id


def test_a_record_is_there_while_its_process_runs_and_for_the_user_only(tmp_path: Path) -> None:
    with claim(tmp_path, "one") as slot:
        record = record_of(slot)
        slot.write(record)
        assert running(tmp_path) == [record]
        assert list(left_behind(tmp_path)) == []
        assert stat.S_IMODE((tmp_path / "one.json").stat().st_mode) == 0o600
    assert running(tmp_path) == []
    assert list(tmp_path.glob("*.json")) == []


def test_what_a_killed_process_left_is_found_by_who_looks_and_by_who_takes_the_name(tmp_path: Path) -> None:
    record = leave_behind(tmp_path, "one")
    assert running(tmp_path) == []
    [(slot, left)] = list(left_behind(tmp_path))
    assert (slot.name, left) == ("one", record)
    assert (tmp_path / "one.json").exists(), "nobody has cleaned up"
    with claim(tmp_path, "one") as again:
        assert (again.left, again.id) == (record, record.id)


def test_once_all_is_cleaned_up_the_record_goes(tmp_path: Path) -> None:
    leave_behind(tmp_path, "one")
    for slot, _ in left_behind(tmp_path):
        slot.keep = None
    assert list(left_behind(tmp_path)) == []


def test_the_lock_decides_who_is_there_even_if_a_process_has_that_number_again(tmp_path: Path) -> None:
    leave_behind(tmp_path, "one", pid=os.getpid())
    assert running(tmp_path) == []


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 2**100])
def test_a_number_that_no_process_has_is_left_behind(tmp_path: Path, pid: int) -> None:
    record = leave_behind(tmp_path, "one", pid=pid)
    assert running(tmp_path) == []
    assert [left for _, left in left_behind(tmp_path)] == [record]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"id": "x"}',
        b"[" * 100_000,
        json.dumps({"id": "x", "name": "x", "pid": "1", "url": "", "directory": ""}).encode(),
    ],
    ids=range(9),
)
def test_a_damaged_record_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one.json").write_bytes(content)
    assert running(tmp_path) == []
    assert list(left_behind(tmp_path)) == []
    with claim(tmp_path, "one") as slot:
        assert (slot.name, slot.left) == ("one", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pid", True),
        ("pid", "1"),
        ("transports", []),
        ("places", ""),
        ("machine", None),
        ("name", None),
        ("log", 3),
    ],
)
def test_a_record_with_a_field_of_another_kind_is_refused(tmp_path: Path, field: str, value: object) -> None:
    with claim(tmp_path, "one") as slot:
        content = dataclasses.asdict(record_of(slot))
    assert Record.parse(json.dumps(content)).name == "one"
    with pytest.raises(ValueError, match=field):
        Record.parse(json.dumps({**content, field: value}))


def test_a_record_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    with claim(tmp_path, "one") as slot:
        slot.write(record_of(slot))
        with path.open() as reader:
            slot.write(record_of(slot, url="http://127.0.0.1:5000"))
            assert Record.parse(reader.read()).url == "http://127.0.0.1:4096"
        assert Record.parse(path.read_text()).url == "http://127.0.0.1:5000"
        assert sorted(one.name for one in tmp_path.iterdir()) == ["one.json", "one.lock"]


def test_a_directory_that_is_none_is_refused_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartError, match=f"{file} cannot be written.*XDG_STATE_HOME"):
        claim(file, "one")


def test_processes_that_want_a_name_at_once_get_one_each(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, leave = context.Barrier(4), context.Barrier(4)
    queue = context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, start, leave, queue)) for _ in range(4)]
    for racer in racers:
        racer.start()
    try:
        rounds = [queue.get(timeout=30) for _ in range(4)]
    finally:
        for racer in racers:
            racer.join(30)
    assert [racer.exitcode for racer in racers] == [0] * 4
    for taken in zip(*rounds, strict=True):
        assert sorted(name for name, _ in taken) == ["one", "one-2", "one-3", "one-4"]
    assert len(dict(taken for one in rounds for taken in one)) == 4
    assert len({taken for one in rounds for taken in one}) == 4, "each name keeps its id"


def _race(directory: Path, start: Barrier, leave: Barrier, queue: Any) -> None:
    taken: list[tuple[str, str]] = []
    for _ in range(20):
        start.wait(20)
        slot = claim(directory, "one")
        taken.append((slot.name, slot.id))
        leave.wait(20)
        slot.release()
    queue.put(taken)
