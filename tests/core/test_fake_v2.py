"""`FakeOpenCode(generation=2)`: the contract of OpenCode 2.1.2, and where its preview differs."""

import contextlib
import functools
import importlib
import importlib.util
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, cast

import anyio
import anyio.lowlevel
import httpx2
import pydantic
import pytest

from opencode_mcp.testing import Ask, FakeOpenCode, Fault, Gate, Question, Reply, SubAgent, ToolCall

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WAIT_SECONDS = 15
HERE = "/srv/project"
TYPED = importlib.util.find_spec("opencode") is not None and importlib.util.find_spec("httpx") is not None

Json = dict[str, Any]
both = pytest.mark.parametrize("preview", [False, True], ids=["2.1.2", "preview"])


def check(kind: str, value: Any) -> Any:
    """Hold a value against a typed model of the published contract, where that package is installed."""
    if TYPED:
        adapter = _adapter(kind)
        read = adapter.validate_python(value)
        _known(read)
        assert adapter.dump_python(read, mode="json", by_alias=True, exclude_unset=True) == value
    return value


@functools.cache
def _adapter(kind: str) -> pydantic.TypeAdapter[Any]:
    types = importlib.import_module("opencode.types")
    return pydantic.TypeAdapter(getattr(types, kind))


def _known(read: Any) -> None:
    """The contract knows every kind and every field in it."""
    if isinstance(read, pydantic.BaseModel):
        assert not type(read).__name__.startswith("Unknown"), read
        assert not read.model_extra, read
        for key in type(read).model_fields:
            _known(getattr(read, key))
    elif isinstance(read, list):
        for item in cast("list[Any]", read):
            _known(item)


class Events:
    """What came over a stream so far."""

    def __init__(self) -> None:
        self.records: list[Json] = []
        self.comments = 0
        self.ended = False
        self._news = anyio.Event()

    async def read(self, lines: AsyncIterator[str]) -> None:
        async for line in lines:
            if line.startswith(":"):
                assert line == ": heartbeat"
                self.comments += 1
            elif line:
                self.records.append(json.loads(line.removeprefix("data: ")))
            self._tell()
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def until(self, condition: Callable[[], Any]) -> Any:
        with anyio.fail_after(WAIT_SECONDS):
            while not (found := condition()):
                await self._news.wait()
        return found

    def kinds(self, session_id: str) -> list[str]:
        """The types of the events of a session, `session.` left out, deltas in a row once."""
        found: list[str] = []
        for record in self.records:
            if record["data"].get("sessionID", record["data"].get("form", {}).get("sessionID")) == session_id:
                kind = record["type"].removeprefix("session.")
                if not (found and kind.endswith(".delta") and found[-1] == kind):
                    found.append(kind)
        return found

    def data(self, kind: str) -> list[Json]:
        return [record["data"] for record in self.records if record["type"] == kind]

    async def one(self, kind: str, times: int = 1) -> Json:
        """The data of an event, once it came so many times."""
        await self.until(lambda: len(self.data(kind)) >= times)
        return self.data(kind)[times - 1]


class Subject:
    """A fake, and requests to it."""

    def __init__(self, fake: FakeOpenCode, client: httpx2.AsyncClient) -> None:
        self.fake = fake
        self.client = client

    async def get(self, path: str, **query: Any) -> Any:
        response = await self.client.get(path, params=query)
        assert response.status_code == 200, (response.status_code, response.text)
        assert response.headers["content-type"] == "application/json"
        return response.json()

    async def post(self, path: str, body: Any = None, status: int = 200, **query: Any) -> Any:
        response = await self.client.post(path, json=body, params=query)
        assert response.status_code == status, (response.status_code, response.text)
        return response.json() if response.content else None

    async def refused(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, Json]:
        response = await self.client.request(method, path, json=body, params=query)
        return response.status_code, response.json() if response.content else {}

    async def new_session(self, **body: Any) -> str:
        return (await self.post("/api/session", body))["data"]["id"]

    async def prompt(self, session_id: str, text: str = "go", **more: Any) -> Json:
        return (await self.post(f"/api/session/{session_id}/prompt", {"text": text, **more}))["data"]

    async def messages(self, session_id: str) -> list[Json]:
        answer = await self.get(f"/api/session/{session_id}/message", order="asc", limit=200)
        return answer["data"]

    async def wait(self, session_id: str) -> None:
        await self.post(f"/api/experimental/session/{session_id}/wait", status=204)

    @contextlib.asynccontextmanager
    async def events(self, path: str = "/api/event", **query: Any) -> AsyncGenerator[Events]:
        async with self.client.stream("GET", path, params=query) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream"
            events = Events()
            async with anyio.create_task_group() as group:
                group.start_soon(events.read, response.aiter_lines())
                await events.until(lambda: events.records)
                yield events
                group.cancel_scope.cancel()

    async def log(self, session_id: str, **query: Any) -> list[Json]:
        """The stored events of a session; the stream ends by itself."""
        async with self.events(f"/api/experimental/session/{session_id}/log", **query) as events:
            await events.until(lambda: events.ended)
        return events.records


@contextlib.asynccontextmanager
async def served(fake: FakeOpenCode, port: int = 0) -> AsyncGenerator[Subject]:
    assert fake.password is not None
    async with (
        fake.serve(port),
        httpx2.AsyncClient(
            base_url=fake.url, auth=(fake.username, fake.password), timeout=WAIT_SECONDS, trust_env=False
        ) as client,
    ):
        yield Subject(fake, client)


@pytest.fixture
async def server() -> AsyncGenerator[Subject]:
    async with served(FakeOpenCode(HERE, generation=2)) as subject:
        yield subject


def in_order(found: list[str], expected: str) -> None:
    """The words of `expected` are a subsequence of `found`."""
    rest = iter(found)
    for wanted in expected.split():
        assert any(kind == wanted for kind in rest), f"{wanted!r} is missing in {found}"


