"""Who is told of what: an index that only some may read."""

import contextlib
import errno
import json
import socket
import struct
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, SocketStream

from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_tailscale import Tailscale, telling
from opencode_mcp_tailscale.index import Entry
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.serving import Member
from opencode_mcp_tailscale.status import Who
from opencode_mcp_tailscale.telling import Telling, may_know
from support.answering import answering
from support.fake_tailscaled import FakeTailscaled, join
from support.fleets import until
from tailscale.announcing_parts import PORT, SECONDS, Desk, desk_at, get, index, settings, until_index

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # all together

NAME = "desk.tail1a2b.ts.net"
ANN, BOB, BUILD = "100.64.1.1", "100.64.1.2", "100.64.1.3"


def member(known: str, *allowed: str) -> Member:
    entry = Entry(id=known, path=f"/i/{known}/", name=known, url="http://127.0.0.1:4096")
    return Member(session=known, entry=entry, allowed=allowed)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / "s", name="desk") as one:
        one.tun = False  # this host has none of its addresses
        one.add_peer("phone", user="ann@example.com", ips=(ANN,))
        one.add_peer("box", user="bob@example.com", ips=(BOB,))
        one.add_peer("build", user="ann@example.com", tags=("tag:build",), ips=(BUILD,))
        yield one


@contextlib.asynccontextmanager
async def telling_of(fake: FakeTailscaled, *members: Member) -> AsyncGenerator[Telling]:
    async with LocalApi(settings(fake.socket)) as api, anyio.create_task_group() as group:
        one = Telling(api)
        one._path = "/secret"
        one.members = members
        await group.start(lambda *, task_status: one.run(task_status=task_status))
        yield one
        group.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def calling(one: Telling) -> AsyncGenerator[SocketStream]:
    port = urlsplit(one.url).port
    assert port is not None
    with anyio.fail_after(SECONDS):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            yield stream


async def said(stream: SocketStream) -> bytes:
    """All that is said until the end, however that comes."""
    heard = b""
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            heard += await stream.receive()
    return heard


async def answer(one: Telling, written: bytes) -> tuple[int, bytes]:
    """Send bytes; return the status and the body, or 0 and what there was."""
    async with calling(one) as stream:
        with contextlib.suppress(anyio.BrokenResourceError):
            await stream.send(written)
        head, parted, body = (await said(stream)).partition(b"\r\n\r\n")
    if not parted:
        return 0, head
    lines = head.split(b"\r\n")
    if not lines[0].startswith(b"HTTP/1.1 ") or not written.startswith(b"HEAD"):
        assert f"content-length: {len(body)}".encode() in lines
    return int(lines[0].split()[1]), body


def request(*forwarded: str, method: str = "GET", more: str = "") -> bytes:
    headers = "".join(f"X-Forwarded-For: {one}\r\n" for one in forwarded)
    return f"{method} /secret HTTP/1.1\r\nHost: desk\r\n{headers}{more}\r\n".encode()


async def asked(one: Telling, *forwarded: str, **options: str) -> tuple[int, list[str]]:
    """Ask as tailscaled does for a caller; return the status and what is told of."""
    status, body = await answer(one, request(*forwarded, **options))
    return status, [each["id"] for each in json.loads(body)["instances"]] if status == 200 else []


# Who may know


@pytest.mark.parametrize(
    ("who", "allowed", "may"),
    [
        (None, (), True),
        (Who(user="", tags=()), (), True),
        (None, ("ann@example.com",), False),
        (Who(user="ann@example.com", tags=()), ("ann@example.com",), True),
        (Who(user="Ann@Example.COM", tags=()), ("ann@example.com",), True),
        (Who(user="bob@example.com", tags=()), ("ann@example.com",), False),
        (Who(user="bob@example.com", tags=()), ("ann@example.com", "bob@example.com"), True),
        (Who(user="", tags=("tag:a", "tag:b")), ("tag:b",), True),
        (Who(user="", tags=("tag:a",)), ("tag:b", "ann@example.com"), False),
        (Who(user="", tags=()), ("ann@example.com",), False),
        (Who(user="tag:b", tags=()), ("ann@example.com",), False),
        (Who(user="tag:b", tags=()), ("tag:b",), False),
        (Who(user="", tags=("ann@example.com",)), ("ann@example.com",), False),
        (Who(user="a.b/c", tags=("a.b/c",)), ("a.b/c",), False),
        (Who(user="", tags=(), capabilities=frozenset({"ann@example.com", "tag:b"})), ("tag:b",), False),
        (Who(user="", tags=("tag:x",), capabilities=frozenset({"a.b/c"})), ("a.b/c",), True),
        (Who(user="", tags=("tag:x",), capabilities=frozenset({"a.b/C"})), ("a.b/c",), False),
        (Who(user="\u212aim@example.com", tags=()), ("kim@example.com",), False),
        (Who(user="kim@example.com", tags=()), ("\u212aim@example.com",), False),
        (Who(user="kim@example.com\n", tags=()), ("kim@example.com",), False),
    ],
)
def test_who_is_named_may_know(who: Who | None, allowed: tuple[str, ...], may: bool) -> None:
    assert may_know(who, member("k1", *allowed)) is may


