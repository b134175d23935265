"""Which files are registrations, what they say, and what becomes of the others."""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import anyio
import pytest

from local_relay.relay_parts import ORIGINAL, ids_of, put, register, relay
from opencode_mcp.text import has_unsafe
from opencode_mcp_local_relay import registry as registries
from opencode_mcp_local_relay.directory import Directory
from opencode_mcp_local_relay.registration import parse

pytestmark = pytest.mark.anyio

GOOD = json.dumps(ORIGINAL).encode()


async def test_a_file_of_the_original_tool_is_an_endpoint(registry: Path) -> None:
    register(registry, "abc")
    (found,) = await relay(registry).discover()
    assert found.model_dump() == {
        "id": "abc",
        "name": "laptop-project",
        "url": "http://127.0.0.1:41001",
        "hostname": "laptop",
        "directory": "/home/me/project",
        "labels": {"localPort": "4096", "connectedAt": "2025-01-02T03:04:05.678Z"},
        "vouched": True,
    }


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
async def test_layout_and_byte_order_mark_make_no_difference(
    registry: Path, indent: int | None, prefix: bytes
) -> None:
    put(registry, "abc.json", prefix + json.dumps(ORIGINAL, indent=indent).encode())
    assert ids_of(await relay(registry).discover()) == ["abc"]


async def test_only_the_port_is_indispensable(registry: Path) -> None:
    put(registry, "bare.json", b'{"port": 4096}')
    put(
        registry,
        "nulls.json",
        b'{"port": 4097, "name": null, "hostname": null, "cwd": null, "localPort": null}',
    )
    found = await relay(registry).discover()
    assert [(one.id, one.name, one.directory, one.labels) for one in found] == [
        ("bare", "bare", "", {}),
        ("nulls", "nulls", "", {}),
    ]


async def test_unknown_keys_are_tolerated_and_an_id_is_used(registry: Path) -> None:
    register(registry, "abc", id="server-7", pid=12, nested={"a": [1, None]}, huge=10**300)
    transport = relay(registry)
    assert ids_of(await transport.discover()) == ["server-7"]
    assert transport.rejected() == ()


@pytest.mark.parametrize("bad", [7, "", "a\nb", "\x1b[31mred", "x" * 513, " padded ", ["x"]])
async def test_an_unusable_id_gives_way_to_the_name_of_the_file(registry: Path, bad: object) -> None:
    register(registry, "abc", id=bad)
    assert ids_of(await relay(registry).discover()) == ["abc"]


@pytest.mark.parametrize(
    "odd", ["yesterday", 1e300, -(10**15), True, [], "x" * 5000, "2025-01-02T03:04:05\x1b[0m"]
)
async def test_an_odd_moment_of_connection_is_left_out(registry: Path, odd: object) -> None:
    register(registry, "abc", connectedAt=odd, localPort="\x1b[0m")
    (found,) = await relay(registry).discover()
    assert found.labels == {}


async def test_milliseconds_are_a_moment_too(registry: Path) -> None:
    register(registry, "abc", connectedAt=1735787045678)
    (found,) = await relay(registry).discover()
    assert found.labels["connectedAt"] == "2025-01-02T03:04:05.678Z"