async def test_info_tells_version_and_process_and_the_preview_tells_them_elsewhere():
    async with served(FakeOpenCode(generation=2, pid=4711)) as server:
        info = check("ServerInfo", await server.get("/api/info"))
        assert (info["version"], info["pid"], info["urls"]) == ("2.1.2", 4711, [server.fake.url])
        assert await server.refused("GET", "/api/health") == (404, {})
    async with served(FakeOpenCode(generation=2, preview=True, pid=4711)) as server:
        health = await server.get("/api/health")
        assert health == {"healthy": True, "version": "2.0.0-preview", "pid": 4711}
        assert await server.refused("GET", "/api/info") == (404, {})


@pytest.mark.parametrize("path", ["/", "/global/health", "/session", "/event", "/api/nothing", "/doc"])
async def test_an_unknown_path_is_404_and_empty(server: Subject, path: str):
    response = await server.client.get(path)
    assert (response.status_code, response.content) == (404, b"")


async def test_a_known_path_with_another_method_is_404(server: Subject):
    assert await server.refused("POST", "/api/info") == (404, {})


@pytest.mark.parametrize("path", ["/api/info", "/api/session", "/api/event", "/no/such/route"])
async def test_every_path_wants_the_password_that_was_made_up(path: str):
    fake = FakeOpenCode(generation=2)
    assert fake.password
    assert fake.password != FakeOpenCode(generation=2).password
    async with fake.serve(), httpx2.AsyncClient(base_url=fake.url, trust_env=False) as client:
        for auth in (None, ("opencode", "wrong"), ("someone", fake.password)):
            response = await client.get(path, auth=auth)
            assert (response.status_code, response.content) == (401, b"")
            assert response.headers["www-authenticate"] == 'Basic realm="Secure Area"'


async def test_a_password_can_be_given():
    async with served(FakeOpenCode(generation=2, password="sesame")) as server:
        assert server.fake.password == "sesame"
        await server.get("/api/info")


async def test_a_session_can_be_created_read_listed_renamed_and_deleted(server: Subject):
    body = {"title": "one of a kind", "location": {"directory": "/srv/other"}, "agent": "plan"}
    async with server.events() as events:
        created = check("SessionInfo", (await server.post("/api/session", body))["data"])
        assert created["location"] == {"directory": "/srv/other"}
        assert "outcome" not in created
        path = f"/api/session/{created['id']}"
        assert (await server.get(path))["data"] == created
        assert (await server.get("/api/session"))["data"] == [created]
        assert (await server.client.patch(path, json={"title": "another"})).status_code == 204
        assert (await server.get(path))["data"]["title"] == "another"
        assert (await server.client.delete(path)).status_code == 204
        await events.one("session.deleted")
    status, body = await server.refused("GET", path)
    assert (status, body["_tag"], body["sessionID"]) == (404, "SessionNotFoundError", created["id"])
    assert events.kinds(created["id"]) == ["created", "renamed", "deleted"]
    for record in events.records:
        check("Event", record)


async def test_a_session_without_location_and_title_is_the_servers_own_and_has_no_title(server: Subject):
    session = (await server.post("/api/session"))["data"]
    assert session["location"] == {"directory": HERE}
    assert "title" not in session
    assert (await server.refused("POST", "/api/session", {"title": 7}))[1]["_tag"] == "InvalidRequestError"


async def test_the_list_is_newest_first_and_narrows_by_directory_parent_and_title(server: Subject):
    fake = server.fake
    first = fake.create_session("find me, first")
    other = fake.create_session("elsewhere", directory="/srv/other")
    child = fake.create_session("a child", parent=first)
    last = fake.create_session("find me, last")

    async def ids(**query: Any) -> list[str]:
        answer = check("SessionsResponse", await server.get("/api/session", **query))
        return [session["id"] for session in answer["data"]]

    assert await ids() == [last, child, other, first]
    assert await ids(order="asc") == [first, other, child, last]
    assert await ids(directory=HERE) == [last, child, first]
    assert await ids(directory=f"{HERE}/") == []
    assert await ids(parentID="null") == [last, other, first]
    assert await ids(parentID=first) == [child]
    assert await ids(search="FIND me") == [last, first]
    assert (await server.refused("GET", "/api/session", order="up"))[0] == 400
    assert (await server.refused("GET", "/api/session", limit="0"))[0] == 400


async def test_pages_follow_one_another_by_their_cursors(server: Subject):
    made = [server.fake.create_session(f"Session {number}") for number in range(60)][::-1]
    first = await server.get("/api/session")
    assert [session["id"] for session in first["data"]] == made[:50]
    second = await server.get("/api/session", cursor=first["cursor"]["next"])
    assert [session["id"] for session in second["data"]] == made[50:]
    assert "next" not in second["cursor"]
    back = await server.get("/api/session", cursor=second["cursor"]["previous"])
    assert back["data"] == first["data"]
    status, body = await server.refused("GET", "/api/session", cursor="x")
    assert (status, check("InvalidCursorErrorBody", body)["_tag"]) == (400, "InvalidCursorError")
    status, body = await server.refused("GET", "/api/session", cursor=first["cursor"]["next"], order="asc")
    assert (status, body["_tag"]) == (400, "InvalidRequestError")


async def test_the_events_of_a_plain_turn_come_in_order_and_in_their_shape(server: Subject):
    server.fake.script(Reply(chunks=["Hello ", "world"], reasoning=["Let ", "me think"]))
    async with server.events() as events:
        session = await server.new_session(title="A title")
        item = check("SessionInboxUser", await server.prompt(session, "Say hello"))
        await events.one("session.execution.succeeded")
        await events.one("session.usage.updated", 2)
    assert " ".join(events.kinds(session)) == (
        "created inbox.enqueued execution.started inbox.delivered step.started "
        "reasoning.started reasoning.delta reasoning.ended text.started text.delta text.ended "
        "step.streamed step.ended usage.updated execution.succeeded usage.updated"
    )
    for record in events.records:
        check("Event", record)
    delivered = await events.one("session.inbox.delivered")
    assert delivered == {"sessionID": session, "inboxID": item["id"]}
    deltas = events.data("session.text.delta")
    assert [delta["delta"] for delta in deltas] == ["Hello ", "world"]
    assert {(delta["assistantMessageID"], delta["ordinal"]) for delta in deltas} == {
        (events.data("session.step.started")[0]["assistantMessageID"], 0)
    }
    assert events.data("session.text.ended")[0]["text"] == "Hello world"
    stored = [record["durable"]["seq"] for record in events.records if "durable" in record]
    assert stored == list(range(len(stored)))