@pytest.mark.parametrize(
    ("caller", "allowed", "told"),
    [
        (ANN, "ann@example.com", True),
        (BOB, "ann@example.com", False),
        (BUILD, "tag:build", True),
        (BUILD, "ann@example.com", False),  # what is tagged is its owner's no more
        (BUILD, "tagged-devices", False),
        (ANN, "tag:build", False),
        ("100.64.1.99", "ann@example.com", False),
    ],
)
async def test_the_control_plane_says_who_has_an_address(
    fake: FakeTailscaled, caller: str, allowed: str, told: bool
) -> None:
    async with telling_of(fake, member("k1", allowed)) as one:
        assert await asked(one, caller) == ((200, ["k1"]) if told else (403, []))
        assert fake.asked["whois"] == 1


async def test_a_capability_that_is_granted_towards_this_machine_lets_know(fake: FakeTailscaled) -> None:
    granted = {"example.com/cap/opencode": None}
    fake.whois[BOB] = {"Node": {}, "UserProfile": {"LoginName": "bob@example.com"}, "CapMap": granted}
    async with telling_of(fake, member("k1", "example.com/cap/opencode")) as one:
        assert await asked(one, BOB) == (200, ["k1"])
        assert await asked(one, ANN) == (403, [])


async def test_each_is_told_of_what_may_be_known_and_of_nothing_else(fake: FakeTailscaled) -> None:
    members = [member("anns", "ann@example.com"), member("open"), member("builds", "tag:build", "x@y")]
    async with telling_of(fake, *members) as one:
        assert await asked(one, ANN) == (200, ["anns", "open"])
        assert await asked(one, BOB) == (200, ["open"])
        assert await asked(one, BUILD) == (200, ["open", "builds"])
        assert await asked(one, "100.64.1.99") == (200, ["open"])
        assert await asked(one) == (200, ["open"])
        one.members = members[:1]
        assert await asked(one, BOB) == (403, [])


@pytest.mark.parametrize(
    "forwarded",
    [
        (),
        (ANN, ANN),
        (BOB, ANN),
        (ANN, BOB),
        (f"{ANN}, {BOB}",),
        (f"{BOB}, {ANN}",),
        (f"{ANN},{ANN}",),
        ("",),
        ("nobody",),
        ("127.0.0.1",),
        ("\x80\xff",),
        ("x" * 5000,),
    ],
)
async def test_who_does_not_come_from_one_address_is_nobody(
    fake: FakeTailscaled, forwarded: tuple[str, ...]
) -> None:
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        status, body = await answer(one, request(*forwarded))
        assert status in (403, 503)
        assert body == b""
        assert await asked(one, ANN) == (200, ["k1"])


async def test_other_headers_make_nobody_somebody_else(fake: FakeTailscaled) -> None:
    more = f"Forwarded: for={ANN}\r\nX-Real-IP: {ANN}\r\nTailscale-User-Login: ann@example.com\r\n"
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        assert await asked(one, BOB, more=more) == (403, [])
        assert await asked(one, more=more) == (403, [])


@pytest.mark.parametrize("fault", ["fail", "garbage", "cut", "stop"])
async def test_if_tailscaled_cannot_say_who_it_is_nobody_is_told(fake: FakeTailscaled, fault: str) -> None:
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        match fault:
            case "fail":
                fake.fail("whois", 500, "no")
            case "garbage":
                fake.garbage("whois", b"\xff[", raw=True)
            case "cut":
                fake.cut("whois")
            case _:
                await fake.stop()
        assert await asked(one, ANN) == (503, [])
        fake.mend("whois")
        if fault == "stop":
            await fake.start()
        assert await asked(one, ANN) == (200, ["k1"])


@pytest.mark.parametrize("words", [b"", b"null", b"[]", b'"x"', b'{"Node":[],"UserProfile":7}', b"{"])
async def test_a_somebody_who_is_not_understood_is_nobody(fake: FakeTailscaled, words: bytes) -> None:
    fake.garbage("whois", words)
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        assert await asked(one, ANN) == (403, [])


