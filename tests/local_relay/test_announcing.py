"""The instance's side: a file that is there as long as the instance is announced, and not longer."""

import json
import logging
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from local_relay.relay_parts import ORIGINAL, put, register, relay, until
from opencode_mcp import Announcer, Endpoint, TransportError
from opencode_mcp_local_relay import LocalRelay, LocalRelaySettings
from opencode_mcp_local_relay.announcement import Announcement
from opencode_mcp_local_relay.directory import Directory

pytestmark = pytest.mark.anyio

INSTANCE = Endpoint(
    id="server-1",
    name="laptop-project",
    url="http://127.0.0.1:4096",
    hostname="laptop",
    directory="/home/me/project",
    labels={"version": "1.18.33"},
)


def quick(directory: Path, *, heartbeat: float = 30, check: float = 0.01) -> LocalRelay:
    settings = LocalRelaySettings(registry_dir=directory)
    return LocalRelay(settings, heartbeat_seconds=heartbeat, check_seconds=check)


@asynccontextmanager
async def announced(transport: LocalRelay, endpoint: Endpoint = INSTANCE) -> AsyncGenerator[None, None]:
    async with anyio.create_task_group() as group:
        with anyio.fail_after(5):
            await group.start(lambda *, task_status: transport.announce(endpoint, task_status=task_status))
        yield
        group.cancel_scope.cancel()


async def refused(transport: LocalRelay, endpoint: Endpoint = INSTANCE) -> str:
    with anyio.fail_after(5), pytest.raises(TransportError) as error:
        await transport.announce(endpoint, task_status=anyio.TASK_STATUS_IGNORED)
    return str(error.value)


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


async def test_what_is_announced_is_discovered_and_withdrawn_on_the_way_out(registry: Path) -> None:
    transport = relay(registry)
    assert isinstance(transport, Announcer)
    async with announced(transport):
        (found,) = await relay(registry).discover()
        assert (found.id, found.name, found.url) == ("server-1", "laptop-project", "http://127.0.0.1:4096")
        assert (found.hostname, found.directory) == ("laptop", "/home/me/project")
    assert list(registry.iterdir()) == []


async def test_the_file_has_the_keys_of_the_original_tool_and_ours(registry: Path) -> None:
    async with announced(relay(registry)):
        written = content(registry / "laptop-project.json")
    assert {key: type(written[key]) for key in ORIGINAL} == {key: type(ORIGINAL[key]) for key in ORIGINAL}
    assert written["port"] == written["localPort"] == 4096
    assert written["connectedAt"].endswith("Z")
    assert set(written) - set(ORIGINAL) == {"id", "version", "heartbeatAt", "transport"}
    assert (written["id"], written["version"]) == ("server-1", "1.18.33")


async def test_nobody_else_can_read_the_file_or_enter_what_was_made_for_it(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "registry"
    before = os.umask(0)
    try:
        async with announced(relay(directory)):
            modes = [
                path.stat().st_mode & 0o777 for path in (directory.parent, directory, *directory.iterdir())
            ]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o700, 0o600]


async def test_the_file_is_renewed_at_each_heartbeat_in_one_step(registry: Path) -> None:
    path = registry / "laptop-project.json"
    async with announced(quick(registry, heartbeat=0.01)):
        first, inode = content(path), path.stat().st_ino
        await until(lambda: content(path)["heartbeatAt"] != first["heartbeatAt"])  # never missing, never half
        assert path.stat().st_ino != inode
        assert content(path)["connectedAt"] == first["connectedAt"]
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(registry.iterdir()) == []


async def test_between_heartbeats_the_file_is_left_alone(registry: Path) -> None:
    path = registry / "laptop-project.json"
    async with announced(quick(registry)):
        before = path.stat()
        path.unlink()
        await until(path.exists)
        again = path.stat()
        put(registry, "witness.json", b"")
        for _ in range(20):
            await anyio.sleep(0.01)
        assert path.stat().st_mtime_ns == again.st_mtime_ns != before.st_mtime_ns