async def test_the_envelope_says_where_but_for_executions_and_what_is_stored(server: Subject):
    async with server.events() as events:
        session = await server.new_session(location={"directory": "/srv/other"})
        await server.prompt(session)
        await events.one("session.usage.updated", 2)
    hello = events.records[0]
    assert (hello["type"], hello["data"], "created" in hello) == ("server.connected", {}, False)
    for record in events.records[1:]:
        kind: str = record["type"]
        somewhere = not kind.startswith(("session.execution.", "session.usage."))
        assert record.get("location") == ({"directory": "/srv/other"} if somewhere else None)
        volatile = kind.endswith(".delta") or kind == "session.usage.updated"
        assert ("durable" in record) is not volatile
        assert record["id"].startswith("evt_")
        assert record["created"] > 1_700_000_000_000


async def test_messages_are_newest_first_and_end_with_what_became_of_the_execution(server: Subject):
    server.fake.script(Reply(tools=[ToolCall(says="I look.")], text="Done."))
    session = await server.new_session()
    await server.prompt(session, "Look")
    await server.wait(session)
    path = f"/api/session/{session}/message"
    answer = check("SessionMessagesResponse", await server.get(path))
    assert [one["type"] for one in answer["data"]] == ["idle", "assistant", "assistant", "user"]
    idle, last, first, prompt = answer["data"]
    assert idle["outcome"] == "succeeded"
    assert (prompt["text"], last["finish"], first["finish"]) == ("Look", "stop", "tool-calls")
    assert last["content"] == [{"type": "text", "text": "Done."}]
    assert [part["type"] for part in first["content"]] == ["text", "tool"]
    tool = first["content"][1]
    assert (tool["name"], tool["state"]["status"]) == ("bash", "completed")
    assert tool["state"]["content"] == [{"type": "text", "text": "hi\n"}]
    assert [one["id"] for one in (await server.get(path, limit=1))["data"]] == [idle["id"]]
    assert (await server.get(path, order="asc"))["data"] == answer["data"][::-1]
    only = await server.get(path, type="assistant", limit=1)
    assert [one["id"] for one in only["data"]] == [last["id"]]
    more = await server.get(path, cursor=only["cursor"]["next"])
    assert [one["id"] for one in more["data"]] == [first["id"]]
    assert (await server.get(f"{path}/{last['id']}"))["data"] == last
    assert (await server.refused("GET", f"{path}/msg_none"))[1]["_tag"] == "MessageNotFoundError"
    info = (await server.get(f"/api/session/{session}"))["data"]
    assert (info["outcome"], info["time"]["idle"] > 0, info["title"]) == ("succeeded", True, "Look")


async def test_a_title_follows_the_first_execution(server: Subject):
    async with server.events() as events:
        session = await server.new_session()
        await server.prompt(session, "What is this about")
        await events.one("session.renamed")
        in_order(events.kinds(session), "execution.succeeded renamed")
    assert (await server.get(f"/api/session/{session}"))["data"]["title"] == "What is this about"


async def test_a_prompt_with_an_id_is_taken_once_and_the_id_belongs_to_it(server: Subject):
    session = await server.new_session()
    first = await server.prompt(session, "hello", id="msg_one")
    await server.wait(session)
    assert await server.prompt(session, "hello", id="msg_one") == first
    await server.wait(session)
    assert [one["type"] for one in await server.messages(session)] == ["user", "assistant", "idle"]
    status, body = await server.refused(
        "POST", f"/api/session/{session}/prompt", {"text": "other", "id": "msg_one"}
    )
    assert (status, check("ConflictErrorBody", body)["_tag"]) == (409, "ConflictError")


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({}, "text"),
        ({"text": 7}, "text"),
        ({"text": "x", "delivery": "now"}, "delivery"),
        ({"text": "x", "id": "7"}, "id"),
    ],
)
async def test_a_bad_prompt_is_400_and_names_the_key(server: Subject, body: Json, key: str):
    session = await server.new_session()
    status, answer = await server.refused("POST", f"/api/session/{session}/prompt", body)
    assert (status, check("InvalidRequestErrorBody", answer)["_tag"]) == (400, "InvalidRequestError")
    assert key in answer["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("", "/message", "/inbox", "/permission", "/form")),
        *(("POST", path) for path in ("/prompt", "/interrupt")),
        ("DELETE", ""),
    ],
)
async def test_an_unknown_session_is_404(server: Subject, method: str, path: str):
    status, body = await server.refused(method, f"/api/session/ses_none{path}")
    assert (status, check("SessionNotFoundErrorBody", body)["_tag"]) == (404, "SessionNotFoundError")


async def test_queued_prompts_run_one_after_the_other_in_the_same_execution(server: Subject):
    gate = Gate()
    server.fake.script(Reply(text="One", gate=gate), Reply(text="Two"), Reply(text="Three"))
    async with server.events() as events:
        session = await server.new_session(title="A title")
        await server.prompt(session, "first", delivery="queue")
        await events.one("session.text.started")
        for text in ("second", "third"):
            await server.prompt(session, text, delivery="queue")
        waiting = (await server.get(f"/api/session/{session}/inbox"))["data"]
        assert [check("SessionInboxUser", item)["payload"]["text"] for item in waiting] == ["second", "third"]
        assert [one["type"] for one in await server.messages(session)] == ["user", "assistant"]
        gate.open()
        await events.one("session.execution.succeeded")
    assert events.kinds(session).count("execution.started") == 1
    texts = [one["text"] for one in await server.messages(session) if one["type"] == "user"]
    assert texts == ["first", "second", "third"]


