"""The set is published anew, and soon, whenever it changes."""

import json
import logging
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from local_relay.relay_parts import ORIGINAL, Published, put, register, relay, until, watching
from opencode_mcp import TransportError
from opencode_mcp_local_relay import file as files
from opencode_mcp_local_relay import watching as watches
from opencode_mcp_local_relay.registry import Look, Registry

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # file systems are waited for

SOON = 1.0
"""Seconds in which a change must be published."""


async def test_the_set_is_published_at_once_and_after_each_change(registry: Path) -> None:
    register(registry, "a", port=4096)
    async with watching(relay(registry)) as published:
        await published.until_ids("a")
        path = register(registry, "b", port=4097)
        await published.until_ids("a", "b", seconds=SOON)
        register(registry, "b", port=4098)  # replaced
        await published.until(lambda found: found[-1].url.endswith(":4098"), SOON)
        path.write_text(path.read_text().replace("4098", "4099"))  # in place
        await published.until(lambda found: found[-1].url.endswith(":4099"), SOON)
        path.rename(registry / "c.json")
        await published.until_ids("a", "c", seconds=SOON)
        (registry / "a.json").unlink()
        await published.until_ids("c", seconds=SOON)
        assert len(published.sets) == 6


async def test_an_empty_set_is_published_too(tmp_path: Path, registry: Path) -> None:
    for directory in (registry, tmp_path / "missing"):
        async with watching(relay(directory)) as published:
            await published.until_ids()


async def test_what_changes_no_endpoint_publishes_nothing(registry: Path) -> None:
    register(registry, "a", heartbeatAt="1")
    transport = relay(registry)
    async with watching(transport) as published:
        await published.until_ids("a")
        register(registry, "a", heartbeatAt="2")
        put(registry, "bad.json", b"junk")
        await until(transport.rejected)
        register(registry, "b", port=4097)
        await published.until_ids("a", "b")
        assert len(published.sets) == 2


