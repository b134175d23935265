"""tailscaled's LocalAPI: what is asked and how, and that whatever it answers is understood or explained."""

import contextlib
import re
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpcore2
import pytest

from opencode_mcp import TransportError
from opencode_mcp_tailscale.localapi import (
    ConflictError,
    Dialling,
    LocalApi,
    LocalApiError,
    RefusedError,
)
from opencode_mcp_tailscale.status import Who
from support.fake_tailscaled import FakeTailscaled, Stream
from support.fake_tailscaled_wire import GoneError
from support.fleets import until
from tailscale import tailscale_parts as parts

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # all together

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts.bare(monkeypatch, tmp_path / "state")
    monkeypatch.setattr("opencode_mcp_tailscale.localapi._MOST_BYTES", LIMIT)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an answer that does not come be given up soon."""
    monkeypatch.setattr("opencode_mcp_tailscale.localapi._SECONDS", 0.15)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / "s") as one:
        yield one


@pytest.fixture
async def api(fake: FakeTailscaled) -> AsyncGenerator[LocalApi]:
    async with LocalApi(parts.settings(fake)) as one:
        yield one


@contextlib.asynccontextmanager
async def hearing(path: Path, answer: bytes) -> AsyncGenerator[list[str]]:
    """A tailscaled that answers everything with some bytes; what it hears is yielded."""
    heard: list[str] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                heard.append((await stream.receive()).decode())
                await stream.send(answer)

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield heard
        group.cancel_scope.cancel()


# What is asked


async def test_a_request_is_one_that_tailscaled_lets_in_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("default login evil password evil")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    chosen = parts.settings(socket=str(tmp_path / "s"))
    async with hearing(tmp_path / "s", parts.http(200, b"null")) as heard, LocalApi(chosen) as api:
        assert await api.serve_config() == ({}, "")
    first, *lines = heard[0].strip().split("\r\n")
    headers = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines}
    assert first == "GET /localapi/v0/serve-config HTTP/1.1"
    assert headers["host"] == "local-tailscaled.sock"
    assert headers["accept-encoding"] == "identity"
    assert not {"origin", "referer", "authorization", "cookie"} & set(headers)


async def test_a_dial_is_one_that_tailscaled_lets_in(tmp_path: Path) -> None:
    chosen = parts.settings(socket=str(tmp_path / "s"))
    async with hearing(tmp_path / "s", parts.http(502, b"no")) as heard, LocalApi(chosen) as api:
        with pytest.raises(httpcore2.ConnectError):
            await api.dial("fd7a::2", 14096, 2)
    first, *lines = heard[0].strip().split("\r\n")
    assert first == "POST /localapi/v0/dial HTTP/1.1"
    assert dict(line.split(": ") for line in lines) == {
        "Host": "local-tailscaled.sock",
        "Connection": "upgrade",
        "Upgrade": "ts-dial",
        "Dial-Host": "fd7a::2",
        "Dial-Port": "14096",
        "Dial-Network": "tcp",
        "Content-Length": "0",
    }


@pytest.fixture
async def app(tmp_path: Path) -> AsyncGenerator[tuple[FakeTailscaled, LocalApi]]:
    """The app of macOS: at a port, with a token."""
    async with FakeTailscaled(tmp_path / "s", token="secret") as fake:
        folder = tmp_path / "app"
        folder.mkdir()
        (folder / "ipnport").symlink_to(str(fake.port))
        (folder / f"sameuserproof-{fake.port}").write_text("secret\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("opencode_mcp_tailscale.daemon._MACOS_APP", folder)
            patch.setattr("opencode_mcp_tailscale.daemon._open_files", list)
            patch.setattr("opencode_mcp_tailscale.daemon.find_daemon.__kwdefaults__", {"platform": "darwin"})
            async with LocalApi(parts.settings()) as api:
                yield fake, api


async def test_the_app_of_macos_is_asked_at_its_port_with_its_token(
    app: tuple[FakeTailscaled, LocalApi],
) -> None:
    fake, api = app
    fake.add_peer("box", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", 80] = parts.answers(b"hello")
    assert (await api.status()).problem == ""
    stream = await api.dial("100.64.0.7", 80, 2)
    await stream.write(b"\r\n\r\n")
    assert await stream.read(100) == b"hello"
    await stream.aclose()
    async with api.watch() as bus:
        assert bus.session in fake.sessions


# Whatever it answers


async def test_status_prefs_whois_and_serve_config_are_read(fake: FakeTailscaled, api: LocalApi) -> None:
    box = fake.add_peer("box", user="bob@example.com", ips=("100.64.0.7",))
    assert [one.name for one in (await api.status()).peers] == ["box.tail1a2b.ts.net"]
    assert not await api.shields_up()
    fake.set_prefs(ShieldsUp=True)
    assert await api.shields_up()
    assert await api.whois("100.64.0.7:1234") == Who(user="bob@example.com", tags=(), node_id=box.id)
    assert await api.whois("100.64.0.99:1234") is None
    config, tag = await api.serve_config()
    assert config == {}
    await api.set_serve_config({"TCP": {"80": {"HTTP": True}}}, tag)
    assert (await api.serve_config())[0] == {"TCP": {"80": {"HTTP": True}}}


async def test_a_serve_config_that_changed_meanwhile_is_not_overwritten(
    fake: FakeTailscaled, api: LocalApi
) -> None:
    _, tag = await api.serve_config()
    fake.post_serve_config({"TCP": {"80": {"HTTP": True}}})
    for wrong in (tag, ""):
        with pytest.raises(ConflictError) as caught:
            await api.set_serve_config({}, wrong)
        assert caught.value.status == 412
    assert fake.serve_config == {"TCP": {"80": {"HTTP": True}}}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, "denied\n", "HTTP status 403: denied."),
        (404, "404 page not found\n", "HTTP status 404: 404 page not found."),
        (500, '{"error": "no such thing."}', "HTTP status 500: no such thing."),
        (500, '{"Error": "no such thing"}', "HTTP status 500: no such thing."),
        (500, '{"error": {"a": 1}}', 'HTTP status 500: {"error": {"a": 1}}.'),
        (503, "", "HTTP status 503."),
        (302, "", "HTTP status 302."),
        (500, "a\x1b[31m\nb" + "x" * 9999, "HTTP status 500: a bx"),
        (500, "\ufffd" * 10, "HTTP status 500: "),
    ],
)
async def test_an_error_is_told_in_its_own_words(
    fake: FakeTailscaled, api: LocalApi, status: int, body: str, said: str
) -> None:
    fake.fail("status", status, body)
    with pytest.raises(LocalApiError, match=re.escape(f"tailscaled answered status with {said}")) as caught:
        await api.status()
    assert caught.value.status == status
    assert len(str(caught.value)) < 400


async def test_an_error_of_whois_is_not_taken_for_nobody(fake: FakeTailscaled, api: LocalApi) -> None:
    fake.fail("whois", 403, "denied")
    with pytest.raises(LocalApiError, match="denied"):
        await api.whois("100.64.0.7:1")


Asked = Callable[[LocalApi], Any]


async def _watch(api: LocalApi) -> None:
    async with api.watch():
        pass


ENDPOINTS: dict[str, Asked] = {
    "status": lambda api: api.status(),
    "prefs": lambda api: api.shields_up(),
    "serve-config": lambda api: api.serve_config(),
    "whois": lambda api: api.whois("100.64.0.7:1"),
    "watch-ipn-bus": _watch,
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.usefixtures("soon")
async def test_an_answer_that_never_comes_is_given_up(
    fake: FakeTailscaled, api: LocalApi, endpoint: str
) -> None:
    fake.hang(endpoint)
    said = "does not say what changes" if endpoint == "watch-ipn-bus" else f"did not answer .*{endpoint}"
    with anyio.fail_after(5), pytest.raises(TransportError, match=said):
        await ENDPOINTS[endpoint](api)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"]
)
async def test_an_answer_that_is_none_is_explained(
    fake: FakeTailscaled, api: LocalApi, endpoint: str, data: bytes
) -> None:
    fake.garbage(endpoint, data, raw=True)
    with pytest.raises(TransportError, match=r"^tailscaled "):
        await ENDPOINTS[endpoint](api)
    fake.mend(endpoint)
    fake.add_peer("box", ips=("100.64.0.7",))
    await ENDPOINTS[endpoint](api)


@pytest.mark.parametrize("endpoint", ["status", "prefs", "serve-config", "watch-ipn-bus"])
@pytest.mark.parametrize("data", [b"<html>\n", b"\xff\n", b"[" * 100_000 + b"\n", b""])
async def test_an_answer_that_is_no_json_is_explained(
    fake: FakeTailscaled, api: LocalApi, endpoint: str, data: bytes
) -> None:
    fake.garbage(endpoint, data)
    with pytest.raises(TransportError, match=r"^tailscaled (answers|tells)"):
        await ENDPOINTS[endpoint](api)


async def test_an_answer_cut_off_in_the_middle_is_explained(fake: FakeTailscaled, api: LocalApi) -> None:
    fake.cut("status")
    with pytest.raises(TransportError, match="tailscaled ended the connection"):
        await api.status()


@pytest.mark.parametrize("endpoint", ["status", "prefs", "serve-config", "whois"])
async def test_an_answer_beyond_the_bound_is_not_read_on(
    fake: FakeTailscaled, api: LocalApi, endpoint: str
) -> None:
    fake.flood(endpoint, 8)
    with pytest.raises(TransportError, match="tailscaled answers with more than"):
        await ENDPOINTS[endpoint](api)


async def test_an_error_beyond_the_bound_is_not_read_on(fake: FakeTailscaled, api: LocalApi) -> None:
    fake.fail("status", 500, "x" * (2 * LIMIT))
    with pytest.raises(TransportError, match="tailscaled answers with more than"):
        await api.status()


# A tailscaled that goes and comes


async def test_a_daemon_that_was_started_anew_makes_no_difference(
    fake: FakeTailscaled, api: LocalApi
) -> None:
    await api.status()
    await fake.stop()
    await fake.start()
    await api.status()


async def test_a_daemon_that_is_gone_is_said_to_be_so_with_where_was_looked(
    fake: FakeTailscaled, api: LocalApi
) -> None:
    await api.status()
    await fake.stop()
    said = re.escape(f"tailscaled cannot be reached. Tried: {fake.socket} (not there).")
    for ask in ENDPOINTS.values():
        with pytest.raises(TransportError, match=said):
            await ask(api)
    with pytest.raises(httpcore2.ConnectError, match="tailscaled cannot be asked to connect"):
        await api.dial("100.64.0.7", 80, 2)
    await fake.start()
    await api.status()


async def test_a_bus_that_is_cut_ends(fake: FakeTailscaled, api: LocalApi) -> None:
    async def follow() -> None:
        async with api.watch() as bus:
            fake.drop_watchers(abort=True)
            await bus.follow(lambda: None)

    with pytest.raises(TransportError, match="tailscaled ended the connection"):
        await follow()


@pytest.mark.usefixtures("soon")
async def test_a_bus_stays_open_longer_than_an_answer_may_take(fake: FakeTailscaled, api: LocalApi) -> None:
    changed = anyio.Event()
    async with api.watch() as bus, anyio.create_task_group() as group:
        group.start_soon(bus.follow, changed.set)
        opened = anyio.current_time()
        await until(lambda: anyio.current_time() > opened + 0.2)
        fake.say(State=6)
        with anyio.fail_after(5):
            await changed.wait()
        group.cancel_scope.cancel()


async def test_the_session_of_the_bus_ends_with_it(fake: FakeTailscaled, api: LocalApi) -> None:
    async with api.watch() as bus:
        assert fake.sessions == [bus.session]
    await until(lambda: not fake.sessions)


# Dialling


async def served(stream: Stream) -> None:
    """Say hello at once, and then everything that is said."""
    with contextlib.suppress(GoneError):
        await stream.send(b"hello")
        while data := await stream.some():
            await stream.send(data)


async def test_a_dial_is_a_stream_both_ways(fake: FakeTailscaled, api: LocalApi) -> None:
    fake.add_peer("box", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", 80] = served
    async with parts.no_sockets_left():
        stream = await Dialling(api).connect_tcp("100.64.0.7", 80, 2)
        assert await stream.read(100) == b"hello"
        await stream.write(b"x" * 200_000)
        got = b""
        while len(got) < 200_000:
            got += await stream.read(65536)
        with pytest.raises(httpcore2.ReadTimeout):
            await stream.read(1, timeout=0.01)
        await stream.write(b"again")
        assert await stream.read(100) == b"again"
        await stream.aclose()
        await until(lambda: not fake.tunnels)
        with pytest.raises(httpcore2.ReadError):
            await stream.read(1)


async def test_a_stream_whose_other_side_closes_ends(fake: FakeTailscaled, api: LocalApi) -> None:
    fake.add_peer("box", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", 80] = parts.answers()
    stream = await api.dial("100.64.0.7", 80, 2)
    await stream.write(b"\r\n\r\n")
    assert await stream.read(1) == b""
    await stream.aclose()


async def test_what_is_not_on_the_tailnet_is_not_dialled(fake: FakeTailscaled, api: LocalApi) -> None:
    async with parts.no_sockets_left():
        with pytest.raises(httpcore2.ConnectError, match=r"192\.0\.2\.1 is not on the tailnet") as caught:
            await api.dial("192.0.2.1", 80, 2)
        assert not isinstance(caught.value, RefusedError)
    assert fake.dials == [("192.0.2.1", 80)]


async def test_a_machine_that_refuses_is_told_from_one_that_cannot_be_reached(
    fake: FakeTailscaled, api: LocalApi
) -> None:
    fake.add_peer("box", ips=("100.64.0.7",))
    async with parts.no_sockets_left():
        with pytest.raises(RefusedError, match=r"100\.64\.0\.7 accepts no connections there"):
            await api.dial("100.64.0.7", 80, 2)
        for status, body in [(502, "dial failure: no route to host"), (500, '{"error": "x"}'), (403, "")]:
            fake.fail("dial", status, body)
            with pytest.raises(httpcore2.ConnectError, match=f"HTTP status {status}") as caught:
                await api.dial("100.64.0.7", 80, 2)
            assert not isinstance(caught.value, RefusedError)


@pytest.mark.parametrize(
    "body", ["dial failure: read: connection reset by peer", '{"error": "REFUSED? refused"}']
)
async def test_a_refusal_is_known_by_its_words(fake: FakeTailscaled, api: LocalApi, body: str) -> None:
    fake.fail("dial", 502, body)
    with pytest.raises(RefusedError):
        await api.dial("100.64.0.7", 80, 2)


async def test_a_dial_that_takes_too_long_is_given_up(fake: FakeTailscaled, api: LocalApi) -> None:
    fake.add_peer("box", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", 80] = "hang"
    async with parts.no_sockets_left():
        began = anyio.current_time()
        with pytest.raises(httpcore2.ConnectTimeout, match=r"100\.64\.0\.7 does not answer"):
            await api.dial("100.64.0.7", 80, 0.05)
        assert anyio.current_time() - began < 2
        await until(lambda: not fake.dialling)


@pytest.mark.parametrize("data", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 101 S"])
async def test_a_dial_that_is_answered_with_garbage_fails(
    fake: FakeTailscaled, api: LocalApi, data: bytes
) -> None:
    fake.garbage("dial", data, raw=True)
    async with parts.no_sockets_left():
        with pytest.raises(httpcore2.ConnectError, match="cannot be asked to connect"):
            await api.dial("100.64.0.7", 80, 2)


async def test_dials_that_are_cancelled_or_late_leave_no_connection(
    fake: FakeTailscaled, api: LocalApi
) -> None:
    fake.add_peer("box", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", 80] = served
    fake.dial_seconds = 0.02

    async def dial(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await (await api.dial("100.64.0.7", 80, 2)).aclose()

    async def dial_late(seconds: float) -> None:
        with contextlib.suppress(httpcore2.ConnectTimeout):
            await (await api.dial("100.64.0.7", 80, seconds)).aclose()

    async with parts.no_sockets_left():
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon((dial, dial_late)[number % 2], number / 1000)
        await until(lambda: not fake.dialling and not fake.tunnels)