async def test_a_prompt_that_steers_joins_at_the_next_step_and_goes_before_queued_ones(server: Subject):
    gate = Gate()
    tools = [ToolCall(says="One")]
    server.fake.script(Reply(tools=tools, text="Two", gate=gate), Reply(text="Three"))
    async with server.events() as events:
        session = await server.new_session(title="A title")
        await server.prompt(session, "first")
        await events.one("session.text.started")
        await server.prompt(session, "queued", delivery="queue")
        await server.prompt(session, "steers")
        gate.open()
        await events.one("session.execution.succeeded")
    shown = [
        one.get("text") or "".join(part.get("text", "") for part in one["content"])
        for one in await server.messages(session)
        if one["type"] != "idle"
    ]
    assert shown == ["first", "One", "steers", "Two", "queued", "Three"]
    assert events.kinds(session).count("execution.started") == 1


async def test_a_prompt_that_does_not_resume_waits_until_it_steers(server: Subject):
    session = await server.new_session()
    item = await server.prompt(session, "later", delivery="queue", resume=False)
    path = f"/api/session/{session}/inbox/{item['id']}"
    assert (await server.get("/api/session/active"))["data"] == {}
    assert (await server.client.patch(path, json={"delivery": "steer"})).status_code == 204
    await server.wait(session)
    assert (await server.messages(session))[0]["text"] == "later"


async def test_a_prompt_that_waits_can_be_cancelled(server: Subject):
    session = await server.new_session()
    item = await server.prompt(session, "never", resume=False)
    assert (await server.client.delete(f"/api/session/{session}/inbox/{item['id']}")).status_code == 204
    assert (await server.get(f"/api/session/{session}/inbox"))["data"] == []


async def test_active_names_what_runs_on_the_whole_server(server: Subject):
    server.fake.script(Reply(never_finishes=True))
    async with server.events() as events:
        session = await server.new_session(location={"directory": "/srv/other"})
        await server.prompt(session)
        await events.one("session.step.started")
        active = (await server.get("/api/session/active"))["data"]
    assert active == {session: {"type": "running"}}


async def test_an_interrupt_keeps_the_text_and_parks_what_waits(server: Subject):
    gate = Gate()
    gate.release()
    server.fake.script(Reply(chunks=["one ", "two"], gate=gate), Reply(text="Answer"), Reply(text="More"))
    async with server.events() as events:
        session = await server.new_session(title="A title")
        await server.prompt(session, "first")
        await events.one("session.text.delta")
        await server.prompt(session, "parked", delivery="queue")
        path = f"/api/session/{session}/interrupt"
        assert check("SessionInterruptResponse", await server.post(path)) == {"interrupted": True}
        assert (await events.one("session.execution.interrupted"))["reason"] == "user"
        assert await server.post(path) == {"interrupted": False}
        assert (await events.one("session.step.failed"))["error"]["type"] == "aborted"
        assert (await events.one("session.text.ended"))["text"] == "one "
        assert len((await server.get(f"/api/session/{session}/inbox"))["data"]) == 1
        *_, cut, idle = await server.messages(session)
        assert (cut["finish"], cut["error"]["type"], cut["content"][0]["text"]) == (
            "error",
            "aborted",
            "one ",
        )
        assert (idle["type"], idle["outcome"]) == ("idle", "interrupted")
        await server.prompt(session, "next", delivery="queue")
        await events.one("session.execution.succeeded")
    for record in events.records:
        check("Event", record)
    prompts = [one["text"] for one in await server.messages(session) if one["type"] == "user"]
    assert prompts == ["first", "parked", "next"]


async def test_an_interrupt_that_resumes_goes_on_with_what_steers(server: Subject):
    gate = Gate()
    server.fake.script(Reply(text="One", gate=gate), Reply(text="Two"))
    async with server.events() as events:
        session = await server.new_session()
        await server.prompt(session, "first")
        await events.one("session.text.started")
        await server.prompt(session, "queued", delivery="queue")
        await server.prompt(session, "steers", delivery="steer")
        await server.post(f"/api/session/{session}/interrupt", resume="true")
        await events.one("session.execution.succeeded")
    waiting = (await server.get(f"/api/session/{session}/inbox"))["data"]
    assert [item["payload"]["text"] for item in waiting] == ["queued"]


async def test_a_provider_error_fails_step_and_execution(server: Subject):
    server.fake.script(Reply(text="So far", error="no such luck"))
    async with server.events() as events:
        session = await server.new_session()
        await server.prompt(session)
        failed = await events.one("session.execution.failed")
    problem = {"type": "provider.invalid-request", "message": "no such luck", "status": 400}
    assert failed["error"] == problem
    in_order(events.kinds(session), "text.ended step.streamed step.failed execution.failed")
    for record in events.records:
        check("Event", record)
    answer = check("SessionMessagesResponse", await server.get(f"/api/session/{session}/message"))
    assert [one.get("error") for one in answer["data"]] == [problem, problem, None]
    assert (await server.get(f"/api/session/{session}"))["data"]["outcome"] == "failed"


async def test_a_model_that_is_not_there_fails_without_a_step(server: Subject):
    session = await server.new_session(model={"providerID": "fake", "id": "nope"})
    async with server.events() as events:
        await server.prompt(session)
        failed = await events.one("session.execution.failed")
    assert failed["error"] == {"type": "provider.no-route", "message": "Model unavailable: fake/nope"}
    assert "step.started" not in events.kinds(session)
    assert [one["type"] for one in await server.messages(session)] == ["user", "idle"]


async def test_the_events_of_a_tool_call_come_in_order(server: Subject):
    server.fake.script(Reply(tools=[ToolCall(), ToolCall(fails="no such file")], text="Done."))
    async with server.events() as events:
        session = await server.new_session(title="A title")
        await server.prompt(session)
        await events.one("session.execution.succeeded")
    called = "step.started tool.input.started tool.input.delta tool.input.ended tool.called step.streamed"
    first = f"{called} tool.progress tool.success step.ended"
    in_order(events.kinds(session), f"{first} {called} tool.failed step.ended step.started text.started")
    for record in events.records:
        check("Event", record)
    started, success = events.data("session.tool.input.started")[0], events.data("session.tool.success")[0]
    assert (started["name"], started["id"]) == ("bash", success["id"])
    assert success["content"] == [{"type": "text", "text": "hi\n"}]
    problem = {"type": "tool.execution", "message": "no such file"}
    assert events.data("session.tool.failed")[0]["error"] == problem


