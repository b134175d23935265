"""How a machine is reached: over the interface or through tailscaled, by its name, and by many at once."""

import contextlib
import errno
import ipaddress
import os
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import httpcore2
import httpx2
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from opencode_mcp import Route
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_tailscale import TailscaleSettings, own
from opencode_mcp_tailscale.localapi import LocalApi, RefusedError
from opencode_mcp_tailscale.reach import Interface, Reach, host_header, origin, over
from opencode_mcp_tailscale.status import Status
from support.answering import answering
from support.fake_tailscaled import FakeTailscaled
from support.fleets import until
from tailscale import tailscale_parts as parts
from tailscale.tailscale_parts import candidate, client, machine

pytestmark = pytest.mark.anyio

NOBODY = 65_534


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts.bare(monkeypatch, tmp_path / "state")


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / "s") as one:
        one.add_peer("box", ips=("100.64.0.7", "fd7a::7"))
        yield one
        await until(lambda: not one.tunnels and not one.dialling)


@pytest.fixture
async def reach(fake: FakeTailscaled) -> AsyncGenerator[Reach]:
    async with LocalApi(parts.settings(fake)) as api:
        yield Reach(api)


@pytest.fixture
async def opencode() -> AsyncGenerator[FakeOpenCode]:
    one = FakeOpenCode()
    async with one.serve():
        yield one


def route(reach: Reach, url: str, *, host: str = "box.tail1a2b.ts.net:14096") -> Route:
    """The route to an instance on another machine."""
    return reach.route(url, own=False, vouched=True, host=lambda: host)


def status(*own: str, kernel: bool = True) -> Status:
    me = machine("nself", *own) if own else machine("nself", addresses=())
    return Status(state="Running", kernel=kernel, own=me)


# Which way


def test_urls_have_ipv6_addresses_in_brackets_and_hosts_have_names() -> None:
    v6 = candidate("fd7a::7")
    assert origin(v6, 80) == "http://[fd7a::7]:80"
    assert origin(candidate("100.64.0.7", "fd7a::7"), 80) == "http://100.64.0.7:80"
    assert origin(candidate(own=True), 80) == "http://127.0.0.1:80"
    assert host_header(v6, 80) == {"Host": "box.tail1a2b.ts.net:80"}
    assert host_header(candidate(own=True), 80) == host_header(candidate(name=""), 80) == {}


@pytest.mark.parametrize(
    ("own", "kernel", "direct"),
    [
        (("127.0.0.1",), True, True),
        (("192.0.2.1", "127.0.0.1"), True, False),  # one of them may be somebody else's
        (("127.0.0.1", "127.0.0.2"), True, True),
        (("127.0.0.1",), False, False),
        (("192.0.2.1", "2001:db8::1"), True, False),
        ((), True, False),
    ],
)
async def test_the_interface_is_used_if_it_is_here(
    reach: Reach, own: tuple[str, ...], kernel: bool, direct: bool
) -> None:
    assert not reach.direct
    reach.take(status(*own, kernel=kernel))
    assert reach.direct is direct


async def test_without_a_machine_of_our_own_nothing_is_direct(reach: Reach) -> None:
    reach.take(Status(state="Running", kernel=True))
    assert not reach.direct


async def test_over_the_interface_the_connection_comes_from_its_address(
    fake: FakeTailscaled, reach: Reach
) -> None:
    reach.take(status("127.0.0.9"))
    heard: list[str] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            heard.append(stream.extra(anyio.abc.SocketAttribute.remote_address)[0])

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            stream = await reach.connect(candidate("127.0.0.1"), port, 2)
            assert await stream.read(1) == b""
            await stream.aclose()
            group.cancel_scope.cancel()
    assert heard == ["127.0.0.9"]
    assert fake.dials == []