async def test_a_tailscaled_that_does_not_answer_costs_only_that_caller(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_SECONDS", 0.1)
    fake.hang("whois", times=1)
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        assert await answer(one, request(ANN)) == (0, b"")
        assert await asked(one, ANN) == (200, ["k1"])


# Bad callers


@pytest.mark.parametrize(
    "target",
    ["/", "/secre", "/secret2", "/secret/x", "//secret", "/secret//", "http://x/secret", "*", "/\xff"],
)
async def test_who_does_not_know_the_path_is_told_nothing(fake: FakeTailscaled, target: str) -> None:
    async with telling_of(fake, member("k1", "ann@example.com"), member("open")) as one:
        for method in ("GET", "HEAD", "POST"):
            written = request(ANN, method=method).replace(b"/secret", target.encode("latin-1"))
            assert await answer(one, written) in ((404, b""), (0, b""))
        assert fake.asked["whois"] == 0
        # as Go joins paths
        assert (await answer(one, request(ANN).replace(b"/secret", b"/secret/")))[0] == 200


async def test_the_path_is_a_secret(fake: FakeTailscaled) -> None:
    async with LocalApi(settings(fake.socket)) as api, anyio.create_task_group() as group:
        paths: set[str] = set()
        for _ in range(2):
            one = Telling(api)
            await group.start(lambda *, task_status, one=one: one.run(task_status=task_status))
            paths.add(urlsplit(one.url).path)
            assert await asked(one, ANN) == (404, [])
        assert len(paths) == 2
        assert all(len(path) > 40 for path in paths)
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    "written",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /secret HTTP/1.1\r\n\r\n",  # without Host
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /secret HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET /secret HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GET /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /secret HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n",
        b"GET /secret HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"x" * 100_000,
        b"\r\n" * 50_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HT",
        b"",
    ],
)
async def test_who_speaks_no_http_is_told_nothing_and_harms_nobody(
    fake: FakeTailscaled, written: bytes
) -> None:
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        async with calling(one) as stream:
            with contextlib.suppress(anyio.BrokenResourceError):
                await stream.send(written)
                await stream.send_eof()
            assert (await said(stream)).partition(b"\r\n")[0] in (b"", b"HTTP/1.1 403 ", b"HTTP/1.1 404 ")
        assert await asked(one, ANN) == (200, ["k1"])


async def test_the_answer_to_head_is_that_to_get_without_its_body(fake: FakeTailscaled) -> None:
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        assert await answer(one, request(ANN, method="HEAD")) == (200, b"")
        assert await answer(one, request(BOB, method="HEAD")) == (403, b"")
        assert await asked(one, ANN) == (200, ["k1"])


@pytest.mark.parametrize(
    ("method", "more", "status"),
    [
        ("POST", "Content-Length: 3\r\n\r\nabc", 405),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", 405),
        ("PUT", "Expect: 100-continue\r\nContent-Length: 1000\r\n", 405),
        ("CONNECT", "", 405),
        ("OPTIONS", "Origin: http://evil.example\r\n", 405),
        ("GET", "Content-Length: 1000\r\n\r\nabc", 200),
        ("GET", "Upgrade: websocket\r\nConnection: Upgrade\r\n", 200),
        ("GET", "Connection: keep-alive\r\n", 200),
    ],
)
async def test_other_requests_than_to_read_are_refused_and_harm_nobody(
    fake: FakeTailscaled, method: str, more: str, status: int
) -> None:
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        for caller, right in ((ANN, status), (BOB, max(status, 403))):
            async with calling(one) as stream:
                await stream.send(request(caller, method=method, more=more))
                heard = await said(stream)
            assert heard.startswith(f"HTTP/1.1 {right} ".encode())
            assert (b"k1" in heard) is (right == 200)
        assert await asked(one, ANN) == (200, ["k1"])


async def test_requests_that_follow_at_once_get_one_answer(fake: FakeTailscaled) -> None:
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        async with calling(one) as stream:
            await stream.send(request(BOB) + request(ANN))
            heard = await said(stream)
        assert heard.startswith(b"HTTP/1.1 403 ")
        assert b"k1" not in heard


