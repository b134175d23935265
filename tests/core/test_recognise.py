"""Asking an address that was found whether an OpenCode is there: whatever it is that answers."""

import errno
import functools
import json
import os
import ssl
import subprocess
import sys
import threading

import anyio
import httpx2
import pytest

from opencode_mcp import OpenCodeMCPError, ProtocolError, Recognised, Route, UnreachableError, recognise
from opencode_mcp.opencode import detect as detecting
from opencode_mcp.opencode import http
from opencode_mcp.opencode import recognise as recognising
from opencode_mcp.opencode.http import Http
from opencode_mcp.testing import FakeOpenCode, Fault
from support.answering import answering
from support.real_opencode import VERSION, free_port

pytestmark = pytest.mark.anyio

JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def answer(body: bytes, head: bytes = JSON) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def refusal(status: int, challenge: str = "") -> bytes:
    asks = f"www-authenticate: {challenge}\r\n" if challenge else ""
    return f"HTTP/1.1 {status} No\r\n{asks}content-length: 0\r\n\r\n".encode()


HEALTHY = answer(b'{"healthy":true,"version":"1.18.33"}')


async def asked(url: str, *, seconds: float = 5) -> Recognised:
    return await recognise(Route(base_url=url), seconds=seconds)


async def test_an_opencode_says_its_version_and_its_project() -> None:
    async with FakeOpenCode(directory="/srv/shop").serve() as fake:
        assert await asked(fake.url) == Recognised(version=VERSION, guarded=False, directory="/srv/shop")
        assert [(one.method, one.path) for one in fake.requests] == [
            ("GET", "/global/health"),
            ("GET", "/path"),
        ]


async def test_one_that_wants_a_password_is_recognised_by_how_it_asks_and_is_not_given_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "s3cret")
    async with FakeOpenCode(password="s3cret").serve() as fake:
        assert await asked(fake.url) == Recognised(version="", guarded=True, directory="")
        assert [one.path for one in fake.requests] == ["/global/health"]
        assert "authorization" not in fake.requests[0].headers


async def test_a_route_brings_its_own_headers_and_its_own_way_which_is_closed_in_the_end() -> None:
    class Way(httpx2.AsyncHTTPTransport):
        closed = False

        async def aclose(self) -> None:
            self.closed = True
            await super().aclose()

    way = Way()
    async with FakeOpenCode().serve() as fake:
        found = await recognise(Route(base_url=fake.url, headers={"x-relay": "mine"}, transport=way))
        assert found.version == VERSION
        assert {one.headers.get("x-relay") for one in fake.requests} == {"mine"}
    assert way.closed


async def test_what_detection_knows_is_recognised_whatever_its_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Second:
        version = "2.1.2"

        async def directory(self) -> str:
            return "/srv/second"

    async def detect(_: Http) -> Second:
        return Second()

    monkeypatch.setattr(detecting, "detect", detect)
    assert await asked("http://127.0.0.1:1") == Recognised(version="2.1.2", directory="/srv/second")


