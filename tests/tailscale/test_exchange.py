"""One request over a connection: what is read of the answer, and when that is too much."""

import anyio.lowlevel
import httpcore2
import pytest

from opencode_mcp_tailscale.exchange import MOST_PARTS, Exchange, TooMuchError

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Fed(httpcore2.AsyncNetworkStream):
    """A connection on which some parts come, and then the end."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)
        self.sent = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await anyio.lowlevel.checkpoint()
        return self.parts.pop(0) if self.parts else b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.sent += buffer
        raise httpcore2.WriteError("It does not read.")


async def body(*parts: bytes, most_bytes: int = 1000) -> bytes:
    exchange = Exchange(Fed(*parts))
    status, headers = await exchange.begin("GET", "/x", {"Host": "box"})
    assert status == 200
    assert headers
    return await exchange.body(most_bytes)


async def test_an_answer_is_read_though_nobody_reads_the_request() -> None:
    assert await body(CHUNKED, b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n") == b"abc"
    assert await body(b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n", b"a", b"b") == b"ab"


async def test_what_came_after_an_upgrade_is_not_lost() -> None:
    exchange = Exchange(Fed(b"HTTP/1.1 101 S\r\nupgrade: ts-dial\r\n\r\nabc", b"def"))
    status, _ = await exchange.begin(
        "POST", "/", {"Host": "h", "Connection": "upgrade", "Upgrade": "ts-dial"}
    )
    assert status == 101
    stream = exchange.upgraded
    assert [await stream.read(2), await stream.read(2), await stream.read(9)] == [b"ab", b"c", b"def"]


@pytest.mark.parametrize("together", [True, False])
async def test_an_answer_in_too_many_parts_is_given_up(together: bool) -> None:
    parts = [b"1\r\na\r\n"] * (MOST_PARTS + 1)
    with pytest.raises(TooMuchError, match="comes in more than 256 parts"):
        await body(CHUNKED, *([b"".join(parts)] if together else parts))


async def test_an_answer_that_is_put_off_without_end_is_given_up() -> None:
    with pytest.raises(TooMuchError, match="comes in more than 256 parts"):
        await body(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)


async def test_an_answer_that_is_too_long_is_given_up() -> None:
    with pytest.raises(TooMuchError, match="is larger than 1 kB"):
        await body(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n" + b"a" * 1001)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 101 S\r\n\r\n"])
async def test_what_is_no_answer_is_an_error_of_httpcore(answer: bytes) -> None:
    with pytest.raises(httpcore2.RemoteProtocolError):
        await body(answer)


async def test_what_cannot_be_sent_is_an_error_of_httpcore() -> None:
    for name in ("box\r\nx: y", "\ud800"):
        with pytest.raises(httpcore2.LocalProtocolError):
            await Exchange(Fed()).begin("GET", "/", {"Host": name})