async def test_who_is_slow_is_sent_away(fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_SECONDS", 0.1)
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        async with calling(one) as stream:
            await stream.send(request(ANN)[:-2])
            assert await said(stream) == b""
        assert await asked(one, ANN) == (200, ["k1"])


@pytest.mark.parametrize("written", [b"", request(ANN)[:-2], request(ANN)])
async def test_who_hangs_up_harms_nobody(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    gone = anyio.Event()
    answered = 0
    whois = LocalApi.whois

    async def late(api: LocalApi, address: str) -> Who | None:
        nonlocal answered
        await gone.wait()
        answered += 1
        return await whois(api, address)

    monkeypatch.setattr(LocalApi, "whois", late)
    async with telling_of(fake, member("k1", "ann@example.com")) as one:
        for _ in range(10):
            async with calling(one) as stream:
                await stream.send(written)
                at_once = struct.pack("ii", 1, 0)  # with a reset
                stream.extra(SocketAttribute.raw_socket).setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, at_once
                )
        gone.set()
        assert await asked(one, ANN) == (200, ["k1"])
        assert answered == (11 if written == request(ANN) else 1)


async def test_who_hangs_up_before_being_taken_in_harms_nobody(fake: FakeTailscaled) -> None:
    async with telling_of(fake, member("k1")) as one:
        for _ in range(40):
            with socket.socket() as caller:
                caller.setblocking(False)
                caller.connect_ex(("127.0.0.1", urlsplit(one.url).port))
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert await asked(one, ANN) == (200, ["k1"])


@pytest.mark.slow
async def test_fifty_at_once_are_all_answered(fake: FakeTailscaled) -> None:
    answers: list[tuple[int, list[str]]] = []

    async def ask(one: Telling, caller: str) -> None:
        answers.append(await asked(one, caller))

    async with telling_of(fake, member("k1", "ann@example.com")) as one, anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(ask, one, (ANN, BOB)[number % 2])
    assert sorted(answers) == [(200, ["k1"])] * 25 + [(403, [])] * 25


@pytest.mark.slow
async def test_who_says_nothing_keeps_nobody_waiting_for_long(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_SECONDS", 0.2)
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(telling_of(fake, member("k1", "ann@example.com")))
        for _ in range(70):
            await stack.enter_async_context(calling(one))
        assert await asked(one, ANN) == (200, ["k1"])


async def test_no_more_are_taken_in_than_can_be_answered(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_in = 0
    serve = Telling._serve

    async def counted(one: Telling, stream: SocketStream) -> None:
        nonlocal taken_in
        taken_in += 1
        await serve(one, stream)

    monkeypatch.setattr(Telling, "_serve", counted)
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(telling_of(fake, member("k1")))
        for _ in range(40):
            await stack.enter_async_context(calling(one))
        await until(lambda: taken_in == 32)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert taken_in == 32


async def test_a_machine_without_file_descriptors_left_tells_again_later(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_PAUSE_SECONDS", 0.001)
    accept, failures = socket.socket.accept, 40

    def fail(listening: socket.socket) -> Any:
        nonlocal failures
        if listening.family != socket.AF_INET:
            return accept(listening)
        failures -= 1
        if failures >= 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", fail)
    async with telling_of(fake, member("k1")) as one:
        assert await asked(one, ANN) == (200, ["k1"])
        assert failures < 0


async def test_who_cannot_listen_says_so(fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "create_server", fail)
    async with desk_at(fake.socket) as desk:
        assert "Too many open files" in await desk.start("shop", allow_users=("x@y",)).failure()
        assert "shop" not in str(fake.serve_config)


@pytest.mark.parametrize(
    ("answer", "answers"),
    [(b"HTTP/1.1 403 \r\n\r\n", True), (b"", False)],
)
async def test_whether_somebody_tells_is_seen_from_any_answer(answer: bytes, answers: bool) -> None:
    async with answering(answer) as url:
        assert await telling.answers(f"{url}/x") is answers
    assert await telling.answers(f"{url}/x") is False


async def test_who_hangs_does_not_answer(fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_ANSWER_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        assert await telling.answers(f"http://127.0.0.1:{hanging.getsockname()[1]}/x") is False
    for url in ("", "http://[", "http://127.0.0.1:99999/", "http://127.0.0.1:0/"):
        assert await telling.answers(url) is False
    async with telling_of(fake) as one:
        monkeypatch.setattr(telling, "_ANSWER_SECONDS", SECONDS)
        assert await telling.answers(one.url) is True


async def test_it_listens_on_loopback_alone(fake: FakeTailscaled) -> None:
    async with telling_of(fake, member("k1")) as one:
        assert one.url.startswith("http://127.0.0.1:")
    with pytest.raises(OSError, match=r"refused|failed"):
        async with calling(one):
            pass


# Over two tailscaleds


@pytest.fixture
async def desk(fake: FakeTailscaled) -> AsyncGenerator[Desk]:
    async with desk_at(fake.socket) as one:
        yield one


@contextlib.asynccontextmanager
async def gateway_at(
    tmp_path: Path, name: str, fake: FakeTailscaled, **given: Any
) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / name, name=name, **given) as one:
        one.tun = False
        join(fake, one)
        yield one


@pytest.mark.slow
async def test_a_gateway_lists_what_its_user_may_know_and_tells_the_reason_for_the_rest(
    fake: FakeTailscaled, desk: Desk, tmp_path: Path
) -> None:
    async with (
        FakeOpenCode().serve() as opencode,
        gateway_at(tmp_path, "anns", fake, user="ann@example.com") as anns,
        gateway_at(tmp_path, "bobs", fake, user="bob@example.com") as bobs,
    ):
        await desk.announce("shop", opencode.url, allow_users=("Ann@example.com",))

        async with LocalApi(settings(anns.socket)) as api:
            gateway = Tailscale(settings(anns.socket), api)
            assert [one.name for one in await gateway.discover()] == ["shop"]
        # bob looks at ann's machine too
        async with LocalApi(settings(bobs.socket)) as api:
            gateway = Tailscale(settings(bobs.socket, users=("ann@example.com",)), api)
            assert list(await gateway.discover()) == []
            reasons = [one.reason for one in gateway.rejected() if "desk" in one.source]
        assert reasons == ["It does not tell you its instances: see TAILSCALE_ALLOW_USERS there."]


async def test_a_tagged_gateway_is_told_by_its_tag(fake: FakeTailscaled, desk: Desk, tmp_path: Path) -> None:
    async with gateway_at(tmp_path, "ci", fake) as gateway:
        gateway.update_me(tags=("tag:CI",))
        one = await desk.announce("shop", allow_users=("tag:CI",))
        await until_index(gateway.socket, NAME, "shop")
        await one.leave()
        await desk.announce("shop", allow_users=("ann@example.com",))
        assert (await get(gateway.socket, NAME)).status_code == 403


async def test_a_callers_own_word_of_where_it_comes_from_does_not_count(
    fake: FakeTailscaled, desk: Desk, tmp_path: Path
) -> None:
    async with gateway_at(tmp_path, "bobs", fake, user="bob@example.com") as bobs:
        await desk.announce("shop", allow_users=("ann@example.com",))

        response = await get(
            bobs.socket, NAME, headers={"X-Forwarded-For": ANN, "Tailscale-User-Login": "ann@example.com"}
        )

        assert (response.status_code, response.text) == (403, "")


async def test_who_restricts_an_instance_restricts_no_other_one(
    fake: FakeTailscaled, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.announcement._LOOK_SECONDS", 0.01)
    async with (
        gateway_at(tmp_path, "anns", fake, user="ann@example.com") as anns,
        gateway_at(tmp_path, "bobs", fake, user="bob@example.com") as bobs,
    ):
        await desk.announce("open")
        secret = await desk.announce("secret", allow_users=("ann@example.com",))
        await until_index(anns.socket, NAME, "open", "secret")
        assert await index(bobs.socket, NAME) == {"open"}

        await secret.leave()
        await until_index(anns.socket, NAME, "open")


async def test_when_the_holder_goes_its_heir_tells_by_the_same_rules(
    fake: FakeTailscaled, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.announcement._LOOK_SECONDS", 0.01)
    async with (
        gateway_at(tmp_path, "anns", fake, user="ann@example.com") as anns,
        gateway_at(tmp_path, "bobs", fake, user="bob@example.com") as bobs,
    ):
        first = await desk.announce("open")
        await desk.announce("secret", allow_users=("ann@example.com",))
        await first.leave()

        await until_index(anns.socket, NAME, "secret")
        assert (await get(bobs.socket, NAME)).status_code == 403


async def test_what_a_bad_caller_sends_through_tailscaled_withdraws_nothing(
    fake: FakeTailscaled, desk: Desk, tmp_path: Path
) -> None:
    async with gateway_at(tmp_path, "anns", fake, user="ann@example.com") as anns:
        one = await desk.announce("shop", allow_users=("ann@example.com",))
        for method in ("HEAD", "POST", "OPTIONS", "DELETE"):
            await get(anns.socket, NAME, method=method)

        await until_index(anns.socket, NAME, "shop")
        assert not one.ended.is_set()
        assert fake.asked["POST serve-config"] == 1
        assert PORT == 14096
