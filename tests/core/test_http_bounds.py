"""How much is read of a server: less, if nobody vouches for it."""

import json

import pytest

from opencode_mcp import ProtocolError, Route
from opencode_mcp.errors import TooLargeError
from opencode_mcp.opencode.http import MAX_BODY, MAX_EVENT, STRANGERS_BODY, STRANGERS_EVENT, Http, warm_up
from support.answering import answering

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: "


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    warm_up()


def body(size: int, *, announced: bool) -> bytes:
    length = b"content-length: %d\r\n" % size if announced else b""
    return ANSWER + b"application/json\r\n" + length + b"\r\n" + json.dumps("x" * (size - 2)).encode()


def events(size: int) -> bytes:
    return ANSWER + b"text/event-stream\r\n\r\ndata: 1\n\ndata:" + b"x" * (size - 5) + b"\n\n"


def to(url: str, *, vouched: bool) -> Http:
    return Http(Route(base_url=url), seconds=5, vouched=vouched)


def told(*, vouched: bool) -> str:
    return "too much to be read.$" if vouched else "too much to be read. It is not vouched for"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("vouched", "wanted", "bound"),
    [
        (True, MAX_BODY, MAX_BODY),
        (True, 4 * MAX_BODY, 4 * MAX_BODY),
        (False, MAX_BODY, STRANGERS_BODY),
        (False, 4 * MAX_BODY, STRANGERS_BODY),
    ],
)
async def test_an_answer_is_read_up_to_its_bound(
    vouched: bool, wanted: int, bound: int, announced: bool
) -> None:
    async with answering(body(bound, announced=announced)) as url, to(url, vouched=vouched) as client:
        assert len(await client.get("/x", max_bytes=wanted)) == bound - 2
    async with answering(body(bound + 1, announced=announced)) as url, to(url, vouched=vouched) as client:
        with pytest.raises(TooLargeError, match=f"more than {bound} bytes, {told(vouched=vouched)}"):
            await client.get("/x", max_bytes=wanted)


async def test_who_expects_little_reads_no_more_of_a_stranger() -> None:
    async with answering(body(101, announced=False)) as url, to(url, vouched=False) as client:
        with pytest.raises(TooLargeError, match=r"more than 100 bytes, too much to be read\.$"):
            await client.get("/x", max_bytes=100)


@pytest.mark.parametrize(("vouched", "bound"), [(True, MAX_EVENT), (False, STRANGERS_EVENT)])
async def test_an_event_is_read_up_to_its_bound(vouched: bool, bound: int) -> None:
    async def hear(url: str) -> None:
        async with to(url, vouched=vouched) as client, client.stream("/x") as source:
            async for one in source:
                heard.append(len(one.data))

    heard: list[int] = []
    async with answering(events(bound)) as url:
        await hear(url)
    assert heard == [1, bound - 5]
    async with answering(events(bound + 1)) as url:
        with pytest.raises(TooLargeError, match=f"more than {bound} bytes, {told(vouched=vouched)}"):
            await hear(url)
    assert heard == [1, bound - 5, 1]


async def test_a_stream_of_something_else_is_told_without_its_words() -> None:
    async with answering(ANSWER + b"text/ignore-all-that\r\n\r\n") as url, to(url, vouched=True) as client:
        with pytest.raises(ProtocolError, match="something else than events") as caught:
            async with client.stream("/x"):
                pass
    assert "ignore" not in str(caught.value)
