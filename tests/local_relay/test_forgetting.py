"""Pruning loses nothing: what may be removed, and what is kept."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from local_relay.relay_parts import ORIGINAL, put, register, relay
from opencode_mcp import Endpoint
from opencode_mcp_local_relay import LocalRelay
from opencode_mcp_local_relay.registry import Registry

pytestmark = pytest.mark.anyio


async def gone(transport: LocalRelay, **wanted: str) -> Endpoint:
    """Let time pass until the instance may be forgotten."""
    found = [
        one for one in await transport.discover() if all(getattr(one, key) == wanted[key] for key in wanted)
    ]
    await anyio.sleep(0.002)
    return found[0]


def prompt(registry: Path, **settings: bool) -> LocalRelay:
    return relay(registry, prune_after_ms=1, **settings)


async def test_the_file_of_a_gone_instance_is_removed(
    registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = register(registry, "a")
    other = register(registry, "b", port=4097)
    transport = prompt(registry)
    await transport.forget(await gone(transport, id="a"))
    assert not path.exists()
    assert other.exists()
    assert str(path) in caplog.text
    assert [one.id for one in await transport.discover()] == ["b"]


async def test_a_file_that_was_touched_since_is_kept(registry: Path) -> None:
    transport = prompt(registry)

    def rewrite(path: Path) -> None:
        path.write_text(path.read_text())

    def replace(path: Path) -> None:
        status = path.stat()
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
        copy.replace(path)

    def touch(path: Path) -> None:
        os.utime(path)

    def point_elsewhere(path: Path) -> None:
        path.write_text(path.read_text().replace("41001", "41002"))

    def spoil(path: Path) -> None:
        path.write_text("junk")

    changes: list[Callable[[Path], None]] = [rewrite, replace, touch, point_elsewhere, spoil]
    for change in changes:
        path = put(registry, "a.json", json.dumps(ORIGINAL).encode())
        endpoint = await gone(transport)
        change(path)
        await transport.forget(endpoint)
        assert path.exists(), change.__name__
        path.unlink()


async def test_content_is_compared_even_where_the_times_tell_nothing(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.file._version", lambda _: (1, 2, 3, 4, 5))
    path = register(registry, "a", cwd="/one")
    transport = prompt(registry)
    endpoint = await gone(transport)
    path.write_text(path.read_text().replace("/one", "/two"))
    await transport.forget(endpoint)
    assert path.exists()


async def test_a_file_that_is_written_again_and_again_is_looked_after_and_kept(registry: Path) -> None:
    path = register(registry, "a", heartbeatAt="1")
    transport = relay(registry)  # 600,000 ms
    await transport.discover()
    register(registry, "a", heartbeatAt="2")
    (endpoint,) = await transport.discover()
    await transport.forget(endpoint)
    assert path.exists()


def test_a_file_goes_only_after_it_was_unchanged_for_the_whole_time(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = register(registry, "a", heartbeatAt="1")
    known = Registry(registry, trust_any_owner=False)
    (endpoint,) = known.look().endpoints
    now[0] += 500
    register(registry, "a", heartbeatAt="2")
    known.look()
    now[0] += 500
    known.look()
    known.forget(endpoint, unchanged_seconds=600)
    assert path.exists()
    now[0] += 101
    known.forget(endpoint, unchanged_seconds=600)
    assert not path.exists()


async def test_an_endpoint_that_nobody_registered_removes_nothing(registry: Path) -> None:
    path = register(registry, "a")
    transport = prompt(registry)
    endpoint = await gone(transport)
    await prompt(registry).forget(endpoint)  # never looked
    await transport.forget(endpoint.model_copy(update={"id": "../a"}))
    await transport.forget(endpoint.model_copy(update={"url": "http://127.0.0.1:1"}))
    assert path.exists()


async def test_what_is_no_registration_is_never_removed(registry: Path) -> None:
    transport = prompt(registry)
    junk = put(registry, "junk.json", b"junk")
    half = register(registry, "half")
    endpoint = await gone(transport)
    half.write_bytes(b'{"port"')
    assert await transport.discover() == (endpoint,)  # half-written: the last word counts
    await anyio.sleep(0.002)
    await transport.forget(endpoint)
    assert half.exists()
    assert junk.exists()


async def test_a_link_is_removed_and_not_what_it_leads_to(registry: Path) -> None:
    target = put(registry, "target", b'{"port": 4096}')
    link = registry / "a.json"
    link.symlink_to("target")
    transport = prompt(registry)
    await transport.forget(await gone(transport))
    assert target.exists()
    assert not link.is_symlink()


async def test_pruning_can_be_switched_off(registry: Path) -> None:
    path = register(registry, "a")
    transport = relay(registry, prune_after_ms=0)
    assert transport.forget_after_seconds is None
    await transport.forget(await gone(transport))
    assert path.exists()


async def test_a_read_only_directory_is_served_and_complained_of_once(
    registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = register(registry, "a")
    register(registry, "b", port=4097)
    registry.chmod(0o500)
    if os.geteuid() == 0:  # whom modes do not stop

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "unlink", refuse)
    transport = prompt(registry)
    for endpoint in [await gone(transport, id="a"), await gone(transport, id="b")]:
        await transport.forget(endpoint)
    registry.chmod(0o700)
    assert path.exists()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be removed" in record.getMessage()
    assert len(await transport.discover()) == 2


async def test_nothing_is_removed_from_a_directory_that_is_no_longer_trusted(registry: Path) -> None:
    path = register(registry, "a")
    transport = prompt(registry)
    endpoint = await gone(transport)
    registry.chmod(0o777)
    await transport.forget(endpoint)
    assert path.exists()
