"""Which background service counts, and when one is started: a service file that was left behind is none."""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from opencode_mcp import local_services
from opencode_mcp.connect import service
from opencode_mcp.connect.service import ensure_service, find_service
from opencode_mcp.errors import UnreachableError
from opencode_mcp.state import services
from opencode_mcp.testing import FakeOpenCode
from support.services import register_fake, register_service

pytestmark = pytest.mark.anyio

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who listens")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where service files are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URL of a port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
async def fake() -> AsyncGenerator[FakeOpenCode]:
    """An OpenCode 2.x that answers."""
    async with FakeOpenCode(generation=2).serve() as server:
        yield server


def left(path: Path, seconds: float = 86_400) -> Path:
    """Let a service file be that old."""
    written = time.time() - seconds
    os.utime(path, (written, written))
    return path


class Program:
    """A program whose `service start` is noted, and writes a file or nothing."""

    def __init__(self, state: Path, **told: Any) -> None:
        self._noted = state / "noted"
        content = json.dumps(told)
        path = state / "opencode" / "service.json"
        code = (
            f"import os, pathlib, sys\n"
            f"with open({str(self._noted)!r}, 'a') as noted: noted.write(' '.join(sys.argv[1:]) + '\\n')\n"
            f"path = pathlib.Path({str(path)!r})\n"
            f"path.parent.mkdir(exist_ok=True)\n"
            f"if {bool(told)}: path.write_text({content!r}); path.chmod(0o600); os.utime(path)\n"
        )
        self.words = [sys.executable, "-c", code]

    @property
    def started(self) -> int:
        """How often the service was started."""
        return self._noted.read_text().count("service start\n") if self._noted.exists() else 0

    async def ensure(self) -> str:
        return await anyio.to_thread.run_sync(partial(ensure_service, self.words, "2.1.2", dict(os.environ)))


async def found() -> str:
    """The file of the service that counts."""
    return (await anyio.to_thread.run_sync(find_service, "2.1.2")).path.name


def told(fake: FakeOpenCode) -> dict[str, Any]:
    return {"url": fake.url, "version": fake.version, "pid": os.getpid(), "password": fake.password}


@on_linux
def test_a_file_where_nobody_listens_is_left_out_though_its_process_number_is_in_use(
    state: Path, nowhere: str
):
    path = left(register_service(state, url=nowhere))
    kept, [rejection] = local_services()
    assert list(kept) == []
    assert rejection.source == str(path)
    assert f"Nobody listens at {nowhere}: the service was killed" in rejection.reason
    assert "`opencode service start`" in rejection.reason
    with pytest.raises(UnreachableError, match="Nobody listens"):
        find_service("2.1.2")


def test_a_file_that_was_just_written_counts_before_anybody_listens(state: Path, nowhere: str):
    register_service(state, url=nowhere)
    [kept], rejected = local_services()
    assert (kept.url, list(rejected)) == (nowhere, [])