async def test_a_missing_directory_is_found_when_it_appears_and_again_when_it_is_replaced(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "parent" / "registry"
    async with watching(relay(directory)) as published:
        await published.until_ids()
        directory.mkdir(parents=True, mode=0o700)
        register(directory, "a")
        await published.until_ids("a", seconds=SOON)
        shutil.rmtree(directory.parent)
        await published.until_ids(seconds=SOON)
        directory.mkdir(parents=True, mode=0o700)
        register(directory, "b")
        await published.until_ids("b", seconds=SOON)
        other = tmp_path / "other"
        other.mkdir(mode=0o700)
        register(other, "c")
        directory.rename(tmp_path / "away")
        other.rename(directory)
        await published.until_ids("c", seconds=SOON)
        register(directory, "d", port=4097)
        await published.until_ids("c", "d", seconds=SOON)


async def test_a_rescan_finds_what_no_event_told(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr("opencode_mcp_local_relay.watching.DirectoryWatch.run", deaf)
    transport = relay(registry)
    transport.rescan_seconds = 0.05
    async with watching(transport) as published:
        await published.until_ids()
        register(registry, "a")
        await published.until_ids("a")


async def test_a_file_system_without_events_is_looked_at_instead(
    registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Network file systems accept a watch and never report what other machines do."""

    async def silent(*_: object, stop_event: anyio.Event, **__: object) -> AsyncIterator[object]:
        await stop_event.wait()
        return
        yield

    monkeypatch.setattr("watchfiles.awatch", silent)
    async with watching(relay(registry)) as published:
        await published.until_ids()
        path = register(registry, "a", port=4096)
        await published.until_ids("a", seconds=SOON)
        await until(lambda: register(registry, "b", port=4097) and "no events" in caplog.text)
        await published.until_ids("a", "b", seconds=SOON)
        # What leaves the directory's own time as it is only reading the files can tell.
        path.write_text(path.read_text().replace("4096", "4098"))
        await published.until(lambda found: found[0].url.endswith(":4098"), SOON)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_when_no_watch_can_be_had_the_directory_is_looked_at_instead(
    registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")  # the limit of inotify watches

    monkeypatch.setattr("watchfiles.awatch", exhausted)
    async with watching(relay(registry)) as published:
        await published.until_ids()
        await until(lambda: "no events" in caplog.text)
        path = register(registry, "a", port=4096)
        await published.until_ids("a", seconds=SOON)
        path.write_text(path.read_text().replace("4096", "4098"))
        await published.until(lambda found: found[0].url.endswith(":4098"), SOON)
    assert len(caplog.records) == 1


async def test_events_that_come_a_little_late_are_events(
    registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.transport._BREATH_SECONDS", 0.01)
    monkeypatch.setattr("opencode_mcp_local_relay.watching._LOOK_SECONDS", 0.2)
    late, events = anyio.create_memory_object_stream[None](10)

    async def awatch(*_: object, **__: object) -> AsyncIterator[object]:
        async for event in events:
            yield event

    looked: list[Path] = []
    identity = watches._identity

    def counted(path: Path) -> tuple[int, int, int] | None:
        looked.append(path)
        return identity(path)

    monkeypatch.setattr("watchfiles.awatch", awatch)
    monkeypatch.setattr(watches, "_identity", counted)
    with late, events:
        async with watching(relay(registry)) as published:
            await until(lambda: len(looked) >= 2)
            register(registry, "a")
            await published.until_ids("a")  # by a look, so that there is doubt
            late.send_nowait(None)
            looks = len(looked)
            await until(lambda: len(looked) >= looks + 3)
    assert caplog.records == []


async def test_a_quiet_directory_is_not_looked_at_all_the_time(
    registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[Registry] = []
    look = Registry.look

    def counted(self: Registry) -> Look:
        looks.append(self)
        return look(self)

    monkeypatch.setattr(Registry, "look", counted)
    async with watching(relay(registry)) as published:
        register(registry, "a")
        await published.until_ids("a")
        before = len(looks)
        await anyio.sleep(1.5)
        assert len(looks) <= before + 3  # one of them looks for what came before the events began
    assert caplog.records == []


async def test_watching_ends_promptly_when_cancelled(registry: Path) -> None:
    async with watching(relay(registry)) as published:
        await published.until_ids()
        register(registry, "a")
        await published.until_ids("a")  # by now the events flow
        began = time.monotonic()
    assert time.monotonic() - began < 0.3


async def test_a_directory_that_becomes_unsafe_ends_the_watch_and_a_mended_one_can_be_watched_again(
    registry: Path,
) -> None:
    transport = relay(registry)
    published = Published()

    async def spoil() -> None:
        await published.until_ids()
        registry.chmod(0o777)
        register(registry, "a")

    async with anyio.create_task_group() as group:
        group.start_soon(spoil)
        with anyio.fail_after(5), pytest.raises(TransportError, match="everybody"):
            await transport.watch(published)
    assert [list(found) for found in published.sets] == [[]]
    registry.chmod(0o700)
    async with watching(transport) as again:
        await again.until_ids("a")


# A file that is being written

WHOLE = json.dumps(ORIGINAL).encode()


async def test_a_half_written_file_is_read_again_and_not_judged(
    registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport = relay(registry)
    async with watching(transport) as published:
        for half in (b"", WHOLE[:1], WHOLE[:50], WHOLE[:-1]):
            put(registry, "a.json", half, age=0)
            await transport.discover()
            assert transport.rejected() == ()
        put(registry, "a.json", WHOLE, age=0)
        await published.until_ids("a", seconds=SOON)
    assert caplog.records == []


async def test_a_file_rewritten_in_place_keeps_its_endpoint_meanwhile(registry: Path) -> None:
    register(registry, "a", port=4096)
    transport = relay(registry)
    async with watching(transport) as published:
        before = await published.until_ids("a")
        (registry / "a.json").write_bytes(b"")
        assert await transport.discover() == before
        (registry / "a.json").write_bytes(WHOLE[:70])
        assert await transport.discover() == before
        (registry / "a.json").write_bytes(WHOLE.replace(b"41001", b"4097"))
        await published.until(lambda found: found != before, SOON)
        assert [len(found) for found in published.sets] == [1, 1]


async def test_a_half_written_file_is_found_complete_without_an_event(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr("opencode_mcp_local_relay.watching.DirectoryWatch.run", deaf)
    put(registry, "a.json", WHOLE[:50], age=0)
    async with watching(relay(registry)) as published:
        await published.until_ids()
        put(registry, "a.json", WHOLE, age=0)
        await published.until_ids("a", seconds=SOON)


async def test_a_file_that_stays_half_written_is_judged_and_loses_its_endpoint(
    registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "GRACE_SECONDS", 0.3)
    register(registry, "a")
    transport = relay(registry)
    async with watching(transport) as published:
        await published.until_ids("a")
        (registry / "a.json").write_bytes(WHOLE[:50])
        await published.until_ids()
        assert [rejection.source for rejection in transport.rejected()] == [str(registry / "a.json")]
        assert len(caplog.records) == 1
        (registry / "a.json").write_bytes(WHOLE)
        await published.until_ids("a")
        await until(lambda: not transport.rejected())


async def test_a_clock_that_is_wrong_neither_hurries_nor_delays_the_judgement(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "GRACE_SECONDS", 0.3)
    transport = relay(registry)
    put(registry, "future.json", b"", age=-3600)
    put(registry, "known.json", WHOLE)
    before = await transport.discover()
    put(registry, "known.json", WHOLE[:50], age=3600)  # by the clock of another machine
    assert await transport.discover() == before
    async with watching(transport) as published:
        await published.until_ids()
    assert len(transport.rejected()) == 2
