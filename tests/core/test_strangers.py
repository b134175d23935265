"""Whose the other end of a connection is, and that credentials go to nobody else."""

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from opencode_mcp import Route, listening_user, opencode_auth, peer_user
from opencode_mcp.errors import StrangerError, UnreachableError
from opencode_mcp.opencode import strangers
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http, warm_up
from opencode_mcp.opencode.probe import probe
from opencode_mcp.opencode.strangers import refuse_stranger
from opencode_mcp.state import listening
from opencode_mcp.testing import FakeOpenCode

if sys.platform != "win32":
    import fcntl
    import termios

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a port is"),
]

PASSWORD = "s3cret"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(local: str, remote: str, state: str, uid: int, inode: int) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1\n"


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    warm_up()


@pytest.fixture(params=["127.0.0.1", "::1", "dual"])
def server(request: pytest.FixtureRequest) -> Generator[tuple[socket.socket, str]]:
    """A socket that listens, and the address at which it is reached."""
    if request.param == "127.0.0.1":
        with socket.create_server(("127.0.0.1", 0)) as one:
            yield one, "127.0.0.1"
        return
    dual = request.param == "dual"
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=dual) as one:
        yield one, "127.0.0.1" if dual else "::1"


@pytest.mark.parametrize("accepted", [True, False])
def test_the_other_end_is_whose_it_is(server: tuple[socket.socket, str], accepted: bool) -> None:
    one, host = server
    with socket.create_connection((host, one.getsockname()[1])) as connection:
        other = one.accept()[0] if accepted else None
        assert peer_user(connection) == os.geteuid()
        if other is not None:
            one.close()  # nobody listens any more, and still it is known
            assert peer_user(connection) == os.geteuid()
            other.close()


def test_over_a_connection_whose_end_was_closed_nothing_is_sent() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_connection(one.getsockname()) as connection,
    ):
        one.accept()[0].close()
        one.close()
        with pytest.raises(OSError, match="reset"):
            peer_user(connection)


@pytest.mark.parametrize("then", [7, None])
def test_where_no_end_is_to_be_seen_an_empty_line_makes_sure_that_there_is_one(
    monkeypatch: pytest.MonkeyPatch, then: int | None
) -> None:
    found = [None, then]
    monkeypatch.setattr(listening, "_end_user", lambda connection: found.pop(0))
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_connection(one.getsockname()) as connection,
    ):
        other = one.accept()[0]
        assert peer_user(connection) == then
        assert found == []
        assert other.recv(10) == b"\r\n"
        other.close()


def test_one_that_never_takes_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_end_user", lambda connection: None)
    monkeypatch.setattr(listening, "_ARRIVAL_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with socket.create_connection(one.getsockname()) as connection:
            while not waits(connection):  # until the other side has no room, though this one has
                connection.send(bytes(1024))
            with pytest.raises(OSError, match="timed out"):
                peer_user(connection)


def waits(connection: socket.socket) -> bool:
    """Whether something that was sent has not arrived, and does not shortly."""
    deadline = time.monotonic() + 0.05
    while any(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))):
        if time.monotonic() > deadline:
            return True
    return False


def test_who_asks_while_the_tables_are_read_shares_the_next_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    readings = list[int]()

    def read_text(path: Path, encoding: str) -> str:
        readings.append(len(readings))
        begun.set()
        assert go_on.wait(20)
        return f"{HEAD}{len(readings)}"

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(listening, "_TABLES", (str(tmp_path),))
    tables, asked = listening._Reading(), time.monotonic()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(tables.since, asked)
        assert begun.wait(20)
        later = time.monotonic()
        others = [pool.submit(tables.since, later) for _ in range(8)]
        go_on.set()
        assert first.result() == ["1"]
        assert [one.result() for one in others] == [["2"]] * 8
        assert tables.since(later) == ["2"]
        assert tables.since(time.monotonic()) == ["3"]


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_tables_that_nobody_may_see_tell_nothing(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    failing(monkeypatch, error)
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_connection(one.getsockname()) as connection,
    ):
        assert peer_user(connection) is None
        assert listening_user(f"http://127.0.0.1:{one.getsockname()[1]}") is None


def test_tables_that_cannot_be_read_now_let_nobody_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda: OSError(errno.EMFILE, "Too many open files"))
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_connection(one.getsockname()) as connection,
    ):
        with pytest.raises(OSError, match="open files"):
            peer_user(connection)
        assert listening_user(f"http://127.0.0.1:{one.getsockname()[1]}") is None


def failing(monkeypatch: pytest.MonkeyPatch, error: Callable[[], OSError]) -> None:
    def read_text(path: Path, encoding: str) -> str:
        raise error()

    monkeypatch.setattr(Path, "read_text", read_text)


class Connected:
    """A connection as far as its names go."""

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 0x2000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 0x1000


SERVER, CLIENT, ANY = "0100007F:1000", "0100007F:2000", "00000000:0000"
MAPPED = f"{'0' * 16}FFFF0000"


