"""What the client of 2.x does where a server lacks something, or says much besides what it is asked for."""

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import anyio.to_thread
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from opencode_mcp import Route, opencode_auth
from opencode_mcp.opencode.api import OpenCode
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import STRANGERS_BODY, Http, warm_up
from opencode_mcp.testing import Ask, FakeOpenCode, Question, ToolCall
from opencode_mcp.testing import Reply as Says
from support.fleets import Listed, endpoint, only, running_fleet, until
from support.generations import CURRENT, PASSWORD, PREVIEW, MakeFake

pytestmark = pytest.mark.anyio

every_2 = pytest.mark.parametrize("make", [CURRENT, PREVIEW], ids=["2", "2-preview"])


@contextlib.asynccontextmanager
async def client(fake: FakeOpenCode, *, vouched: bool = True) -> AsyncGenerator[OpenCode]:
    """Serve a fake and talk to it."""
    await anyio.to_thread.run_sync(warm_up)
    async with (
        fake.serve(),
        Http(Route(base_url=fake.url), seconds=5, vouched=vouched, auth=opencode_auth(PASSWORD)) as http,
    ):
        yield await detect(http)


async def asking(fake: FakeOpenCode, directory: str = "") -> str:
    """Let a session ask something; return its id."""
    session = fake.create_session("s", directory=directory)
    before = len(fake.questions)
    fake.script(Says(tools=[Ask(questions=[Question()])]))
    fake.prompt(session, "go")
    await until(lambda: len(fake.questions) > before)
    return session


# What a session waits for


@every_2
async def test_where_no_session_lists_its_forms_those_of_its_directory_are_asked_for(make: MakeFake):
    fake = make(form_lists="location")
    async with client(fake) as api:
        here, there = await asking(fake), await asking(fake, "/srv/shop & more")
        beside = await asking(fake)
        snapshot = await api.snapshot()
        asked = sorted((one.session_id, one.kind, one.summary) for one in snapshot.requests)
        assert asked == sorted((one, "question", "Which colour?") for one in (here, there, beside))
        assert snapshot.unasked == frozenset()


@every_2
async def test_what_is_learnt_from_events_stays_where_forms_are_listed_nowhere(make: MakeFake):
    fake, listed = make(form_lists="nowhere"), Listed()
    async with fake.serve(), running_fleet(listed, server_password=PASSWORD) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).streaming)
        session = await asking(fake)
        await until(lambda: only(fleet).instance.waiting_for == "question: Which colour?")
        snapshot = await only(fleet).api.snapshot()
        assert (snapshot.requests, snapshot.unasked) == ((), {session})
        only(fleet).take_stock(snapshot, streaming=True)
        assert only(fleet).instance.waiting_for == "question: Which colour?"


@every_2
async def test_a_permission_is_told_where_no_forms_are(make: MakeFake):
    fake = make(form_lists="nowhere")
    async with client(fake) as api:
        session = fake.create_session("s")
        fake.script(Says(tools=[ToolCall(asks=True)]))
        fake.prompt(session, "go")
        await until(lambda: fake.permissions)
        [asked] = (await api.snapshot()).requests
        assert (asked.session_id, asked.kind) == (session, "permission")


# Messages


class Chatty(FakeOpenCode):
    """Its sessions hold, above each answer, a number of entries that are no messages."""

    above = 0
    bytes_of_each = 10

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for messages, page by page."""
        if not scope.get("path", "").endswith("/message"):
            await super().__call__(scope, receive, send)
            return
        receive = await self.requests.remember(scope, receive)
        query = Request(scope).query_params
        listed: list[dict[str, Any]] = [
            *({"id": f"msg_9{number}", "type": "idle"} for number in range(self.above)),
            {"id": "msg_2", "type": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            {"id": "msg_1", "type": "user", "text": "All well?"},
            *({"id": f"msg_0{number}", "type": "user", "text": "x"} for number in range(100)),
        ]
        for one in listed:
            one["padding"] = "x" * self.bytes_of_each
        if query.get("type"):
            listed = [one for one in listed if one["type"] == query["type"]]
        first, limit = int(query.get("cursor", "0")), int(query["limit"])
        cursor = {"next": str(first + limit)} if first + limit < len(listed) else {}
        await JSONResponse({"data": listed[first : first + limit], "cursor": cursor})(scope, receive, send)


@pytest.mark.parametrize("above", [0, 1, 6, 40, 80])
@pytest.mark.parametrize("limit", [1, 2, 10])
async def test_the_newest_messages_are_found_below_what_is_no_message(above: int, limit: int):
    fake: Chatty = CURRENT(of=Chatty)
    fake.above = above
    async with client(fake) as api:
        found = list(await api.messages("ses_1", limit))
        assert len(found) == limit
        assert (found[-1].text, found[-1].parent_id) == ("Yes.", "msg_1")
        assert len([one for one in fake.requests if one.path.endswith("/message")]) <= 6


async def test_where_a_long_page_is_too_much_a_short_one_is_asked_for():
    fake: Chatty = CURRENT(of=Chatty)
    fake.above, fake.bytes_of_each = 2, STRANGERS_BODY // 10
    async with client(fake, vouched=False) as api:
        [found] = await api.messages("ses_1", 1)
        assert found.text == "Yes."


async def test_of_entries_without_end_that_are_no_messages_a_bounded_number_is_read():
    fake: Chatty = CURRENT(of=Chatty)
    fake.above = 10_000
    async with client(fake) as api:
        assert list(await api.messages("ses_1", 1)) == []
        assert len([one for one in fake.requests if one.path.endswith("/message")]) == 5


# The log


async def test_a_log_that_is_missing_is_told_once_for_each_connection(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "opencode_mcp")
    fake = CURRENT(has_log=False)
    session = fake.create_session("s")
    async with client(fake) as api:
        for _ in range(3):
            assert list(await api.log(session, 0)) == []
    [record] = [one for one in caplog.records if "has no log" in one.getMessage()]
    assert record.levelno < logging.WARNING
    assert session in record.getMessage()