async def test_a_file_or_directory_that_somebody_removed_is_made_again(registry: Path) -> None:
    path = registry / "laptop-project.json"
    async with announced(quick(registry)):
        path.unlink()
        await until(path.exists)
        path.unlink()
        registry.rmdir()
        await until(path.exists)
        assert registry.stat().st_mode & 0o777 == 0o700
    assert not path.exists()


@pytest.mark.parametrize(
    "taken", [b"junk", b"", json.dumps(ORIGINAL).encode(), b'{"port": 1, "id": "server-2"}']
)
async def test_what_is_there_already_is_never_overwritten(registry: Path, taken: bytes) -> None:
    other = put(registry, "laptop-project.json", taken)
    async with announced(relay(registry)):
        assert content(registry / "laptop-project-2.json")["id"] == "server-1"
    assert other.read_bytes() == taken
    assert list(registry.iterdir()) == [other]


async def test_two_instances_of_one_name_get_two_files(registry: Path) -> None:
    twin = INSTANCE.model_copy(update={"id": "server-2", "url": "http://127.0.0.1:4097"})
    async with announced(relay(registry)), announced(relay(registry), twin):
        assert [one.id for one in await relay(registry).discover()] == ["server-2", "server-1"]


async def test_a_second_instance_of_one_name_has_a_name_of_its_own(registry: Path) -> None:
    twin = INSTANCE.model_copy(update={"id": "server-2", "url": "http://127.0.0.1:4097"})
    async with announced(quick(registry)), announced(quick(registry, heartbeat=0.01), twin):
        path = registry / "laptop-project-2.json"
        first = content(path)
        await until(lambda: content(path)["heartbeatAt"] != first["heartbeatAt"])
        assert content(path)["name"] == first["name"] == "laptop-project-2"
        assert content(registry / "laptop-project.json")["name"] == "laptop-project"


async def test_woken_up_it_writes_at_once(registry: Path) -> None:
    transport = quick(registry, check=30)
    async with announced(transport):
        for _ in range(2):
            (registry / "laptop-project.json").unlink()
            transport.woke()
            await until((registry / "laptop-project.json").exists)


async def test_the_file_of_an_earlier_run_of_the_same_instance_is_taken_over(registry: Path) -> None:
    register(registry, "laptop-project", id="server-1", port=1)
    async with announced(relay(registry)):
        assert [path.name for path in registry.iterdir()] == ["laptop-project.json"]
        assert content(registry / "laptop-project.json")["port"] == 4096
    assert list(registry.iterdir()) == []


async def test_a_file_that_another_instance_took_over_is_left_to_it(registry: Path) -> None:
    async with announced(quick(registry)):
        register(registry, "laptop-project", id="thief")
        await until((registry / "laptop-project-2.json").exists)
    assert [path.name for path in registry.iterdir()] == ["laptop-project.json"]
    assert content(registry / "laptop-project.json")["id"] == "thief"


async def test_on_the_way_out_too_a_file_of_another_instance_is_left_alone(registry: Path) -> None:
    async with announced(relay(registry)):
        register(registry, "laptop-project", id="thief")
    assert content(registry / "laptop-project.json")["id"] == "thief"


async def test_a_name_of_any_kind_makes_a_plain_file_name(registry: Path) -> None:
    for name, plain in (
        ("../../etc/x", "etc-x"),
        (".hidden", "hidden"),
        ("日本", "instance"),
        ("a b/ü", "a-b"),
    ):
        async with announced(relay(registry), INSTANCE.model_copy(update={"name": name})):
            assert [path.name for path in registry.iterdir()] == [f"{plain}.json"]
            assert [one.name for one in await relay(registry).discover()] == [name]


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:4096", "https://127.0.0.1:4096", "http://127.0.0.1:4096/base"]
)
async def test_an_instance_that_a_file_cannot_describe_is_refused(registry: Path, url: str) -> None:
    assert url in await refused(relay(registry), INSTANCE.model_copy(update={"url": url}))