async def test_where_the_tables_tell_nothing_a_service_that_answers_counts(
    state: Path, fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(services, "listening_user", lambda _: None)
    left(register_fake(state, fake))
    [kept], rejected = await anyio.to_thread.run_sync(local_services)
    assert (kept.url, list(rejected)) == (fake.url, [])


@pytest.mark.parametrize("age", ["old", "new"])
async def test_a_file_that_was_left_behind_hides_no_service_that_runs(
    state: Path, nowhere: str, fake: FakeOpenCode, age: str
):
    path = register_service(state, url=nowhere)
    if age == "old":
        left(path)
    register_fake(state, fake, "service-local.json", version="2.0.1")
    assert await found() == "service-local.json"


async def test_one_behind_which_another_process_answers_hides_none_either(state: Path, fake: FakeOpenCode):
    async with FakeOpenCode(generation=2, pid=os.getppid()).serve() as other:
        left(register_fake(state, other))
        register_fake(state, fake, "service-local.json")
        assert await found() == "service-local.json"


async def test_of_two_that_run_the_version_counts_then_the_channel(state: Path, fake: FakeOpenCode):
    async with FakeOpenCode(generation=2, version="2.1.9").serve() as other:
        register_fake(state, other)
        register_fake(state, fake, "service-local.json")
        assert await found() == "service-local.json"
        register_fake(state, fake)
        assert await found() == "service.json"


@pytest.mark.parametrize("age", ["old", "new"])
async def test_a_service_that_was_killed_is_started_again_though_its_process_number_is_in_use(
    state: Path, nowhere: str, fake: FakeOpenCode, age: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "_SETTLE_SECONDS", 0.3)
    path = register_service(state, url=nowhere)
    if age == "old":
        left(path)
    program = Program(state, **told(fake))
    assert (await program.ensure(), program.started) == ("", 1)
    assert (await anyio.to_thread.run_sync(find_service, "2.1.2")).url == fake.url


async def test_a_service_that_was_killed_and_whose_port_somebody_took_is_started_again(
    state: Path, fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "_SETTLE_SECONDS", 0.3)
    async with FakeOpenCode(generation=2, pid=os.getppid()).serve() as other:
        left(register_fake(state, other))
        program = Program(state, **told(fake))
        assert (await program.ensure(), program.started) == ("", 1)


async def test_one_that_is_starting_is_waited_for_and_not_started_twice(state: Path, nowhere: str):
    fake = FakeOpenCode(generation=2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    register_service(state, url=f"http://127.0.0.1:{port}", password=fake.password)
    program, problems = Program(state), list[str]()

    async def ensure() -> None:
        problems.append(await program.ensure())

    async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as group:
        group.start_soon(ensure)
        await anyio.sleep(0.3)
        assert problems == []
        await stack.enter_async_context(fake.serve(port))
        with anyio.fail_after(5):
            while not problems:
                await anyio.sleep(0.01)
    assert (problems, program.started) == ([""], 0)


async def test_one_that_runs_is_left_as_it_is(state: Path, fake: FakeOpenCode):
    left(register_fake(state, fake))
    program = Program(state)
    assert (await program.ensure(), program.started) == ("", 0)


async def test_one_that_is_slow_to_answer_is_not_started_again(state: Path):
    with socket.create_server(("127.0.0.1", 0)) as slow:
        left(register_service(state, url=f"http://127.0.0.1:{slow.getsockname()[1]}"))
        program = Program(state)
        assert (await program.ensure(), program.started) == ("", 0)


async def test_a_start_after_which_nobody_answers_is_told(
    state: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "_SETTLE_SECONDS", 0.1)
    program = Program(state, url=nowhere, version="2.1.2", pid=os.getpid())
    said = await program.ensure()
    assert "has ended well, but: It does not answer at" in said
    assert program.started == 1


def test_many_files_that_were_left_behind_hide_none_that_runs(state: Path, nowhere: str):
    for number in range(40):
        left(register_service(state, f"service-{number:08x}.json", url=nowhere))
    left(register_service(state, url=nowhere), 1_000_000)
    newest = register_service(state, "service-ffffffff.json", url=nowhere)
    kept, rejected = local_services()
    looked_at = [*(str(one.path) for one in kept), *(one.source for one in rejected)]
    assert str(state / "opencode" / "service.json") in looked_at
    assert [one.path for one in kept if one.path == newest] == [newest]
    [rest] = [one for one in rejected if one.source == str(state / "opencode")]
    assert "more than 32 service files" in rest.reason
    assert len(looked_at) == 33


def test_the_usual_channel_comes_first_then_the_newest(state: Path, nowhere: str):
    for age, name in enumerate(("service-b.json", "service.json", "service-a.json", "service-c.json")):
        left(register_service(state, name, url=nowhere), age)
    kept, rejected = local_services()
    names = [one.path.name for one in kept]
    assert names == ["service.json", "service-b.json", "service-a.json", "service-c.json"]
    assert list(rejected) == []