REJECTED: dict[str, tuple[bytes, str]] = {
    "garbage": (b"\x00\x01 not json", "not JSON"),
    "truncated": (GOOD[:-20], "not JSON"),
    "empty": (b"", "not JSON"),
    "ten megabytes": (b'{"port": 4096, "pad": "' + b"x" * 10_000_000 + b'"}', "larger than 64 KiB"),
    "not UTF-8": (b'{"port": 4096, "name": "caf\xe9"}', "not JSON"),
    "UTF-16": ('{"port": 4096}'.encode("utf-16"), "not JSON"),
    "deeply nested": (b'{"port": 4096, "deep": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "not JSON"),
    "nested without end": (b"[" * 60_000, "not JSON"),
    "a huge number": (b'{"port": ' + b"9" * 30_000 + b"}", "not JSON"),
    "a list": (b"[1, 2]", "not a JSON object"),
    "a text": (b'"x"', "not a JSON object"),
    "no port": (b'{"name": "x"}', '"port" is missing'),
}


@pytest.mark.parametrize("kind", REJECTED)
async def test_what_is_no_registration_is_left_out_and_left_alone(registry: Path, kind: str) -> None:
    content, reason = REJECTED[kind]
    bad = put(registry, "bad.json", content)
    register(registry, "good")
    transport = relay(registry)
    with anyio.fail_after(5):
        assert ids_of(await transport.discover()) == ["good"]
    (rejection,) = transport.rejected()
    assert rejection.source == str(bad)
    assert reason in rejection.reason
    assert rejection.reason.endswith("remove it")
    assert bad.read_bytes() == content


UNUSABLE: list[tuple[str, Any]] = [
    *(("port", port) for port in (0, 70000, 65536, -1, "22", True, 22.0, None, [22])),
    *(
        ("name", name)
        for name in ("", "  ", "a\x1b[31mb", "a\nb", "a\x00b", "a\u202eb", "\ud800", "x" * 201, 7, True)
    ),
    ("name", "x" * 10_000),
    *(("cwd", cwd) for cwd in ("/a\n/b", "/a\x1b[2J", "/" + "x" * 4096, 7)),
    *(("hostname", host) for host in ("a\nb", "\x9b31m", "x" * 256, 7)),
]


@pytest.mark.parametrize(("key", "value"), UNUSABLE)
async def test_a_registration_with_an_unusable_value_is_rejected_with_the_reason(
    registry: Path, caplog: pytest.LogCaptureFixture, key: str, value: object
) -> None:
    put(registry, "bad.json", json.dumps({**ORIGINAL, key: value}).encode())
    register(registry, "good", port=41002)
    transport = relay(registry)
    assert ids_of(await transport.discover()) == ["good"]
    (rejection,) = transport.rejected()
    assert f'"{key}" must be' in rejection.reason or "not JSON" in rejection.reason  # a lone surrogate
    assert len(rejection.reason) < 300
    assert not has_unsafe(rejection.reason)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(registry / "bad.json") in warning
    assert rejection.reason in warning
    assert not has_unsafe(warning)


async def test_the_name_of_a_file_reaches_no_terminal_unchecked(
    registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(registry, "a\x1b[31mb.json", b'{"port": 4096}')
    put(registry, "\udcff.json", b'{"port": 4097}')
    transport = relay(registry)
    assert await transport.discover() == ()
    for text in [*caplog.messages, *(rejection.source for rejection in transport.rejected())]:
        assert not has_unsafe(text)
    assert len(transport.rejected()) == 2


async def test_directories_pipes_and_sockets_are_left_out_without_blocking(registry: Path) -> None:
    (registry / "folder.json").mkdir()
    os.mkfifo(registry / "pipe.json")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(registry)  # a socket's path is short
        server.bind("socket.json")
        os.chdir(here)
    register(registry, "good")
    transport = relay(registry)
    with anyio.fail_after(5):
        assert ids_of(await transport.discover()) == ["good"]
    assert [rejection.reason for rejection in transport.rejected()] == [
        "it is not a regular file; remove it"
    ] * 3


async def test_a_pipe_that_takes_the_place_of_a_file_while_it_is_opened_does_not_block(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = register(registry, "abc")
    really_open = os.open

    def swap(name: Any, *args: Any, **kwargs: Any) -> int:
        if name == "abc.json" and path.is_file():
            path.unlink()
            os.mkfifo(path)
        return really_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap)
    transport = relay(registry)
    with anyio.fail_after(5):
        assert await transport.discover() == ()
    assert [rejection.reason for rejection in transport.rejected()] == ["it is not a regular file; remove it"]


async def test_a_link_that_takes_the_place_of_a_file_while_it_is_opened_is_not_followed(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = register(registry, "abc")
    outside = put(tmp_path, "outside", GOOD)
    really_open = os.open

    def swap(name: Any, *args: Any, **kwargs: Any) -> int:
        if name == "abc.json" and not path.is_symlink():
            path.unlink()
            path.symlink_to(outside)
        return really_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap)
    transport = relay(registry)
    assert await transport.discover() == ()
    assert "cannot be read" in transport.rejected()[0].reason


async def test_links_are_followed_within_the_directory_only(registry: Path, tmp_path: Path) -> None:
    outside = put(tmp_path, "outside.json", GOOD)
    put(registry, "target", b'{"port": 4097}')
    (registry / "inward.json").symlink_to("target")
    (registry / "inward2.json").symlink_to(register(registry, "good"))
    (registry / "outward.json").symlink_to(outside)
    (registry / "upward.json").symlink_to("../outside.json")
    (registry / "elsewhere.json").symlink_to(put(tmp_path, "good.json", b'{"port": 4098}'))
    (registry / "dangling.json").symlink_to("nothing")
    (registry / "loop.json").symlink_to("loop.json")
    (registry / "passwd.json").symlink_to("/etc/passwd")
    transport = relay(registry)
    found = {one.url for one in await transport.discover()}
    assert found == {"http://127.0.0.1:4097", "http://127.0.0.1:41001"}
    assert [Path(rejection.source).stem for rejection in transport.rejected()] == [
        "dangling",
        "elsewhere",
        "loop",
        "outward",
        "passwd",
        "upward",
    ]


async def test_a_file_that_may_not_be_read_is_left_out(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "secret")
    register(registry, "good", port=4097)
    really_open = os.open

    def refuse(name: Any, *args: Any, **kwargs: Any) -> int:
        if name == "secret.json":
            raise PermissionError(13, "Permission denied")
        return really_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    transport = relay(registry)
    assert ids_of(await transport.discover()) == ["good"]
    assert (
        transport.rejected()[0].reason
        == "it cannot be read: Permission denied; run `chmod u+r` on it, or remove it"
    )


async def test_a_file_that_goes_while_it_is_looked_at_is_no_matter(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "good")
    monkeypatch.setattr(Directory, "names", lambda *_, **__: (["gone.json", "good.json"], False))
    transport = relay(registry)
    assert ids_of(await transport.discover()) == ["good"]
    assert transport.rejected() == ()


async def test_hidden_temporary_and_other_files_are_not_looked_at(registry: Path) -> None:
    for name in (
        ".hidden.json",
        "~abc.json",
        "#abc.json",
        "abc.json.tmp",
        "abc.txt",
        ".abc.json.swp",
        "json",
    ):
        put(registry, name, b"junk")
    (registry / "sub").mkdir()
    register(registry / "sub", "deeper")
    transport = relay(registry)
    assert await transport.discover() == ()
    assert transport.rejected() == ()


async def test_a_bad_file_is_warned_of_once_until_it_changes(
    registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(registry, "bad.json", b"junk")
    transport = relay(registry)
    for _ in range(3):
        await transport.discover()
    assert len(caplog.records) == 1
    put(registry, "bad.json", b'{"port": 0}')
    for _ in range(3):
        await transport.discover()
    assert len(caplog.records) == 2
    (registry / "bad.json").unlink()
    await transport.discover()
    assert transport.rejected() == ()
    put(registry, "bad.json", b'{"port": 0}')
    await transport.discover()
    assert len(caplog.records) == 3
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_of_two_files_for_one_server_the_newer_counts(registry: Path) -> None:
    register(registry, "a-new", connectedAt="2025-03-01T00:00:00.000Z", name="new")
    register(registry, "b-old", connectedAt="2025-02-28T23:59:59.000Z", name="old")
    transport = relay(registry)
    assert [one.name for one in await transport.discover()] == ["new"]
    assert transport.rejected() == ()


async def test_without_a_moment_the_file_written_later_counts(registry: Path) -> None:
    put(registry, "a.json", b'{"port": 4096, "name": "later"}', age=60)
    put(registry, "b.json", b'{"port": 4096, "name": "earlier"}', age=90)
    assert [one.name for one in await relay(registry).discover()] == ["later"]


async def test_of_two_files_with_one_id_the_newer_counts(registry: Path) -> None:
    register(registry, "a", id="same", port=4096, connectedAt="2025-01-01T00:00:00Z")
    register(registry, "b", id="same", port=4097, connectedAt="2025-01-02T00:00:00Z")
    assert [one.url for one in await relay(registry).discover()] == ["http://127.0.0.1:4097"]


async def test_an_id_that_is_the_name_of_another_file_hides_nobody(registry: Path) -> None:
    register(registry, "x", port=4096)
    register(registry, "y", port=4097, id="x")
    assert ids_of(await relay(registry).discover()) == ["x", "x.json"]


async def test_two_instances_may_have_one_name(registry: Path) -> None:
    register(registry, "a", port=4096)
    register(registry, "b", port=4097)
    found = await relay(registry).discover()
    assert [(one.id, one.name) for one in found] == [("a", "laptop-project"), ("b", "laptop-project")]


async def test_more_files_than_there_can_be_are_not_all_read(
    registry: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registries, "COUNT_LIMIT", 3)
    for number in range(5):
        register(registry, f"i{number}", port=4096 + number)
    transport = relay(registry)
    for _ in range(2):
        assert len(await transport.discover()) == 3
    assert len(caplog.records) == 1
    assert "more than 3" in caplog.text


async def test_an_unchanged_file_is_not_read_again(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry, "abc.json", GOOD)
    transport = relay(registry)
    before = await transport.discover()

    def refuse(*_: object) -> None:
        pytest.fail("read again")

    monkeypatch.setattr("opencode_mcp_local_relay.file.parse", refuse)
    assert await transport.discover() == before


async def test_a_change_that_leaves_size_and_times_as_they_were_is_seen(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file system goes in steps; here it stands still."""
    monkeypatch.setattr("opencode_mcp_local_relay.file._version", lambda _: (1, 2, 3, 4, 5))
    path = register(registry, "abc", port=4096)
    transport = relay(registry)
    await transport.discover()
    path.write_text(path.read_text().replace("4096", "4097", 1))
    (found,) = await transport.discover()
    assert found.url == "http://127.0.0.1:4097"


def test_the_files_name_stands_in_for_what_the_file_does_not_say() -> None:
    found = parse(b'{"port": 1}', "stem")
    assert (found.endpoint.id, found.endpoint.name, found.explicit_id) == ("stem", "stem", False)


def test_unknown_keys_are_kept_as_facts_except_secrets_and_what_is_no_plain_value() -> None:
    content = (
        b'{"port": 1, "pid": 7, "owner": "me\\u001b[31m", "authToken": "x", "list": [1], "heartbeatAt": "y"}'
    )
    assert parse(content, "a").endpoint.labels == {"pid": "7", "owner": "me"}
