"""Asking a server for its health, and waiting for one: whatever it is that answers."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from opencode_mcp.connect import presence as presences
from opencode_mcp.connect.presence import Presence
from opencode_mcp.errors import CredentialsError, OpenCodeMCPError, ProtocolError, UnreachableError
from opencode_mcp.opencode.probe import Health, probe
from opencode_mcp.testing import FakeOpenCode
from support.answering import answering
from support.real_opencode import VERSION, free_port
from support.services import register_fake

pytestmark = pytest.mark.anyio

HEALTHY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON; charset=utf-8\r\ncontent-length: 37\r\n\r\n"
    b'{"healthy":true,"version":"1.18.33"} '
)


async def asked(url: str, *, seconds: float = 5, password: str | None = None) -> str:
    def ask() -> str:
        return probe(url, seconds=seconds, username="opencode", password=password).version

    return await anyio.to_thread.run_sync(ask)


async def test_an_opencode_says_its_version() -> None:
    async with FakeOpenCode().serve() as fake:
        assert await asked(fake.url) == (await asked(f"{fake.url}/")) == VERSION


async def test_the_password_is_sent_and_another_one_refused() -> None:
    async with FakeOpenCode(password="s3cret").serve() as fake:
        assert await asked(fake.url, password="s3cret") == VERSION
        for wrong in (None, "wrong"):
            with pytest.raises(CredentialsError, match="OPENCODE_SERVER_PASSWORD"):
                await asked(fake.url, password=wrong)


@pytest.mark.parametrize("preview", [False, True])
async def test_one_of_2x_says_its_process_too(preview: bool) -> None:
    async with FakeOpenCode(generation=2, preview=preview, password="s3cret").serve() as fake:

        def ask(**more: Any) -> Health:
            return probe(fake.url, seconds=5, username="opencode", password="s3cret", **more)

        known = Health(fake.version, guarded=True, pid=os.getpid())
        for more in ({}, {"pid": os.getpid()}, {"pid": os.getpid(), "version": fake.version}):
            assert await anyio.to_thread.run_sync(partial(ask, **more)) == known
        for more in ({"pid": 1}, {"pid": os.getpid(), "version": "2.0.1"}):
            with pytest.raises(ProtocolError, match=f"answers process {os.getpid()} with OpenCode"):
                await anyio.to_thread.run_sync(partial(ask, **more))
        with pytest.raises(CredentialsError, match="OPENCODE_SERVER_PASSWORD"):
            await asked(fake.url, password="wrong")
        paths = {request.path for request in fake.requests}
        assert paths <= {"/global/health", "/api/info", "/api/health"}


async def test_one_of_1x_is_not_taken_for_a_process_of_2x() -> None:
    async with FakeOpenCode().serve() as fake:
        ask = partial(probe, fake.url, seconds=5, pid=os.getpid())
        with pytest.raises(ProtocolError, match="is not an OpenCode server"):
            await anyio.to_thread.run_sync(ask)


@pytest.mark.parametrize(
    "answer",
    [
        HEALTHY,
        b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n",
        b'HTTP/1.1 401 No\r\nwww-authenticate: Basic realm="Router"\r\ncontent-length: 0\r\n\r\n',
    ],
)
async def test_the_password_goes_to_nobody_who_does_not_ask_as_opencode_does(answer: bytes) -> None:
    heard: list[bytes] = []
    async with answering(answer, heard=heard) as url:
        with suppress(ProtocolError):
            await asked(url, password="s3cret")
    assert heard
    assert b"authorization" not in b"".join(heard).lower()


async def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="Connection refused"):
        await asked(f"http://127.0.0.1:{free_port()}")


async def test_a_silent_one_is_given_up_in_time() -> None:
    async with answering(b"", hold=True) as url:
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            await asked(url, seconds=0.1)
        assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n<html></html>",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"version": 3}',
        b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"version": ""} ',
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe",
        HEALTHY.replace(b"200 OK", b"500 No"),
        HEALTHY.replace(b"200 OK", b"302 Found\r\nlocation: http://127.0.0.1:1/"),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"[" * 200_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 10_000_000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        b"",
    ],
    ids=range(15),
)
async def test_somebody_else_is_no_opencode(answer: bytes) -> None:
    async with answering(answer) as url:
        with pytest.raises((ProtocolError, UnreachableError)):
            await asked(url)


async def test_a_version_is_shown_as_one_short_line() -> None:
    body = b'{"version":"1\\u001b[31m\\n2%s"}' % (b"x" * 200)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with answering(head + body) as url:
        version = await asked(url)
    assert version.isprintable()
    assert len(version) == 40


@pytest.mark.parametrize(
    "kind", [b"", b"content-type: text/html\r\n", b"content-type: application/jsonp\r\n"]
)
async def test_what_does_not_call_itself_json_is_no_answer(kind: bytes) -> None:
    body = b'{"healthy":true,"version":"1.18.33","pid":7}'
    async with answering(
        b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n" % (kind, len(body)) + body
    ) as url:
        with pytest.raises(ProtocolError, match="not an OpenCode server"):
            await asked(url)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_LOOK_SECONDS", 0.02), ("_PATIENCE_SECONDS", 0.1), ("_ANSWER_SECONDS", 0.1)):
        monkeypatch.setattr(presences, name, seconds)


def presence_of(url: str, password: str | None = None) -> Presence:
    return Presence(url, username="opencode", password=password, started_here=False)


async def test_who_had_the_port_first_of_one_that_runs_gets_the_password_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    owner = 4711
    monkeypatch.setattr(presences, "listening_user", lambda url: owner)
    monkeypatch.setattr("opencode_mcp.opencode.strangers.peer_user", lambda connection: owner)
    async with FakeOpenCode(password="pw").serve() as fake:
        presence = presence_of(fake.url, "pw")
        await presence.appears()
        assert (presence.problem, presence.guarded, presence.owner) == ("", True, 4711)
        owner = 4712
        with anyio.fail_after(5):
            await presence.vanishes()
        assert "uid 4712" in presence.problem


async def test_it_appears_as_soon_as_it_answers() -> None:
    port = free_port()
    presence = presence_of(f"http://127.0.0.1:{port}")
    async with anyio.create_task_group() as group:
        group.start_soon(presence.appears)
        await _told(presence, lambda: "refused" in presence.problem)
        assert not presence.answered
        async with FakeOpenCode().serve(port=port):
            await _told(presence, lambda: presence.answered)
            assert (presence.version, presence.problem, presence.guarded) == (VERSION, "", False)


async def test_one_that_wants_another_password_is_there_and_guarded(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeOpenCode(password="s3cret").serve() as fake:
        presence = presence_of(fake.url)
        with anyio.fail_after(5):
            await presence.appears()
            await presence.appears()
        assert (presence.answered, presence.guarded, presence.version) == (True, True, "")
        assert "wants another password" in presence.problem
        assert len(caplog.records) == 1


@pytest.mark.parametrize("wanted", [None, "s3cret"])
async def test_it_is_guarded_if_it_asks_for_the_password_not_if_we_have_one(wanted: str | None) -> None:
    async with FakeOpenCode(password=wanted).serve() as fake:
        presence = presence_of(fake.url, "s3cret")
        with anyio.fail_after(5):
            await presence.appears()
        assert (presence.version, presence.guarded) == (VERSION, wanted is not None)


@pytest.mark.usefixtures("impatient")
async def test_it_vanishes_once_it_has_been_silent_several_times() -> None:
    port = free_port()
    presence = presence_of(f"http://127.0.0.1:{port}")
    async with anyio.create_task_group() as group:
        async with FakeOpenCode().serve(port=port):
            await presence.appears()
            vanished = anyio.Event()
            group.start_soon(_then, presence.vanishes, vanished.set)
            for _ in range(3):
                await presence.appears()
            assert not vanished.is_set()
        with anyio.fail_after(20):
            await vanished.wait()
        assert "does not answer" in presence.problem


@pytest.mark.usefixtures("impatient")
async def test_only_failures_in_a_row_make_it_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = list("--+--+---")

    def ask(*_: object, **__: object) -> Health:
        if answers.pop(0) == "+":
            return Health(VERSION, guarded=False)
        raise OpenCodeMCPError("silent")

    monkeypatch.setattr(presences, "probe", ask)
    monkeypatch.setattr(presences, "project", lambda *_, **__: "/srv/project")
    with anyio.fail_after(5):
        await presence_of("http://127.0.0.1:1").vanishes()
    assert answers == []


@pytest.mark.usefixtures("impatient")
async def test_one_that_trickles_is_asked_again_and_holds_nothing_up() -> None:
    presence = presence_of("http://127.0.0.1:1")
    started = asyncio.Event()

    def dawdle(*_: object, **__: object) -> str:
        started.set()
        time.sleep(0.5)
        raise OpenCodeMCPError("late")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presences, "probe", dawdle)
        began = anyio.current_time()
        with anyio.move_on_after(0.3):
            await presence.appears()
        assert anyio.current_time() - began < 0.45
    assert started.is_set()
    assert presence.problem == "http://127.0.0.1:1 does not answer in time."


async def test_a_server_of_2x_that_runs_already_has_no_directory_of_its_own() -> None:
    async with FakeOpenCode(generation=2, password="s3cret").serve() as fake:
        presence = presence_of(fake.url, "s3cret")
        with anyio.fail_after(5):
            await presence.appears()
        assert (presence.version, presence.guarded, presence.directory) == (fake.version, True, "")


async def test_of_a_background_service_the_password_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    async with FakeOpenCode(generation=2).serve() as fake:
        register_fake(tmp_path, fake)
        for password in (None, "of another instance"):
            for url in (fake.url, fake.url.replace("127.0.0.1", "localhost")):
                presence = Presence(url, username="me", password=password, started_here=False)
                with anyio.fail_after(5):
                    await presence.appears()
                assert (presence.version, presence.url) == (fake.version, fake.url)
                assert str(fake.password) not in repr(vars(presence))


async def _then(wait: Callable[[], Awaitable[None]], done: Callable[[], None]) -> None:
    await wait()
    done()


async def _told(presence: Presence, condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.005)
