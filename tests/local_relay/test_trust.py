"""Whose directory and files are believed."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from local_relay.relay_parts import Published, ids_of, register, relay
from opencode_mcp import TransportError
from opencode_mcp_local_relay.directory import distrust

pytestmark = pytest.mark.anyio


async def test_a_missing_or_empty_directory_is_an_empty_set(tmp_path: Path, registry: Path) -> None:
    assert await relay(tmp_path / "missing" / "deep").discover() == ()
    assert await relay(registry).discover() == ()


async def test_another_users_directory_is_refused_with_the_mend(
    registry: Path, disown: Callable[[Path], None]
) -> None:
    register(registry, "abc")
    disown(registry)
    with pytest.raises(TransportError) as refused:
        await relay(registry).discover()
    for part in (str(registry), "another user", f"chown {os.geteuid()}", "RELAY_TRUST_ANY_OWNER=1"):
        assert part in str(refused.value)
    assert ids_of(await relay(registry, trust_any_owner=True).discover()) == ["abc"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
async def test_a_directory_that_everybody_can_write_is_refused_with_the_mend(
    registry: Path, mode: int
) -> None:
    register(registry, "abc")
    registry.chmod(mode)
    with pytest.raises(TransportError) as refused:
        await relay(registry).discover()
    for part in (str(registry), "everybody", "chmod o-w", "RELAY_TRUST_ANY_OWNER=1"):
        assert part in str(refused.value)
    assert ids_of(await relay(registry, trust_any_owner=True).discover()) == ["abc"]


async def test_a_link_of_another_user_to_a_directory_of_ours_is_refused(
    registry: Path, tmp_path: Path, disown: Callable[[Path], None]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(registry)
    register(registry, "abc")
    assert ids_of(await relay(link).discover()) == ["abc"]
    disown(link)
    with pytest.raises(TransportError, match="another user"):
        await relay(link).discover()


async def test_a_link_to_a_directory_open_to_everybody_is_refused(registry: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(registry)
    registry.chmod(0o777)
    with pytest.raises(TransportError, match="everybody"):
        await relay(link).discover()


async def test_another_users_file_is_left_out_with_the_mend(
    registry: Path, disown: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    disown(register(registry, "theirs"))
    register(registry, "ours", port=4097)
    transport = relay(registry)
    assert ids_of(await transport.discover()) == ["ours"]
    (rejection,) = transport.rejected()
    assert "another user" in rejection.reason
    assert "RELAY_TRUST_ANY_OWNER=1" in rejection.reason
    assert len(caplog.records) == 1
    trusting = relay(registry, trust_any_owner=True)
    assert ids_of(await trusting.discover()) == ["ours", "theirs"]
    assert trusting.rejected() == ()


async def test_a_file_that_everybody_can_write_is_left_out_until_that_is_mended(registry: Path) -> None:
    path = register(registry, "abc")
    path.chmod(0o666)
    transport = relay(registry)
    assert await transport.discover() == ()
    assert "chmod o-w" in transport.rejected()[0].reason
    path.chmod(0o600)
    assert ids_of(await transport.discover()) == ["abc"]
    assert transport.rejected() == ()
    path.chmod(0o606)
    assert await transport.discover() == ()


def test_what_belongs_to_root_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list(tmp_path.stat())
    fields[4] = 0
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert distrust(os.stat_result(fields)) is None
    fields[4] = 4712
    assert distrust(os.stat_result(fields)) is not None
    monkeypatch.delattr(os, "geteuid")  # as on Windows
    assert distrust(os.stat_result(fields)) is None


@pytest.mark.parametrize("what", ["directory", "files", "both"])
async def test_what_the_group_can_write_is_used_with_one_warning(
    registry: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    paths = [register(registry, f"i{number}", port=4096 + number) for number in range(3)]
    if what != "directory":
        for path in paths:
            path.chmod(0o660)
    if what != "files":
        registry.chmod(0o770)
    transport = relay(registry)
    for _ in range(3):
        assert len(await transport.discover()) == 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(registry) in record.getMessage()
    assert "chmod g-w" in record.getMessage()


@pytest.mark.parametrize("kind", ["file", "pipe"])
async def test_what_is_no_directory_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    path.touch() if kind == "file" else os.mkfifo(path)
    with anyio.fail_after(5), pytest.raises(TransportError, match="is not a directory"):
        await relay(path).discover()
    with pytest.raises(TransportError, match="is not a directory"):
        await relay(path / "below").discover()


async def test_a_directory_that_may_not_be_read_is_an_error_with_the_mend(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TransportError, match=r"cannot be opened: Permission denied\. Run `chmod u\+rwx"):
        await relay(registry).discover()


async def test_when_no_file_can_be_read_at_present_the_set_is_not_empty_but_unknown(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "abc")
    really_open = os.open

    def exhausted(name: object, *args: int, **kwargs: int) -> int:
        if name == "abc.json":
            raise OSError(24, "Too many open files")
        return really_open(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(TransportError, match="Too many open files"):
        await relay(registry).discover()


async def test_watching_ends_with_the_error_itself_when_the_directory_cannot_be_trusted(
    registry: Path,
) -> None:
    registry.chmod(0o777)
    with anyio.fail_after(5), pytest.raises(TransportError, match="everybody"):
        await relay(registry).watch(Published())