@contextlib.asynccontextmanager
async def asking(server: Subject, **more: Any) -> AsyncGenerator[tuple[Events, str, Json]]:
    """A session in which the agent asks for a permission."""
    server.fake.script(Reply(tools=[ToolCall(asks=True)], text="Done."))
    async with server.events() as events:
        session = await server.new_session(title="A title", **more)
        await server.prompt(session)
        preview = server.fake.version == "2.0.0-preview"
        yield events, session, await events.one(f"permission.{'v2.' if preview else ''}asked")


async def test_a_permission_is_listed_by_session_and_by_location(server: Subject):
    other = {"directory": "/srv/other"}
    async with asking(server, location=other) as (events, session, asked):
        check("PermissionAskedEventData", asked)
        assert (asked["action"], asked["resources"], asked["save"]) == ("bash", ["echo hi"], ["echo *"])
        source = {"messageID": events.data("session.step.started")[0]["assistantMessageID"], "id": "call_1"}
        assert asked["source"] == {"type": "tool", **source}
        assert (await server.get(f"/api/session/{session}/permission"))["data"] == [asked]
        assert (await server.get(f"/api/session/{session}/permission/{asked['id']}"))["data"] == asked
        path = "/api/permission/request"
        there = check(
            "PermissionRequestListResponse", await server.get(path, **{"location[directory]": "/srv/other"})
        )
        assert there == {"location": other, "data": [asked]}
        nothing = {"location": {"directory": HERE}, "data": []}
        assert await server.get(path) == nothing
        assert await server.get(path, directory="/srv/other") == nothing, "a bare directory is ignored"
        response = await server.client.get(path, headers={"x-opencode-directory": "/srv/other"})
        assert response.json() == there


@pytest.mark.parametrize(
    ("answer", "status", "end"),
    [
        ({"decision": "once"}, "completed", "succeeded"),
        ({"decision": "reject", "message": "rather not"}, "error", "succeeded"),
        ({"decision": "reject"}, "error", "interrupted"),
    ],
)
async def test_the_answer_to_a_permission_decides_how_it_goes_on(
    server: Subject, answer: Json, status: str, end: str
):
    async with asking(server) as (events, session, asked):
        path = f"/api/session/{session}/permission/{asked['id']}/reply"
        assert (await server.refused("POST", path, {"reply": "once"}))[0] == 400
        await server.post(path, answer, status=204)
        ended = await events.one(f"session.execution.{end}")
        assert ended.get("reason") == ("shutdown" if end == "interrupted" else None)
        told = {"sessionID": session, "requestID": asked["id"], "reply": answer["decision"]}
        assert events.data("permission.replied") == [told]
        gone = await server.refused("POST", path, answer)
        assert (gone[0], check("PermissionNotFoundErrorBody", gone[1])["requestID"]) == (404, asked["id"])
    for record in events.records:
        check("Event", record)
    messages = await server.messages(session)
    tool = messages[1]["content"][0]
    assert tool["state"]["status"] == status
    if status == "error":
        told = answer.get("message", "The user declined this tool call")
        assert tool["state"]["error"]["message"] == told
    if end == "interrupted":
        assert [one["type"] for one in messages] == ["user", "assistant"], "a shutdown is no end"
        assert (messages[1]["finish"], messages[1]["error"]["type"]) == ("error", "aborted")


async def test_what_is_always_allowed_is_not_asked_again_even_after_a_restart(server: Subject):
    async with asking(server) as (events, session, asked):
        path = f"/api/session/{session}/permission/{asked['id']}/reply"
        await server.post(path, {"decision": "always"}, status=204)
        await events.one("session.execution.succeeded")
    await server.fake.kill()
    async with served(server.fake) as again:
        again.fake.script(Reply(tools=[ToolCall(asks=True)], text="Done."))
        await again.prompt(session, "again")
        await again.wait(session)
        assert (await again.messages(session))[-2]["finish"] == "stop"


async def test_an_interrupt_clears_what_was_asked(server: Subject):
    async with asking(server) as (events, session, _):
        await server.post(f"/api/session/{session}/interrupt")
        await events.one("session.execution.interrupted")
        assert (await server.get(f"/api/session/{session}/permission"))["data"] == []
        failed = (await events.one("session.tool.failed"))["error"]
        assert failed == {"type": "aborted", "message": "Tool execution interrupted"}


async def test_a_sub_agents_permission_belongs_to_its_own_session(server: Subject):
    child_asks = Reply(tools=[ToolCall(asks=True)], text="Found it.")
    server.fake.script(Reply(tools=[SubAgent(reply=child_asks)], text="All done."))
    async with server.events() as events:
        session = await server.new_session(title="A title")
        await server.prompt(session)
        asked = await events.one("permission.asked")
        child: str = asked["sessionID"]
        assert child != session
        assert set((await server.get("/api/session/active"))["data"]) == {session, child}
        listed = (await server.get("/api/session", parentID=session))["data"]
        assert [(one["id"], one["parentID"]) for one in listed] == [(child, session)]
        assert (await server.get(f"/api/session/{session}/permission"))["data"] == []
        reply = f"permission/{asked['id']}/reply"
        status, _ = await server.refused("POST", f"/api/session/{session}/{reply}", {"decision": "once"})
        assert status == 404
        await server.post(f"/api/session/{child}/{reply}", {"decision": "once"}, status=204)
        await events.one("session.execution.succeeded", 2)
    ends = [one["sessionID"] for one in events.data("session.execution.succeeded")]
    assert ends == [child, session]
    tool = (await server.messages(session))[1]["content"][0]
    assert tool["name"] == "subagent"
    assert "Found it." in tool["state"]["content"][0]["text"]


async def test_an_interrupt_reaches_the_sub_agents(server: Subject):
    server.fake.script(Reply(tools=[SubAgent(reply=Reply(never_finishes=True))]))
    async with server.events() as events:
        session = await server.new_session()
        await server.prompt(session)
        await events.one("session.step.started", 2)
        await server.post(f"/api/session/{session}/interrupt")
        await events.one("session.execution.interrupted", 2)
    assert (await server.get("/api/session/active"))["data"] == {}