async def test_without_the_interface_tailscaled_connects(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    reach.take(status("192.0.2.1"))
    fake.reach["100.64.0.7", 80] = fake.reach["fd7a::7", 81] = ("127.0.0.1", opencode.port)
    for where, port in ((candidate("100.64.0.7"), 80), (candidate("fd7a::7"), 81)):
        await (await reach.connect(where, port, 2)).aclose()
    assert fake.dials == [("100.64.0.7", 80), ("fd7a::7", 81)]


async def test_this_machine_is_reached_on_loopback_either_way(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    for way in (status("127.0.0.1"), status("192.0.2.1")):
        reach.take(way)
        await (await reach.connect(candidate("100.64.0.1", own=True), opencode.port, 2)).aclose()
    assert fake.dials == []


@pytest.mark.parametrize("own", ["127.0.0.1", "192.0.2.1"])
async def test_a_refusal_is_known_either_way(reach: Reach, own: str) -> None:
    reach.take(status(own))
    where = candidate("127.0.0.1" if reach.direct else "100.64.0.7")
    with pytest.raises(RefusedError):
        await reach.connect(where, parts.NOWHERE, 2)


async def test_what_is_not_a_refusal_is_not_taken_for_one(fake: FakeTailscaled, reach: Reach) -> None:
    fake.reach["100.64.0.7", 80] = "hang"
    with pytest.raises(httpcore2.ConnectTimeout):
        await reach.connect(candidate(), 80, 0.02)
    with pytest.raises(httpcore2.ConnectError) as caught:
        await reach.connect(candidate("192.0.2.7"), 80, 2)
    assert not isinstance(caught.value, RefusedError)


async def test_an_interface_without_an_address_of_that_kind_connects_to_nobody() -> None:
    interface = Interface()
    interface.own = ["127.0.0.1"]
    with pytest.raises(httpcore2.ConnectError, match="no address on the tailnet at present"):
        await interface.connect_tcp("::1", parts.NOWHERE, 2)


async def test_over_ipv6_the_interface_works_too(opencode: FakeOpenCode, reach: Reach) -> None:
    reach.take(status("127.0.0.1", "::1"))
    six = FakeOpenCode()
    try:
        serving = six.serve(host="::1")
        await serving.__aenter__()
    except OSError:
        pytest.skip("This machine has no IPv6.")
    try:
        where = candidate("::1")
        assert [ipaddress.ip_address("::1")] == list(where.machine.addresses)
        async with client(route(reach, origin(where, six.port))) as asking:
            assert (await asking.get("/global/health")).status_code == 200
    finally:
        await serving.__aexit__(None, None, None)


# Over a route


async def test_a_request_carries_the_machines_name(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    fake.reach["100.64.0.7", 14096] = ("127.0.0.1", opencode.port)
    async with client(route(reach, "http://100.64.0.7:14096")) as asking:
        assert (await asking.get("/global/health")).json()["version"] == "1.18.33"
    assert opencode.requests[-1].headers["host"] == "box.tail1a2b.ts.net:14096"


async def test_a_machine_that_is_renamed_is_called_by_its_new_name_over_the_open_route(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    fake.reach["100.64.0.7", 80] = ("127.0.0.1", opencode.port)
    name = "box.tail1a2b.ts.net:80"
    way = reach.route("http://100.64.0.7:80", own=False, vouched=True, host=lambda: name)
    async with client(way) as asking:
        await asking.get("/global/health")
        name = "chest.tail1a2b.ts.net:80"
        await asking.get("/global/health")
    assert [one.headers["host"] for one in opencode.requests] == ["box.tail1a2b.ts.net:80", name]


@pytest.mark.parametrize("kernel", [True, False])
async def test_nothing_is_sent_while_tailscale_does_not_run(
    fake: FakeTailscaled, reach: Reach, kernel: bool
) -> None:
    reach.take(Status(state="Stopped", kernel=kernel, own=machine("nself", "127.0.0.1")))
    with pytest.raises(httpcore2.ConnectError, match="Tailscale is stopped"):
        await reach.connect(candidate(), 80, 1)
    async with client(route(reach, "http://100.64.0.7:80")) as asking:
        with pytest.raises(httpx2.ConnectError, match="Tailscale is stopped"):
            await asking.get("/")
    assert not fake.dials


@pytest.mark.parametrize(
    ("own", "elsewhere"), [(("192.0.2.1",), True), (("192.0.2.1", "127.0.0.1"), False), ((), False)]
)
def test_another_namespace_is_one_that_has_none_of_the_addresses(
    tmp_path: Path, own: tuple[str, ...], elsewhere: bool
) -> None:
    one = Reach(LocalApi(TailscaleSettings(socket=str(tmp_path / "s"))))
    one.take(status(*own))
    assert one.elsewhere is elsewhere
    one.take(status(*own, kernel=False))
    assert not one.elsewhere


async def test_on_this_machine_nothing_is_sent_to_another_user_who_took_the_port(
    reach: Reach, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{opencode.port}"
    async with client(reach.route(url, own=True, vouched=True, host=str)) as asking:
        assert (await asking.get("/global/health")).status_code == 200
    monkeypatch.setattr(own, "peer_user", lambda connection: 4711)
    heard = len(opencode.requests)
    async with client(reach.route(url, own=True, vouched=True, host=str)) as asking:
        with pytest.raises(httpx2.ConnectError, match="Another user of this machine"):
            await asking.get("/global/health")
    assert len(opencode.requests) == heard


@pytest.mark.parametrize(
    ("holding", "listening", "allowed"),
    [
        (4711, None, False),  # who accepted it, and listens no more
        (4711, os.geteuid(), False),  # who has left the port to this user meanwhile
        (os.geteuid(), 4711, True),
        (os.geteuid(), None, True),
        (None, 4711, False),
        (None, os.geteuid(), True),
        (None, None, True),  # the kernel does not tell
    ],
)
async def test_on_this_machine_it_counts_who_holds_the_other_end_and_only_then_who_listens(
    reach: Reach,
    opencode: FakeOpenCode,
    monkeypatch: pytest.MonkeyPatch,
    holding: int | None,
    listening: int | None,
    allowed: bool,
) -> None:
    url = f"http://127.0.0.1:{opencode.port}"
    ends: list[int] = []

    def holder(connection: socket.socket) -> int | None:
        ends.append(connection.getpeername()[1])
        return holding

    monkeypatch.setattr(own, "peer_user", holder)
    monkeypatch.setattr(own, "listening_user", lambda url: listening)
    monkeypatch.setattr(own, "announced_here", lambda: {"x": url})
    async with client(reach.route(url, own=True, vouched=True, host=str)) as asking:
        if allowed:
            assert (await asking.get("/global/health")).status_code == 200
        else:
            with pytest.raises(httpx2.ConnectError, match="Another user of this machine"):
                await asking.get("/global/health")
    assert ends == [opencode.port]


STRANGER = f"""
import os, socket, sys
os.setuid({NOBODY})
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
server.close()
print(len(connection.recv(1000)), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can be two users.")
async def test_on_this_machine_another_user_who_accepts_and_listens_no_more_gets_nothing(
    reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "listening_user", lambda url: None)  # as it may be by then
    async with await anyio.open_process([sys.executable, "-c", STRANGER]) as stranger:
        assert stranger.stdout is not None
        said = BufferedByteReceiveStream(stranger.stdout)
        port = int(await said.receive_until(b"\n", 100))
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(own, "announced_here", lambda: {"x": url})
        async with client(reach.route(url, own=True, vouched=True, host=str)) as asking:
            with pytest.raises(httpx2.ConnectError, match="Another user of this machine"):
                await asking.get("/", auth=("opencode", "secret"))
        assert await said.receive_until(b"\n", 100) == b"0"


async def test_a_connection_of_this_machine_that_broke_meanwhile_is_an_error_of_httpx(
    reach: Reach, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holder(connection: socket.socket) -> int | None:
        raise OSError(errno.ENOTCONN, "not connected")

    monkeypatch.setattr(own, "peer_user", holder)
    route = reach.route(f"http://127.0.0.1:{opencode.port}", own=True, vouched=True, host=str)
    async with client(route) as asking:
        with pytest.raises(httpx2.ConnectError, match="not connected"):
            await asking.get("/global/health")


def test_what_this_user_announced_is_not_its_own_if_the_kernel_knows_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own, "announced_here", lambda: {"a": "http://127.0.0.1:4096"})
    for user, mine in ((4711, False), (os.geteuid(), True), (None, True)):
        monkeypatch.setattr(own, "listening_user", lambda url, user=user: user)
        assert own.is_mine("http://127.0.0.1:4096") is mine
    assert not own.is_mine("http://127.0.0.1:4097")


async def test_requests_one_after_the_other_use_one_connection(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    fake.reach["100.64.0.7", 80] = ("127.0.0.1", opencode.port)
    async with client(route(reach, "http://100.64.0.7:80")) as asking:
        for _ in range(3):
            await asking.get("/global/health")
        assert fake.tunnels == 1
    assert len(fake.dials) == 1


async def test_a_stream_of_events_and_50_requests_at_once_go_through_tailscaled(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    fake.reach["100.64.0.7", 80] = ("127.0.0.1", opencode.port)
    way = route(reach, "http://100.64.0.7:80")
    everybody = anyio.Event()
    async with parts.no_sockets_left():
        async with client(way) as asking, asking.stream("GET", "/global/event") as events:
            parts_of_it = events.aiter_bytes()
            assert b"server.connected" in await anext(parts_of_it)

            async def follow() -> None:
                async with asking.stream("GET", "/global/event") as other:
                    assert b"server.connected" in await anext(other.aiter_bytes())
                    await everybody.wait()

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(follow)
                await until(lambda: opencode.streams == 51)
                assert fake.tunnels == 51
                opencode.emit("test.event", {"a": 1})
                assert b"test.event" in await anext(parts_of_it)
                everybody.set()
        await until(lambda: not fake.tunnels)
        await opencode.kill()


async def test_a_route_that_is_closed_amid_a_stream_leaves_no_connection(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    fake.reach["100.64.0.7", 80] = ("127.0.0.1", opencode.port)
    way = route(reach, "http://100.64.0.7:80")
    assert way.transport is not None
    async with client(way) as asking:
        await asking.get("/global/health")
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:

            async def follow() -> None:
                with scope:
                    async with asking.stream("GET", "/global/event") as events:
                        async for _ in events.aiter_bytes():
                            pass

            group.start_soon(follow)
            await until(lambda: opencode.streams)
            scope.cancel()
    await until(lambda: not fake.tunnels and not opencode.streams)


async def test_a_machine_that_cannot_be_reached_is_an_error_of_httpx(
    fake: FakeTailscaled, reach: Reach
) -> None:
    async with client(route(reach, "http://100.64.0.7:80")) as asking:
        with pytest.raises(httpx2.ConnectError):
            await asking.get("/")
        fake.reach["100.64.0.7", 80] = "hang"
        with pytest.raises(httpx2.ConnectTimeout):
            await asking.get("/", timeout=0.05)
        fake.reach["100.64.0.7", 80] = parts.answers(b"SSH-2.0\r\n\r\n")
        with pytest.raises(httpx2.RemoteProtocolError):
            await asking.get("/")
        fake.reach["100.64.0.7", 80] = parts.answers(hold=True)
        with pytest.raises(httpx2.ReadTimeout):
            await asking.get("/", timeout=0.05)
        cut = parts.answers(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx")
        fake.reach["100.64.0.7", 80] = cut
        with pytest.raises(httpx2.RemoteProtocolError):
            await asking.get("/")


async def test_a_connection_that_is_open_is_used_once(fake: FakeTailscaled, reach: Reach) -> None:
    async with answering(parts.http(200, b"hello", connection="close")) as url:
        port = httpx2.URL(url).port or 0
        stream = await reach.connect(candidate(own=True), port, 2)
        async with httpx2.AsyncClient(transport=over(stream), trust_env=False) as asking:
            assert (await asking.get("http://x/")).text == "hello"
            with pytest.raises(httpx2.ConnectError, match="The server closed the connection"):
                await asking.get("http://x/")


async def test_a_request_with_a_body_arrives_whole(
    fake: FakeTailscaled, reach: Reach, opencode: FakeOpenCode
) -> None:
    fake.reach["100.64.0.7", 80] = ("127.0.0.1", opencode.port)
    async with client(route(reach, "http://100.64.0.7:80")) as asking:
        with contextlib.suppress(httpx2.HTTPStatusError):
            await asking.post("/session", json={"title": "x" * 300_000})
    assert opencode.requests[-1].body == {"title": "x" * 300_000}