async def test_nothing_is_written_where_others_could_change_it(registry: Path) -> None:
    registry.chmod(0o777)
    assert "everybody" in await refused(relay(registry))
    assert list(registry.iterdir()) == []


async def test_a_directory_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "not a directory" in await refused(relay(tmp_path / "file"))
    assert "cannot be created" in await refused(relay(tmp_path / "file" / "below"))


async def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be written: No space left on device" in await refused(relay(registry))
    assert list(registry.iterdir()) == []


async def test_a_failing_heartbeat_is_told_once_and_tried_again(
    registry: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = registry / "laptop-project.json"
    tries: list[Announcement] = []
    write = Announcement.write

    def counted(self: Announcement) -> None:
        tries.append(self)
        write(self)

    monkeypatch.setattr(Announcement, "write", counted)
    async with announced(quick(registry, heartbeat=0.01)):
        registry.chmod(0o777)
        await until(lambda: caplog.records)
        failed = len(tries)
        await until(lambda: len(tries) > failed + 3)
        before = content(path)["heartbeatAt"]
        registry.chmod(0o700)
        await until(lambda: content(path)["heartbeatAt"] != before)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not path.exists()


async def test_file_systems_without_hard_links_work_too(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    other = register(registry, "laptop-project", id="server-2")
    async with announced(relay(registry)):
        assert content(registry / "laptop-project-2.json")["id"] == "server-1"
    assert list(registry.iterdir()) == [other]


async def test_announced_again_it_keeps_its_name_though_a_better_one_is_free_by_then(registry: Path) -> None:
    other = register(registry, "laptop-project", id="other")
    transport = relay(registry)
    async with announced(transport):
        other.unlink()
    async with announced(transport):
        assert [path.name for path in registry.iterdir()] == ["laptop-project-2.json"]


async def test_of_what_a_killed_process_left_the_name_is_taken_over_and_nothing_stays_beside(
    registry: Path,
) -> None:
    for stem in ("laptop-project-2", "laptop-project-3", "earlier-name"):
        register(registry, stem, id="server-1", port=1)
    others = [register(registry, "server-1", id=None, port=2), register(registry, "zz", id="other", port=3)]
    async with announced(relay(registry)):
        path = registry / "laptop-project-2.json"
        assert sorted(registry.iterdir()) == [path, *others]
        assert content(path)["port"] == 4096
    assert sorted(registry.iterdir()) == others


async def test_a_file_that_cannot_be_removed_on_the_way_out_is_an_error_though_cancelled(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    async def end_it() -> None:
        async with announced(relay(registry)):
            monkeypatch.setattr(Directory, "remove", busy)

    with pytest.RaisesGroup(
        pytest.RaisesExc(TransportError, match=r"laptop-project\.json could not be removed: Device")
    ):
        await end_it()


async def test_a_file_system_that_hangs_on_the_way_out_is_an_error_in_time(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, revived, written = threading.Event(), threading.Event(), threading.Event()
    write = Announcement._write
    began = 0.0

    def hang(self: Announcement) -> None:
        hangs.set()
        revived.wait(10)
        write(self)
        written.set()

    async def end_it() -> None:
        nonlocal began
        async with announced(quick(registry)):
            monkeypatch.setattr(Announcement, "_write", hang)
            (registry / "laptop-project.json").unlink()
            await until(hangs.is_set)
            began = anyio.current_time()

    with pytest.RaisesGroup(pytest.RaisesExc(TransportError, match="has not answered")):
        await end_it()
    assert anyio.current_time() - began < 2
    revived.set()
    await until(written.is_set)
    await until(lambda: list(registry.iterdir()) == [])


def test_a_write_that_comes_after_the_withdrawal_leaves_nothing(registry: Path) -> None:
    announcement = Announcement(registry, INSTANCE, trust_any_owner=False)
    announcement.write()
    announcement.withdraw()
    announcement.write()
    assert list(registry.iterdir()) == []