QUESTIONS = [
    Question(),
    Question(question="Which sizes?", header="Sizes", options=["S", "M"], multiple=True, custom=False),
]


@contextlib.asynccontextmanager
async def questioning(server: Subject) -> AsyncGenerator[tuple[Events, str, Json]]:
    server.fake.script(Reply(tools=[Ask(questions=QUESTIONS)], text="Done."))
    async with server.events() as events:
        session = await server.new_session(title="A title")
        await server.prompt(session)
        yield events, session, (await events.one("form.created"))["form"]


async def test_questions_are_a_form_that_is_listed_and_answered(server: Subject):
    async with questioning(server) as (events, session, form):
        assert form["id"].startswith("frm_")
        assert form["metadata"]["kind"] == "question"
        first, second = form["fields"]
        assert (first["key"], first["type"], first["title"]) == ("q0", "string", "Colour")
        assert (first["description"], first["custom"]) == ("Which colour?", True)
        assert (second["key"], second["type"], second["custom"]) == ("q1", "multiselect", False)
        assert [option["value"] for option in second["options"]] == ["S", "M"]
        path = f"/api/session/{session}/form"
        assert (await server.get(path))["data"] == [form]
        here = check("FormListResponse", await server.get("/api/form"))
        assert here == {"location": {"directory": HERE}, "data": [form]}
        path = f"{path}/{form['id']}"
        detail = check("FormDetail", (await server.get(path))["data"])
        assert detail["state"] == {"status": "pending"}
        for wrong in ({"q0": ["Red"]}, {"q1": "S"}, {"q1": ["XL"]}, {"q7": "Red"}):
            status, body = await server.refused("POST", f"{path}/reply", {"answer": wrong})
            assert (status, check("FormInvalidAnswerErrorBody", body)["id"]) == (400, form["id"])
        answer = {"q0": "Mauve", "q1": ["S", "M"]}
        await server.post(f"{path}/reply", {"answer": answer}, status=204)
        await events.one("session.execution.succeeded")
        assert events.data("form.replied") == [{"id": form["id"], "sessionID": session, "answer": answer}]
        status, body = await server.refused("POST", f"{path}/reply", {"answer": answer})
        assert (status, check("FormAlreadySettledErrorBody", body)["id"]) == (409, form["id"])
        assert (await server.get(path))["data"]["state"]["status"] == "answered"
        assert (await server.get("/api/form"))["data"] == []
        status, body = await server.refused("DELETE", f"/api/session/{session}/form/frm_none")
        assert (status, check("FormNotFoundErrorBody", body)["id"]) == (404, "frm_none")
    for record in events.records:
        check("Event", record)
    tool = (await server.messages(session))[1]["content"][0]
    assert '"Which colour?"="Mauve", "Which sizes?"="S, M"' in tool["state"]["content"][0]["text"]


async def test_a_form_that_is_dismissed_ends_the_execution_unless_it_is_said_why(server: Subject):
    async with questioning(server) as (events, session, form):
        response = await server.client.delete(f"/api/session/{session}/form/{form['id']}")
        assert response.status_code == 204
        assert (await events.one("session.execution.interrupted"))["reason"] == "shutdown"
        assert events.data("form.cancelled") == [{"id": form["id"], "sessionID": session}]
    async with questioning(server) as (events, session, form):
        path = f"/api/session/{session}/form/{form['id']}"
        assert (await server.client.delete(path, params={"message": "Not now"})).status_code == 204
        await events.one("session.execution.succeeded")
        assert (await events.one("session.tool.failed"))["error"]["message"] == "Not now"


async def test_a_form_may_have_fields_of_a_kind_nobody_knows(server: Subject):
    server.fake.script(Reply(tools=[Ask(questions=[Question(field="hologram")])]))
    async with server.events() as events:
        await server.prompt(await server.new_session())
        form = (await events.one("form.created"))["form"]
    assert form["fields"][0]["type"] == "hologram"


async def test_the_log_gives_what_was_stored_after_a_number_and_says_that_it_is_synced(server: Subject):
    async with server.events() as events:
        session = await server.new_session(title="A title")
        await server.prompt(session)
        await events.one("session.usage.updated", 2)
    stored = [record for record in events.records if "durable" in record]
    *replayed, synced = await server.log(session)
    assert replayed == stored
    for record in (*replayed, synced):
        check("SessionLogItem", record)
    last = stored[-1]["durable"]["seq"]
    assert synced == {"type": "log.synced", "aggregateID": session, "seq": last}
    assert (await server.log(session, after=3))[0] == stored[4]
    assert await server.log(session, after=last) == [synced]
    assert (await server.refused("GET", f"/api/experimental/session/{session}/log", after="x"))[0] == 400


async def test_a_log_that_is_followed_goes_on_live_without_deltas(server: Subject):
    session = await server.new_session(title="A title")
    other = await server.new_session()
    path = f"/api/experimental/session/{session}/log"
    async with server.events(path, after=0, follow="true") as events:
        await events.until(lambda: events.records[-1]["type"] == "log.synced")
        assert server.fake.streams == 0, "a log is no event stream"
        await server.prompt(other)
        await server.prompt(session)
        await events.one("session.execution.succeeded")
    live = events.records[1:]
    assert [record["durable"]["seq"] for record in live] == list(range(1, len(live) + 1))
    assert {record["data"]["sessionID"] for record in live} == {session}


async def test_the_log_can_be_missing():
    async with served(FakeOpenCode(generation=2, has_log=False)) as server:
        session = await server.new_session()
        assert await server.refused("GET", f"/api/experimental/session/{session}/log") == (404, {})


async def test_the_stream_has_a_heartbeat_at_once_and_then_in_time():
    async with served(FakeOpenCode(generation=2)) as server, server.events() as events:
        await events.until(lambda: events.comments == 1)
    async with (
        served(FakeOpenCode(generation=2, heartbeat_seconds=0.05)) as server,
        server.events() as events,
    ):
        await events.until(lambda: events.comments >= 4)
        assert len(events.records) == 1


