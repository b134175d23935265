"""A file system that hangs, others that write at the same moment, and whom a password is for."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from local_relay.relay_parts import ORIGINAL, Published, ids_of, put, register, relay
from opencode_mcp import Endpoint, TransportError
from opencode_mcp_local_relay import registry as registries
from opencode_mcp_local_relay import watching as watches
from opencode_mcp_local_relay.announcement import Announcement
from opencode_mcp_local_relay.directory import Directory
from opencode_mcp_local_relay.registry import Look, Registry

pytestmark = pytest.mark.anyio


# A file system that does not answer.


class Dead:
    """A call that hangs until the test is over, as in a dead network file system."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self._revived = threading.Event()

    def __call__(self, *_: object, **__: object) -> None:
        self.hangs.set()
        self._revived.wait(20)

    def revive(self) -> None:
        self._revived.set()


@pytest.fixture
def dead() -> Iterator[Dead]:
    dead = Dead()
    yield dead
    dead.revive()


async def hanging(dead: Dead) -> None:
    """Wait until somebody hangs."""
    with anyio.fail_after(5):
        await anyio.to_thread.run_sync(dead.hangs.wait, 5)
    assert dead.hangs.is_set()


@pytest.mark.parametrize("what", ["look", "identity"])
async def test_a_look_that_hangs_does_not_hold_up_who_ends_the_watch(
    registry: Path, monkeypatch: pytest.MonkeyPatch, dead: Dead, what: str
) -> None:
    if what == "look":
        monkeypatch.setattr(Registry, "_look", dead)
    else:
        monkeypatch.setattr(watches, "_identity", dead)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay(registry).watch, Published())
            await hanging(dead)
            tasks.cancel_scope.cancel()


async def test_a_check_that_hangs_does_not_hold_up_who_ends_the_announcement(
    registry: Path, monkeypatch: pytest.MonkeyPatch, dead: Dead
) -> None:
    monkeypatch.setattr(Announcement, "is_there", dead)
    transport = relay(registry)
    transport._check_seconds = 0.001
    endpoint = Endpoint(id="1", name="a", url="http://127.0.0.1:4096")
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: transport.announce(endpoint, task_status=task_status))
            await hanging(dead)
            tasks.cancel_scope.cancel()
    assert list(registry.iterdir()) == []


async def test_while_an_earlier_look_hangs_another_is_an_error_and_touches_nothing(
    registry: Path, monkeypatch: pytest.MonkeyPatch, dead: Dead
) -> None:
    monkeypatch.setattr(registries, "_PATIENCE_SECONDS", 0.01)
    register(registry, "a")
    transport = relay(registry, prune_after_ms=1)
    (endpoint,) = await transport.discover()
    really_look = Registry._look

    def look(self: Registry, directory: Directory) -> Look:
        dead()
        return really_look(self, directory)

    monkeypatch.setattr(Registry, "_look", look)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transport.discover)
            await hanging(dead)
            tasks.cancel_scope.cancel()
        with pytest.raises(TransportError, match="does not answer: an earlier look at it still hangs"):
            await transport.discover()
        await transport.forget(endpoint)
        assert (registry / "a.json").exists()
        dead.revive()
        monkeypatch.setattr(registries, "_PATIENCE_SECONDS", 5)
        assert ids_of(await transport.discover()) == ["a"]


# Whom a password is for.


async def vouched(directory: Path) -> dict[str, bool]:
    found = await relay(directory, trust_any_owner=True).discover()
    return {one.id: one.vouched for one in found}


async def test_ours_is_vouched_for(registry: Path) -> None:
    register(registry, "ours")
    assert await vouched(registry) == {"ours": True}
    (found,) = await relay(registry).discover()
    assert found.vouched


async def test_even_if_any_owner_is_trusted_what_belongs_to_others_gets_no_password(
    registry: Path, disown: Callable[[Path], None]
) -> None:
    register(registry, "ours")
    disown(register(registry, "theirs", port=4097))
    register(registry, "open", port=4098).chmod(0o606)
    disown(put(registry, "elsewhere", b'{"port": 4099}'))
    (registry / "link.json").symlink_to("elsewhere")
    assert await vouched(registry) == {"ours": True, "theirs": False, "open": False, "link": False}


async def test_in_another_users_directory_nothing_gets_a_password(
    registry: Path, disown: Callable[[Path], None]
) -> None:
    register(registry, "ours")
    disown(registry)
    assert await vouched(registry) == {"ours": False}


async def test_through_another_users_link_nothing_gets_a_password(
    registry: Path, tmp_path: Path, disown: Callable[[Path], None]
) -> None:
    register(registry, "ours")
    link = tmp_path / "link"
    link.symlink_to(registry)
    assert await vouched(link) == {"ours": True}
    disown(link)
    assert await vouched(link) == {"ours": False}


async def test_a_directory_that_is_opened_to_everybody_loses_the_password_until_that_is_mended(
    registry: Path,
) -> None:
    register(registry, "ours")
    transport = relay(registry, trust_any_owner=True)
    seen: list[bool] = []
    for mode in (0o700, 0o777, 0o1777, 0o700):
        registry.chmod(mode)
        (found,) = await transport.discover()
        seen.append(found.vouched)
    assert seen == [True, False, False, True]


async def test_a_file_that_is_opened_to_everybody_loses_the_password_until_that_is_mended(
    registry: Path,
) -> None:
    path = register(registry, "ours")
    transport = relay(registry, trust_any_owner=True)
    seen: list[bool] = []
    for mode in (0o600, 0o666, 0o600):
        path.chmod(mode)
        (found,) = await transport.discover()
        seen.append(found.vouched)
    assert seen == [True, False, True]