@pytest.mark.parametrize(
    ("lines", "user"),
    [
        ([line(SERVER, CLIENT, "01", 7, 20)], 7),
        ([line(CLIENT, SERVER, "01", 8, 21), line(SERVER, CLIENT, "01", 7, 20)], 7),
        ([line(SERVER, ANY, "0A", 8, 19), line(SERVER, CLIENT, "01", 7, 20)], 7),
        ([line(SERVER, ANY, "0A", 8, 19), line(SERVER, CLIENT, "01", 0, 0)], 8),
        ([line(SERVER, "0100007F:2001", "01", 7, 20)], None),
        ([line(SERVER, ANY, "0A", 8, 19)], None),
        ([line(MAPPED + SERVER, MAPPED + CLIENT, "01", 7, 20)], 7),
        ([], None),
    ],
)
def test_what_the_tables_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], user: int | None
) -> None:
    table = tmp_path / "tcp"
    table.write_text(HEAD + "".join(lines))
    monkeypatch.setattr(listening, "_TABLES", (str(table), str(tmp_path / "none")))
    monkeypatch.setattr(listening, "_is_here", lambda address: False)
    assert peer_user(Connected()) == user  # pyright: ignore[reportArgumentType]


def test_an_end_that_nobody_accepted_or_will_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "tcp"
    table.write_text(HEAD + line(SERVER, CLIENT, "01", 0, 0))
    monkeypatch.setattr(listening, "_TABLES", (str(table),))
    with pytest.raises(ConnectionResetError):
        peer_user(Connected())  # pyright: ignore[reportArgumentType]


def test_elsewhere_nobody_tells_so_everybody_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "peer_user", lambda connection: 4711)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname()) as ours:
        with pytest.raises(StrangerError) as refused:
            refuse_stranger(ours, {7}, "Do this.")
        port = one.getsockname()[1]
        told = f"Another user of this machine (uid 4711) has port {port}, and gets no password."
        assert (refused.value.told, refused.value.mend) == (told, "Do this.")
        assert str(refused.value) == f"{told} Do this."
        monkeypatch.setattr(sys, "platform", "darwin")
        refuse_stranger(ours, {7})


async def test_credentials_go_over_connections_that_were_looked_at_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeOpenCode(password=PASSWORD)
    looked = list[int](), list[int]()
    owner = os.geteuid()

    def peer(connection: socket.socket) -> int:
        looked[0].append(connection.getsockname()[1])
        looked[1].append(len(fake.requests))
        return owner

    monkeypatch.setattr(strangers, "peer_user", peer)
    async with fake.serve():
        route = Route(base_url=fake.url, users={os.geteuid()}, mend="Ask them.")
        async with Http(route, seconds=5, vouched=True, auth=opencode_auth(PASSWORD)) as http:
            api = await detect(http)
            assert looked[1] == [1]  # once it had asked for the password, before it got it
            await api.ping()
            assert len(looked[0]) == 1  # the connection is used again
        owner = 4711
        heard = len(fake.requests)
        async with Http(route, seconds=5, vouched=True, auth=opencode_auth(PASSWORD)) as http:
            with pytest.raises(StrangerError, match=r"uid 4711.*Ask them\."):
                await detect(http)
        assert len(fake.requests) == heard + 1


async def test_a_look_that_is_cancelled_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, go_on = anyio.Event(), anyio.Event()

    def peer(connection: socket.socket) -> int:
        anyio.from_thread.run_sync(looking.set)
        anyio.from_thread.run(go_on.wait)
        return os.geteuid()

    monkeypatch.setattr(strangers, "peer_user", peer)
    async with FakeOpenCode(password=PASSWORD).serve() as fake, anyio.create_task_group() as group:
        route = Route(base_url=fake.url, users={os.geteuid()})
        async with Http(route, seconds=5, vouched=True, auth=opencode_auth(PASSWORD)) as http:

            async def ask() -> None:
                with pytest.raises(UnreachableError, match="given up"):
                    await http.get("/global/health")

            group.start_soon(ask)
            await looking.wait()
        go_on.set()


async def test_a_probe_looks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "peer_user", lambda connection: 4711)
    async with FakeOpenCode(password=PASSWORD).serve() as fake:

        def ask(users: set[int] | None) -> str:
            return probe(fake.url, seconds=5, username="opencode", password=PASSWORD, users=users).version

        assert await anyio.to_thread.run_sync(ask, {4711}) == fake.version
        assert await anyio.to_thread.run_sync(ask, None) == fake.version
        heard = len(fake.requests)
        with pytest.raises(StrangerError, match="uid 4711"):
            await anyio.to_thread.run_sync(ask, {7})
        assert len(fake.requests) == heard + 1


def test_a_route_cannot_promise_what_nobody_looks_at() -> None:
    import httpx2

    with pytest.raises(ValueError, match="users"):
        Route(base_url="http://127.0.0.1:1", transport=httpx2.AsyncHTTPTransport(), users={0})