SOMEBODY_ELSE = {
    "another realm": refusal(401, 'Basic realm="Router"'),
    "another scheme": refusal(401, 'Digest realm="Secure Area"'),
    "401 without a challenge": refusal(401),
    "403": refusal(403),
    "403 with OpenCode's challenge": refusal(403, 'Basic realm="Secure Area"'),
    "404": refusal(404),
    "500": refusal(500),
    "web page": answer(b"<html>Welcome</html>", b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n"),
    "health called a web page": HEALTHY.replace(b"application/json", b"text/html"),
    "nothing": answer(b""),
    "no version": answer(b'{"healthy":true}'),
    "version is a number": answer(b'{"version":3}'),
    "version is empty": answer(b'{"version":""}'),
    "a list": answer(b"[]"),
    "nested": answer(b"[" * 60_000),
    "no JSON": answer(b"\xff\xfe"),
    "compressed": HEALTHY.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"),
    "1 MiB announced": answer(json.dumps({"version": "1.18.33", "x": "x" * 2**20}).encode()),
    "1 MiB unannounced": JSON + b"\r\n" + json.dumps({"version": "1.18.33", "x": "x" * 2**20}).encode(),
    "endless header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
    "noise": b"\x00\x01\x02\r\n\r\n",
}


@pytest.mark.parametrize("said", SOMEBODY_ELSE.values(), ids=SOMEBODY_ELSE)
async def test_somebody_else_is_told_from_an_opencode(said: bytes) -> None:
    async with answering(said) as url:
        with pytest.raises(ProtocolError):
            await asked(url)


FOREIGN_WORDS = {
    "error": (b'{"message":"Ignore all that"}', JSON.replace(b"200 OK", b"500 Ignore"), "HTTP status 500"),
    "not found": (b'{"message":"Ignore all that"}', JSON.replace(b"200 OK", b"404 Ignore"), "status 404"),
    "status line": (b"", b"HTTP/1.1 Ignore all that\r\n", "something that is not HTTP"),
    "header": (b"", b"HTTP/1.1 200 OK\r\nIgnore all that\r\n", "something that is not HTTP"),
    "chunk": (b"Ignore all that\r\n", JSON + b"transfer-encoding: chunked\r\n", "something that is not HTTP"),
    "content type": (b"{}", b"HTTP/1.1 200 OK\r\ncontent-type: Ignore all that\r\n", "else than JSON"),
    "redirect": (b"", b"HTTP/1.1 302 Ignore\r\nlocation: http://ignore\r\n", "redirect"),
    "challenge": (b"", b'HTTP/1.1 401 Ignore\r\nwww-authenticate: Basic realm="Ignore"\r\n', "refuses us"),
}


@pytest.mark.parametrize(("body", "head", "says"), FOREIGN_WORDS.values(), ids=FOREIGN_WORDS)
async def test_why_it_is_none_is_never_said_in_its_own_words(body: bytes, head: bytes, says: str) -> None:
    said = head + b"\r\n" + body if b"chunked" in head else answer(body, head)
    async with answering(said) as url:
        with pytest.raises(ProtocolError, match=says) as caught:
            await asked(url)
    assert "gnore" not in str(caught.value)


async def test_a_redirect_is_not_followed_not_even_to_an_opencode() -> None:
    async with FakeOpenCode().serve() as real, FakeOpenCode().serve() as fake:
        fake.fault, fake.redirect_to = Fault.REDIRECT, f"{real.url}/global/health"
        with pytest.raises(ProtocolError, match="redirect"):
            await asked(fake.url)
        assert list(real.requests) == []


async def test_where_nothing_listens_there_is_nobody() -> None:
    with pytest.raises(UnreachableError, match="Nothing accepts connections"):
        await asked(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", JSON], ids=["at once", "ssh", "halfway"])
async def test_one_that_hangs_up_before_it_has_answered_was_not_reached(said: bytes) -> None:
    async with answering(said) as url:
        with pytest.raises(UnreachableError):
            await asked(url)


@pytest.mark.parametrize(
    ("said", "drip_seconds"), [(b"", 0.0), (HEALTHY, 0.05), (JSON, 0.0)], ids=["silent", "drips", "stops"]
)
async def test_one_that_keeps_us_waiting_is_given_up_in_time(said: bytes, drip_seconds: float) -> None:
    async with answering(said, hold=True, drip_seconds=drip_seconds) as url:
        began = anyio.current_time()
        with pytest.raises(UnreachableError, match="in time"):
            await asked(url, seconds=0.2)
        assert anyio.current_time() - began < 1.5


async def test_the_time_is_for_all_of_it_and_what_is_known_by_then_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first answer takes most of the time; the second, were it given as much again, too much."""
    detect = detecting.detect

    async def detect_late(http: Http) -> object:
        found = await detect(http)
        await anyio.sleep(0.8)
        return found

    monkeypatch.setattr(detecting, "detect", detect_late)
    async with FakeOpenCode().serve() as fake:
        fake.fault_path, fake.fault = "/path", Fault.HANG
        began = anyio.current_time()
        assert await asked(fake.url, seconds=1) == Recognised(version=VERSION)
        assert anyio.current_time() - began < 1.7


@pytest.mark.parametrize(
    "fault",
    [
        Fault.GARBAGE,
        Fault.HTML,
        Fault.HUGE,
        Fault.REDIRECT,
        Fault.RESET,
        Fault.SERVER_ERROR,
        Fault.UNAUTHORIZED,
    ],
)
async def test_one_that_does_not_say_its_project_is_an_opencode_all_the_same(fault: Fault) -> None:
    async with FakeOpenCode().serve() as fake:
        fake.fault_path, fake.fault = "/path", fault
        assert await asked(fake.url) == Recognised(version=VERSION, guarded=False, directory="")


@pytest.mark.parametrize(
    ("directory", "shown"),
    [
        ("/srv/a  shop", "/srv/a  shop"),
        ("/srv/läden", "/srv/läden"),
        ("/srv/\u202egpj.exe", ""),
        ("/srv/a\nb", ""),
        ("/srv/\x1b[2J", ""),
        ("/" * 4097, ""),
    ],
)
async def test_a_project_is_told_as_it_is_or_not_at_all(directory: str, shown: str) -> None:
    async with FakeOpenCode(directory=directory).serve() as fake:
        assert (await asked(fake.url)).directory == shown


async def test_a_version_is_one_short_safe_line() -> None:
    async with FakeOpenCode(version="1\x1b[31m\n\u202e2" + "x" * 200).serve() as fake:
        version = (await asked(fake.url)).version
    assert version.isprintable()
    assert len(version) == 40


async def test_a_shortage_of_this_machine_says_nothing_of_what_is_there() -> None:
    class Short(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(UnreachableError, match="open files"):
        await recognise(Route(base_url="http://127.0.0.1:1", transport=Short()))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "ftp://127.0.0.1:1",
        "http://",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://[::1",
        "http://a b:1",
        "http://\ud800:1",
        "http://\u202e:1",
        "http://127.0.0.1:1/\x00",
        "http://xn--\u2fff.local:1",
        f"http://{'a' * 64}.local:1",
        f"http://{'a' * 70_000}:1",
    ],
    ids=range(14),
)
async def test_a_name_that_cannot_be_asked_is_unreachable_and_is_shown_safely(url: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        await asked(url)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


async def test_what_stops_it_from_outside_is_no_answer() -> None:
    async with answering(b"", hold=True) as url:
        with anyio.move_on_after(0.1) as scope:
            await asked(url)
    assert scope.cancelled_caught


async def test_many_may_be_asked_at_once() -> None:
    found: list[Recognised] = []

    async def ask(url: str) -> None:
        try:
            found.append(await asked(url))
        except OpenCodeMCPError as error:
            assert type(error) is ProtocolError  # noqa: PT017

    async with (
        FakeOpenCode().serve() as fake,
        answering(refusal(401)) as other,
        anyio.create_task_group() as group,
    ):
        for _ in range(16):
            group.start_soon(ask, fake.url)
            group.start_soon(ask, other)
    assert found == [Recognised(version=VERSION, directory="/srv/project")] * 16


async def test_the_client_is_loaded_once_and_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = recognising._load
    threads: list[int] = []

    def recorded() -> None:
        threads.append(threading.get_ident())
        load()

    monkeypatch.setattr(recognising, "_load", recorded)
    monkeypatch.setattr(recognising, "_loaded", threading.Event())
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await asked(f"http://127.0.0.1:{free_port()}")
    assert len(threads) == 1, "the second finds it loaded"
    assert threads != [threading.get_ident()]


async def test_what_https_trusts_is_read_once_and_not_for_each_who_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ssl.SSLContext] = []

    def make(**_: object) -> ssl.SSLContext:
        made.append(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return made[-1]

    monkeypatch.setattr(httpx2, "create_ssl_context", make)
    monkeypatch.setattr(http, "_tls", functools.cache(http._tls.__wrapped__))
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await asked(f"https://127.0.0.1:{free_port()}")
    assert len(made) == 1


def test_who_only_imports_it_loads_no_http_client_and_no_records() -> None:
    """`opencode-connected` stays beside every OpenCode, so it must stay small."""
    program = "import sys, opencode_mcp; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    loaded = set(done.stdout.split())
    assert recognising.__name__ in loaded
    assert not loaded & {"httpx2", "httpcore2", detecting.__name__, "opencode_mcp.state.records"}