async def test_a_reader_that_falls_behind_is_cut_off():
    async with served(FakeOpenCode(generation=2, most_behind=10)) as server:
        async with server.client.stream("GET", "/api/event") as response:
            lines = response.aiter_lines()
            assert "server.connected" in await anext(lines)
            while server.fake.streams:
                server.fake.emit("catalog.updated", {"ballast": "x" * 100_000})
                await anyio.lowlevel.checkpoint()
            events = Events()
            with anyio.fail_after(WAIT_SECONDS):
                await events.read(lines)
            assert events.ended
        async with server.events() as events:
            server.fake.emit("catalog.updated", {})
            await events.one("catalog.updated")


async def test_faults_of_streams_leave_the_rest_alone(server: Subject):
    async with server.events() as events:
        server.fake.fault = Fault.STREAM_CUT
        await events.until(lambda: events.ended)
    async with server.events() as events:
        await events.until(lambda: events.ended)
        assert [record["type"] for record in events.records] == ["server.connected"]
    server.fake.fault = Fault.STREAM_SILENT
    async with server.client.stream("GET", "/api/event") as response:
        assert response.status_code == 200
        session = await server.new_session()
        await server.prompt(session)
        await server.wait(session)
        with anyio.move_on_after(0.1) as waited:
            await anext(response.aiter_raw())
        assert waited.cancelled_caught
    server.fake.fault = None
    async with server.events() as events:
        server.fake.cut_streams()
        await events.until(lambda: events.ended)


async def test_a_session_can_be_moved(server: Subject):
    async with asking(server) as (events, session, asked):
        server.fake.move_session(session, "/srv/new")
        moved = await events.one("session.moved")
        assert moved == {"sessionID": session, "location": {"directory": "/srv/new"}, "projectID": "global"}
        info = (await server.get(f"/api/session/{session}"))["data"]
        assert info["location"] == {"directory": "/srv/new"}
        there = await server.get("/api/permission/request", **{"location[directory]": "/srv/new"})
        assert there["data"] == [asked]
        assert (await server.get("/api/permission/request"))["data"] == []
        path = f"/api/session/{session}/permission/{asked['id']}/reply"
        await server.post(path, {"decision": "once"}, status=204)
        await events.one("session.execution.succeeded")
    assert events.records[-1].get("location") in (None, {"directory": "/srv/new"})
    kinds = [one["type"] for one in await server.messages(session)]
    assert kinds == ["user", "assistant", "location-switched", "assistant", "idle"]
    await server.post(f"/api/session/{session}/move", {"directory": HERE}, status=204)
    assert (await server.get(f"/api/session/{session}"))["data"]["location"] == {"directory": HERE}


async def test_a_test_can_say_that_a_session_is_busy_prompt_it_and_emit_what_it_likes(server: Subject):
    fake = server.fake
    session = fake.create_session("A title")
    async with server.events() as events:
        fake.set_busy(session)
        fake.set_busy(session)
        assert (await server.get("/api/session/active"))["data"] == {session: {"type": "running"}}
        fake.set_busy(session, busy=False)
        fake.set_busy(session, busy=False)
        fake.set_busy(session)
        fake.prompt(session, "Go")
        await events.one("session.execution.succeeded", 2)
        assert fake.busy == set()
        fake.emit("session.synthetic", {"sessionID": session, "text": "psst"}, directory="/srv/x")
        fake.emit("tui.prompt.append", {"text": "psst"})
        fake.emit_raw('{"type":"odd"}')
        await events.until(lambda: events.records[-1] == {"type": "odd"})
    synthetic, tui = events.records[-3:-1]
    assert synthetic["location"] == {"directory": "/srv/x"}
    assert "durable" not in tui
    assert (await server.log(session))[-2] == synthetic
    started = [record for record in events.records if record["type"] == "session.execution.started"]
    assert len(started) == 2


async def test_a_session_goes_with_its_children_while_it_is_busy(server: Subject):
    server.fake.script(Reply(tools=[SubAgent(reply=Reply(tools=[ToolCall(asks=True)]))]))
    async with server.events() as events:
        session = await server.new_session()
        await server.prompt(session)
        child = (await events.one("permission.asked"))["sessionID"]
        await server.client.delete(f"/api/session/{session}")
        await events.one("session.deleted", 2)
    assert (await server.refused("GET", f"/api/session/{child}"))[0] == 404
    assert (await server.get("/api/session/active"))["data"] == {}
    assert (await server.get("/api/permission/request"))["data"] == []


async def test_sessions_outlive_a_restart_and_what_ran_does_not(server: Subject):
    async with asking(server) as (_, session, _):
        pass
    await server.fake.kill()
    async with served(server.fake, server.fake.port) as again:
        assert (await again.get("/api/session/active"))["data"] == {}
        assert (await again.get(f"/api/session/{session}/permission"))["data"] == []
        assert (await again.messages(session))[0]["text"] == "go"


async def test_an_upgrade_takes_over_the_port():
    old = FakeOpenCode(HERE)
    async with old.serve(), httpx2.AsyncClient(base_url=old.url, trust_env=False) as client:
        assert (await client.get("/global/health")).json()["version"] == "1.18.33"
    async with served(FakeOpenCode(HERE, generation=2), old.port) as server:
        assert server.fake.url == old.url
        assert (await server.get("/api/info"))["version"] == "2.1.2"
        assert (await server.client.get("/global/health")).status_code == 404


async def test_turns_can_be_held_back(server: Subject):
    begin = server.fake.hold_turns()
    session = await server.new_session()
    await server.prompt(session)
    assert (await server.get("/api/session/active"))["data"] == {}
    begin.set()
    await server.wait(session)
    assert len(await server.messages(session)) == 3


async def test_deltas_can_carry_a_clock():
    async with served(FakeOpenCode(generation=2, delta_clock=True)) as server, server.events() as events:
        await server.prompt(await server.new_session())
        ended = await events.one("session.text.ended")
    assert all(stamp.isdigit() for stamp in ended["text"].split())
    assert [delta.text for delta in server.fake.deltas] == [
        one["delta"] for one in events.data("session.text.delta")
    ]