# Removing a file while others write.


def known(registry: Path) -> tuple[Registry, Endpoint]:
    """Look at the one file in a registry."""
    found = Registry(registry, trust_any_owner=False)
    (endpoint,) = found.look().endpoints
    return found, endpoint


def meanwhile(
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Do something right before and after the file `a.json` is taken aside."""
    replace = Directory.replace

    def taken_aside(self: Directory, source: str, target: str) -> None:
        if source != "a.json":
            replace(self, source, target)
            return
        before()
        replace(self, source, target)
        after()

    monkeypatch.setattr(Directory, "replace", taken_aside)


def ports(registry: Path) -> dict[str, int]:
    return {path.name: json.loads(path.read_text())["port"] for path in registry.iterdir()}


def test_a_registration_that_arrives_right_before_the_removal_stays(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "a")
    found, endpoint = known(registry)
    meanwhile(monkeypatch, before=lambda: register(registry, "a", port=5000))
    found.forget(endpoint, unchanged_seconds=0)
    assert ports(registry) == {"a.json": 5000}
    assert [one.url for one in found.look().endpoints] == ["http://127.0.0.1:5000"]


def test_one_that_arrives_right_after_it_stays_as_well_and_nothing_is_overwritten(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "a")
    found, endpoint = known(registry)
    meanwhile(
        monkeypatch,
        before=lambda: register(registry, "a", port=5000),
        after=lambda: register(registry, "a", port=5001),
    )
    found.forget(endpoint, unchanged_seconds=0)
    assert ports(registry) == {"a.json": 5001, "a-2.json": 5000}


def test_of_an_old_and_a_new_one_only_the_old_one_goes(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "a")
    found, endpoint = known(registry)
    meanwhile(monkeypatch, after=lambda: register(registry, "a", port=5000))
    found.forget(endpoint, unchanged_seconds=0)
    assert ports(registry) == {"a.json": 5000}


def test_content_that_changes_in_place_right_before_the_removal_stays(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = register(registry, "a")
    found, endpoint = known(registry)

    def rewrite() -> None:
        status = path.stat()
        path.write_text(path.read_text().replace("41001", "41002"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    meanwhile(monkeypatch, before=rewrite)
    found.forget(endpoint, unchanged_seconds=0)
    assert ports(registry) == {"a.json": 41002}


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_link_that_is_put_back_is_still_a_link(
    registry: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    target = put(registry, "target", json.dumps(ORIGINAL).encode())
    link = registry / "a.json"
    link.symlink_to("target")
    found, endpoint = known(registry)
    if not hard_links:

        def unsupported(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", unsupported)
    meanwhile(monkeypatch, before=lambda: target.write_text(json.dumps({**ORIGINAL, "port": 5000})))
    found.forget(endpoint, unchanged_seconds=0)
    assert link.is_symlink()
    assert ports(registry) == {"a.json": 5000, "target": 5000}


def test_a_file_that_can_be_renamed_but_not_removed_is_put_back(
    registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register(registry, "a")
    found, endpoint = known(registry)
    remove = Directory.remove

    def refuse_once(*_: object) -> None:
        monkeypatch.setattr(Directory, "remove", remove)
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Directory, "remove", refuse_once)
    found.forget(endpoint, unchanged_seconds=0)
    assert ports(registry) == {"a.json": 41001}
    assert "cannot be removed, though its instance is gone: Device or resource busy" in caplog.text


# What a killed process left behind.


INSTANCE = Endpoint(id="1", name="b", url="http://127.0.0.1:4096")
LEFT = ".0123456789abcdef.tmp"


def names_after_announcing(registry: Path) -> list[str]:
    Announcement(registry, INSTANCE, trust_any_owner=False).write()
    return sorted(path.name for path in registry.iterdir())


def test_temporary_files_that_a_killed_process_left_are_swept_after_an_hour(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [".0123.tmp", ".0123456789abcdeg.tmp", ".x0123456789abcdef.tmp", "0123456789abcdef.tmp", "a.json"]
    for name in (LEFT, *kept):
        put(registry, name, b"{", age=100_000)  # the time of the last rename counts as well
    assert names_after_announcing(registry) == sorted((LEFT, *kept, "b.json"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3500)
    assert LEFT in names_after_announcing(registry)
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert names_after_announcing(registry) == sorted((*kept, "b.json"))


def test_another_users_temporary_files_are_left(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry, LEFT, b"{")
    with Directory(registry, trust_any_owner=False) as directory:
        later = time.time() + 3700
        assert list(directory.abandoned(since=later)) == [LEFT]
        monkeypatch.setattr("opencode_mcp_local_relay.directory.current_uid", lambda: os.geteuid() + 1)
        assert list(directory.abandoned(since=later)) == []


def test_what_cannot_be_swept_does_not_hinder_the_announcement(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Directory.remove

    def refuse(self: Directory, name: str) -> None:
        if name == LEFT:
            raise PermissionError(13, "Permission denied")
        remove(self, name)

    monkeypatch.setattr(Directory, "remove", refuse)
    other, folder = LEFT.replace("0", "e"), LEFT.replace("0", "f")
    for name in (LEFT, other):
        put(registry, name, b"{")
    (registry / folder).mkdir()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert names_after_announcing(registry) == [LEFT, folder, "b.json"]