@both
async def test_a_script_means_the_same_to_every_generation(preview: bool):
    scripted = Reply(
        tools=[ToolCall(asks=True), SubAgent(reply=Reply(text="Child.")), Ask()],
        text="All of it.",
        reasoning=["Hm."],
    )
    shown: list[Any] = []
    for fake in (FakeOpenCode(), FakeOpenCode(generation=2, preview=preview)):
        fake.script(scripted)
        async with fake.serve():
            session = fake.create_session("A title")
            fake.prompt(session, "Go")
            with anyio.fail_after(WAIT_SECONDS):
                while not fake.permissions:
                    await anyio.sleep(0.001)
                await _answer(fake, session, fake.permissions[0]["id"])
                while not fake.questions:
                    await anyio.sleep(0.001)
                await _answer(fake, session, fake.questions[0]["id"])
                while fake.busy:
                    await anyio.sleep(0.001)
        shown.append(
            [
                (
                    message["info"]["role"],
                    message["info"].get("finish"),
                    [part["type"] for part in message["parts"]],
                )
                for message in fake.messages[session]
            ]
        )
    assert shown[0] == shown[1]


async def _answer(fake: FakeOpenCode, session: str, request_id: str) -> None:
    """Answer with both keys that a permission is answered by, or with the first option."""
    auth = None if fake.password is None else (fake.username, fake.password)
    async with httpx2.AsyncClient(base_url=fake.url, auth=auth, trust_env=False) as client:
        if request_id.startswith("per"):
            path, body = f"permission/{request_id}/reply", {"reply": "once", "decision": "once"}
        else:
            path = f"{'question' if fake.generation == 1 else 'form'}/{request_id}/reply"
            body = {"answers": [["Red"]], "answer": {"q0": "Red"}}
        root = f"/{path}" if fake.generation == 1 else f"/api/session/{session}/{path}"
        response = await client.post(root, json=body)
        assert response.is_success, response.text


async def test_the_preview_has_other_names():
    async with served(FakeOpenCode(HERE, generation=2, preview=True)) as server:
        async with asking(server) as (events, session, asked):
            assert asked["source"]["callID"] == "call_1"
            assert events.data("session.tool.called")[0]["callID"] == "call_1"
            path = f"/api/session/{session}/permission/{asked['id']}/reply"
            assert (await server.refused("POST", path, {"decision": "once"}))[0] == 400
            await server.post(path, {"reply": "once", "decision": "once"}, status=204)
            await events.one("session.execution.succeeded")
            await events.one("session.idle")
        kinds = events.kinds(session)
        wanted = "input.admitted execution.started status input.promoted execution.succeeded idle"
        in_order(kinds, wanted)
        assert not [kind for kind in kinds if kind.startswith("inbox.")]
        assert [one["type"] for one in await server.messages(session)] == ["user", "assistant", "assistant"]
        assert "outcome" not in (await server.get(f"/api/session/{session}"))["data"]
        await server.post(f"/api/session/{session}/wait", status=204)
        assert await server.refused("POST", f"/api/experimental/session/{session}/wait") == (404, {})
        response = await server.client.post(f"/api/session/{session}/interrupt")
        assert (response.status_code, response.content) == (204, b"")
        item = await server.prompt(session, "later", resume=False)
        assert (item["data"], item["timeCreated"] > 0, item["admittedSeq"]) == ({"text": "later"}, True, 2)
        assert (await server.get(f"/api/session/{session}/pending"))["data"] == [item]
        assert await server.refused("GET", f"/api/session/{session}/inbox") == (404, {})
        assert (await server.log(session))[-1]["type"] == "log.synced"


async def test_the_preview_has_other_routes_for_forms():
    fake = FakeOpenCode(HERE, generation=2, preview=True)
    async with served(fake) as server, questioning(server) as (events, session, form):
        assert (await server.get("/api/form/request"))["data"] == [form]
        assert (await server.get(f"/api/session/{session}/form"))["data"] == [form]
        assert await server.refused("GET", "/api/form") == (404, {})
        path = f"/api/session/{session}/form/{form['id']}"
        assert await server.refused("DELETE", path) == (404, {})
        await server.post(f"{path}/cancel", status=204)
        await events.one("session.execution.interrupted")


@both
async def test_forms_can_be_listed_by_location_alone_or_nowhere(preview: bool):
    here = "/api/form/request" if preview else "/api/form"
    fake = FakeOpenCode(HERE, generation=2, preview=preview, form_lists="location")
    async with served(fake) as server, questioning(server) as (_, session, form):
        assert (await server.get(here))["data"] == [form]
        assert await server.refused("GET", f"/api/session/{session}/form") == (404, {})
        assert (await server.get(f"/api/session/{session}/form/{form['id']}"))["data"]["id"] == form["id"]
    fake = FakeOpenCode(HERE, generation=2, preview=preview, form_lists="nowhere")
    async with served(fake) as server, questioning(server) as (_, session, _):
        assert await server.refused("GET", here) == (404, {})
        assert await server.refused("GET", f"/api/session/{session}/form") == (404, {})


async def test_who_waits_for_a_session_is_told_of_every_end(server: Subject):
    fake = server.fake
    for end in ("idle", "turn", "deletion"):
        session = await server.new_session()
        fake.set_busy(session)
        async with anyio.create_task_group() as group:
            group.start_soon(server.wait, session)
            with anyio.fail_after(WAIT_SECONDS):
                while not fake.requests[-1].path.endswith(f"{session}/wait"):
                    await anyio.lowlevel.checkpoint()
            if end == "idle":
                fake.set_busy(session, busy=False)
            elif end == "turn":
                fake.prompt(session, "Go")
            else:
                await server.client.delete(f"/api/session/{session}")


async def test_an_interrupt_before_anything_started_leaves_the_prompt_in_the_inbox(server: Subject):
    begin = server.fake.hold_turns()
    session = await server.new_session()
    await server.prompt(session)
    assert await server.post(f"/api/session/{session}/interrupt") == {"interrupted": False}
    begin.set()
    assert len((await server.get(f"/api/session/{session}/inbox"))["data"]) == 1
    assert (await server.get("/api/session/active"))["data"] == {}
