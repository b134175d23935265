"""What the client relies on in OpenCode 1.18.33, asserted on the fake and on the real one alike."""

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from opencode_mcp.testing import Ask, FakeOpenCode, Gate, Question, Reply, SubAgent, ToolCall
from support.model_server import Answer, ModelServer
from support.real_opencode import running_opencode

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

BOTH = ["fake", pytest.param("real", marks=pytest.mark.real)]
WAIT_SECONDS = 15

Json = dict[str, Any]


class Events:
    """What came over a stream so far, as (type, properties)."""

    def __init__(self) -> None:
        self.records: list[Json] = []
        self._news = anyio.Event()

    async def read(self, response: httpx2.Response) -> None:
        async for line in response.aiter_lines():
            if line:
                assert line.startswith("data: "), line
                self.records.append(json.loads(line.removeprefix("data: ")))
                self._news.set()
                self._news = anyio.Event()

    def of(self, session_id: str, *kinds: str) -> list[tuple[str, Json]]:
        payloads = [record.get("payload", record) for record in self.records]
        return [
            (payload["type"], payload["properties"])
            for payload in payloads
            if payload["type"] != "sync"
            and payload["properties"].get("sessionID") == session_id
            and (not kinds or payload["type"] in kinds)
        ]

    async def until(self, condition: Callable[[], Any]) -> Any:
        with anyio.fail_after(WAIT_SECONDS):
            while not (found := condition()):
                await self._news.wait()
        return found

    async def idle(self, session_id: str, times: int = 1) -> None:
        """Wait until the turn is over and what follows `session.idle` has come too."""
        await self.until(lambda: len(self.of(session_id, "session.idle")) >= times)


class Subject:
    """An OpenCode server and its model."""

    def __init__(self, client: httpx2.AsyncClient, directory: str) -> None:
        self.client = client
        self.directory = directory
        self.here = {"directory": directory}
        self.fake: FakeOpenCode | None = None
        self.model: ModelServer | None = None

    def answers(self, fake: Sequence[Reply], real: Sequence[Answer]) -> None:
        if self.fake is not None:
            self.fake.clear_script()
            self.fake.script(*fake)
        if self.model is not None:
            self.model.script(*real)

    def says(self, *chunks: str, reasoning: Sequence[str] = ()) -> None:
        self.answers(
            [Reply(chunks=chunks, reasoning=reasoning)], [Answer(chunks=chunks, reasoning=reasoning)]
        )

    def runs(self, command: str, then: str) -> None:
        """Call `bash`, which asks, and say something."""
        pattern = f"{command.split()[0]} *"
        call = {"command": command, "description": "Try it"}
        self.answers(
            [Reply(tools=[ToolCall(input=call, asks=True, always=[pattern])], chunks=[then])],
            [Answer(calls=[("bash", call)]), Answer(chunks=[then])],
        )

    def asks(self, then: str) -> None:
        options = [{"label": label, "description": f"Choose {label}"} for label in ("Red", "Blue")]
        question = {"question": "Which colour?", "header": "Colour", "options": options}
        self.answers(
            [Reply(tools=[Ask(questions=[Question()])], chunks=[then])],
            [Answer(calls=[("question", {"questions": [question]})]), Answer(chunks=[then])],
        )

    def holds(self, first: str, second: str, *, then: str = "") -> Callable[[], None]:
        """Say `first`; once the returned function is called `second`; to the next prompt `then`."""
        gate, event = Gate(), anyio.Event()
        gate.release()
        self.answers(
            [Reply(chunks=[first, second], gate=gate), Reply(text=then)],
            [Answer(chunks=[first, second], gate=event), Answer(chunks=[then])],
        )

        def release() -> None:
            gate.open()
            event.set()

        return release

    async def get(self, path: str, **query: Any) -> Any:
        response = await self.client.get(path, params=query)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        return response.json()

    async def post(self, path: str, body: Any = None, **query: Any) -> Any:
        response = await self.client.post(path, params=query, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def new_session(self, title: str = "a title") -> str:
        return (await self.post("/session", {"title": title}, **self.here))["id"]

    async def prompt(self, session_id: str, text: str = "go", **more: Any) -> None:
        body = {"parts": [{"type": "text", "text": text}], **more}
        response = await self.client.post(f"/session/{session_id}/prompt_async", json=body)
        assert (response.status_code, response.content) == (204, b"")

    async def messages(self, session_id: str, **query: Any) -> list[Json]:
        return await self.get(f"/session/{session_id}/message", **query)

    async def status(self) -> Json:
        return await self.get("/session/status", **self.here)

    @contextlib.asynccontextmanager
    async def events(self, path: str = "/global/event", **query: str) -> AsyncGenerator[Events]:
        async with self.client.stream("GET", path, params=query) as response:
            assert response.headers["content-type"] == "text/event-stream"
            events = Events()
            async with anyio.create_task_group() as group:
                group.start_soon(events.read, response)
                await events.until(lambda: events.records)
                await self._listening(events, query.get("directory", self.directory))
                yield events
                group.cancel_scope.cancel()

    async def _listening(self, events: Events, directory: str) -> None:
        """Wait until it tells what happens: `/global/event` loses what comes right after its start."""

        def heard() -> bool:
            return any(events.of(probe, "session.created") for probe in probes)

        probes: list[str] = []
        with anyio.fail_after(WAIT_SECONDS):
            while not heard():
                probes.append((await self.post("/session", {"title": "probe"}, directory=directory))["id"])
                with anyio.move_on_after(0.2):
                    await events.until(heard)
        for probe in probes:
            await self.client.delete(f"/session/{probe}")


@contextlib.asynccontextmanager
async def _subject(kind: str, root: Path, password: str | None = None) -> AsyncGenerator[Subject]:
    async with contextlib.AsyncExitStack() as stack:
        fake = model = None
        if kind == "fake":
            fake = FakeOpenCode(str(root), password=password, deaf_seconds=0.05)
            await stack.enter_async_context(fake.serve())
            url = fake.url
        else:
            model = ModelServer()
            await stack.enter_async_context(model.serve())
            url = (await stack.enter_async_context(running_opencode(root, model.url, password=password))).url
        client = httpx2.AsyncClient(base_url=url, timeout=WAIT_SECONDS, trust_env=False)
        subject = Subject(await stack.enter_async_context(client), str(root))
        subject.fake, subject.model = fake, model
        yield subject


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module", params=BOTH)
async def shared(
    request: pytest.FixtureRequest, anyio_backend: str, project: Path
) -> AsyncGenerator[Subject]:
    async with _subject(request.param, project) as subject:
        await subject.client.get(
            "/provider", params=subject.here
        )  # an abort before this breaks the directory
        yield subject


@pytest.fixture
def server(shared: Subject) -> Subject:
    if shared.fake is not None:
        shared.fake.requests.clear()
    return shared


@pytest.fixture(scope="module", params=BOTH)
async def locked(
    request: pytest.FixtureRequest, anyio_backend: str, project: Path
) -> AsyncGenerator[Subject]:
    async with _subject(request.param, project, "sesame") as subject:
        yield subject


def _assert_in_order(events: Sequence[str], *expected: str) -> None:
    """`expected` is a subsequence of `events`."""
    rest = iter(events)
    for wanted in expected:
        assert any(event == wanted for event in rest), f"{wanted!r} of {expected} is missing in {events}"


def _label(event: tuple[str, Json]) -> str:
    kind, properties = event
    match kind:
        case "message.updated":
            info = properties["info"]
            mark = info.get("finish") or info.get("error", {}).get("name", "")
            return f"{info['role']} {mark}".strip()
        case "message.part.updated":
            part = properties["part"]
            state = part.get("state", {}).get("status") or ("done" if "end" in part.get("time", {}) else "")
            return f"{part['type']} {state}".strip()
        case "session.status":
            return properties["status"]["type"]
        case _:
            return kind


def _labels(events: Events, session_id: str) -> list[str]:
    return [_label(event) for event in events.of(session_id)]


def _text(message: Json) -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


async def _first(events: Events, session_id: str, kind: str) -> Json:
    found = await events.until(lambda: events.of(session_id, kind))
    return found[0][1]


async def test_health_names_the_version(server: Subject):
    assert await server.get("/global/health") == {"healthy": True, "version": "1.18.33"}


async def test_path_names_the_directory_asked_for_or_the_servers_own(server: Subject):
    assert (await server.get("/path"))["directory"] == server.directory
    assert (await server.get("/path", directory="/tmp"))["directory"] == "/tmp"


async def test_a_directory_may_be_named_in_a_header_and_with_a_trailing_slash(server: Subject):
    session_id = await server.new_session("in a header")
    for slash in ("", "/"):
        response = await server.client.get(
            "/session",
            headers={"x-opencode-directory": server.directory + slash},
            params={"search": "in a header"},
        )
        assert [session["id"] for session in response.json()] == [session_id]
        await server.client.delete(f"/session/{session_id}")
        session_id = await server.new_session("in a header")


@pytest.mark.parametrize("path", ["/api/info", "/no/such/route"])
async def test_an_unknown_path_is_a_web_page_with_200(server: Subject, path: str):
    response = await server.client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.text.lower().startswith("<!doctype html>")


async def test_a_session_can_be_created_read_listed_and_deleted(server: Subject):
    created = await server.post("/session", {"title": "one of a kind"}, **server.here)
    assert re.fullmatch(r"ses_[0-9a-f]{12}[0-9A-Za-z]{14}", created["id"])
    assert created["directory"] == server.directory
    assert created["version"] == "1.18.33"
    assert created["time"]["updated"] >= created["time"]["created"] > 1_700_000_000_000
    assert await server.get(f"/session/{created['id']}") == created
    assert created in await server.get("/session", **server.here)
    assert await server.messages(created["id"]) == []
    deleted = await server.client.delete(f"/session/{created['id']}")
    assert deleted.json() is True
    assert created not in await server.get("/session", **server.here)


async def test_a_session_without_a_title_gets_one_with_the_date(server: Subject):
    created = await server.client.post("/session", params=server.here)
    assert re.match(r"New session - \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", created.json()["title"])


async def test_ids_of_newer_sessions_sort_before_those_of_older_ones(server: Subject):
    older, newer = await server.new_session(), await server.new_session()
    assert newer < older


async def test_the_list_is_newest_first_and_can_be_searched_and_limited(server: Subject):
    first = await server.new_session("find me, first")
    await server.new_session("something else")
    second = await server.new_session("find me, second")
    found = await server.get("/session", search="FIND me", **server.here)
    assert [session["id"] for session in found] == [second, first]
    found = await server.get("/session", search="find me", limit=1, **server.here)
    assert [session["id"] for session in found] == [second]
    for session_id in (first, second):
        await server.client.delete(f"/session/{session_id}")


async def test_the_list_holds_only_the_directory_asked_for(server: Subject, tmp_path: Path):
    await server.new_session()
    assert await server.get("/session", directory=str(tmp_path)) == []
    assert await server.get("/session", directory=f"{server.directory}/sub") == []
    elsewhere = await server.post("/session", {"title": "elsewhere"}, directory=str(tmp_path))
    assert await server.get("/session", directory=str(tmp_path)) == [elsewhere]
    assert elsewhere["id"] not in {session["id"] for session in await server.get("/session", **server.here)}
    everything = await server.get("/experimental/session", limit=50)
    assert elsewhere["id"] in {session["id"] for session in everything}


async def test_roots_hides_children_and_children_lists_them(server: Subject):
    parent = await server.new_session("parent")
    child = await server.post("/session", {"parentID": parent}, **server.here)
    assert child["parentID"] == parent
    assert await server.get(f"/session/{parent}/children") == [child]
    roots = {session["id"] for session in await server.get("/session", roots="true", **server.here)}
    assert parent in roots
    assert child["id"] not in roots


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/message"),
        ("GET", "/children"),
        ("POST", "/prompt_async"),
        ("POST", "/message"),
    ],
)
async def test_an_unknown_session_is_404(server: Subject, method: str, path: str):
    body = {"parts": [{"type": "text", "text": "x"}]} if method == "POST" else None
    response = await server.client.request(method, f"/session/ses_unknown{path}", json=body)
    assert response.status_code == 404
    message = "Session not found: ses_unknown"
    assert response.json() == {"name": "NotFoundError", "data": {"message": message}}


async def test_aborting_an_unknown_session_is_true(server: Subject):
    assert await server.post("/session/ses_unknown/abort") is True


async def test_a_prompt_without_parts_is_400(server: Subject):
    session_id = await server.new_session()
    response = await server.client.post(f"/session/{session_id}/prompt_async", json={})
    assert response.status_code == 400
    assert response.json()["name"] == "BadRequest"
    assert "parts" in response.json()["data"]["message"]


async def test_a_long_answer_is_compressed_for_who_accepts_that(server: Subject):
    session_id = await server.new_session()
    server.says("x" * 5000)
    async with server.events() as events:
        await server.prompt(session_id)
        await events.idle(session_id)
    response = await server.client.get(f"/session/{session_id}/message")
    assert response.headers["content-encoding"] == "gzip"
    response = await server.client.get(
        f"/session/{session_id}/message", headers={"accept-encoding": "identity"}
    )
    assert "content-encoding" not in response.headers


async def test_a_turn_is_told_in_order(server: Subject):
    session_id = await server.new_session()
    server.says("Hello ", "world", reasoning=["hm", "m"])
    async with server.events() as events:
        assert events.records[0]["payload"]["type"] == "server.connected"
        assert "directory" not in events.records[0]
        await server.prompt(session_id, "greet")
        await events.idle(session_id)
        await events.until(lambda: _labels(events, session_id)[-1] == "user")
    _assert_in_order(
        _labels(events, session_id),
        *("user", "text", "busy", "assistant", "step-start"),
        *("reasoning", "message.part.delta", "message.part.delta", "reasoning done"),
        *("text", "message.part.delta", "message.part.delta", "text done"),
        *("step-finish", "assistant stop", "idle", "session.idle", "session.updated", "session.diff", "user"),
    )
    assert len(events.of(session_id, "session.idle")) == 1
    assert {record["directory"] for record in events.records if "directory" in record} == {server.directory}


async def test_deltas_of_reasoning_and_text_differ_only_by_their_part(server: Subject):
    session_id = await server.new_session()
    server.says("Hello ", "world", reasoning=["hm", "m"])
    async with server.events() as events:
        await server.prompt(session_id)
        await events.idle(session_id)
    kinds = {
        properties["part"]["id"]: properties["part"]["type"]
        for _, properties in events.of(session_id, "message.part.updated")
    }
    deltas = [properties for _, properties in events.of(session_id, "message.part.delta")]
    assert {delta["field"] for delta in deltas} == {"text"}
    spoken = [(kinds[delta["partID"]], delta["delta"]) for delta in deltas]
    assert spoken == [("reasoning", "hm"), ("reasoning", "m"), ("text", "Hello "), ("text", "world")]


async def test_stored_events_come_twice_on_the_global_stream_and_once_on_the_other(server: Subject):
    session_id = await server.new_session()
    async with server.events() as everywhere, server.events("/event", **server.here) as here:
        assert here.records[0]["type"] == "server.connected"
        server.says("ok")
        await server.prompt(session_id)
        await everywhere.idle(session_id)
        await here.idle(session_id)
    payloads = [record["payload"] for record in everywhere.records]
    stored = [payload for payload in payloads if payload["type"] == "sync"]
    assert {payload["syncEvent"]["id"] for payload in stored} <= {
        payload["id"] for payload in payloads if payload["type"] != "sync"
    }
    assert {payload["syncEvent"]["type"] for payload in stored} >= {"message.updated.1", "session.updated.1"}
    assert all(record["type"] != "sync" for record in here.records)
    kinds = [kind for kind, _ in here.of(session_id)]
    assert "message.part.delta" in kinds
    assert "session.idle" in kinds


async def test_the_stream_of_a_directory_tells_nothing_of_others(server: Subject, tmp_path: Path):
    async with server.events() as everywhere, server.events("/event", directory=str(tmp_path)) as there:
        session_id = await server.new_session("not there")
        await everywhere.until(lambda: everywhere.of(session_id, "session.created"))
        elsewhere = await server.post("/session", {"title": "there"}, directory=str(tmp_path))
        await there.until(lambda: there.of(elsewhere["id"], "session.created"))
        assert not there.of(session_id)


async def test_messages_are_oldest_first_and_a_limit_keeps_the_newest(server: Subject):
    session_id = await server.new_session()
    server.says("Hello ", "world", reasoning=["hm"])
    async with server.events() as events:
        await server.prompt(session_id, "greet")
        await events.idle(session_id)
    user, assistant = await server.messages(session_id)
    assert user["info"]["role"] == "user"
    assert _text(user) == "greet"
    info = assistant["info"]
    assert (info["role"], info["parentID"], info["finish"]) == ("assistant", user["info"]["id"], "stop")
    assert info["time"]["completed"] >= info["time"]["created"]
    assert (info["providerID"], info["modelID"]) == ("fake", "fake")
    assert user["info"]["id"] < info["id"]
    assert [part["type"] for part in assistant["parts"]] == ["step-start", "reasoning", "text", "step-finish"]
    assert _text(assistant) == "Hello world"
    assert [message["info"]["id"] for message in await server.messages(session_id, limit=1)] == [info["id"]]


async def test_a_blocking_prompt_returns_the_answer(server: Subject):
    session_id = await server.new_session()
    server.says("here ", "it is")
    body = {"parts": [{"type": "text", "text": "go"}]}
    answer = await server.post(f"/session/{session_id}/message", body)
    assert (answer["info"]["role"], answer["info"]["finish"]) == ("assistant", "stop")
    assert _text(answer) == "here it is"


async def test_a_prompt_may_bring_its_own_message_id(server: Subject):
    session_id = await server.new_session()
    first = (await server.post(f"/session/{session_id}/message", {"parts": [{"type": "text", "text": "a"}]}))[
        "info"
    ]
    own = first["id"][:4] + "f" + first["id"][5:]
    async with server.events() as events:
        server.says("ok")
        await server.prompt(session_id, messageID=own)
        await events.idle(session_id)
    assert own in {message["info"]["id"] for message in await server.messages(session_id)}
    response = await server.client.post(
        f"/session/{session_id}/prompt_async",
        json={"parts": [{"type": "text", "text": "x"}], "messageID": "bad"},
    )
    assert response.status_code == 400


async def test_a_busy_session_shows_in_the_status_of_its_directory_only(server: Subject, tmp_path: Path):
    session_id = await server.new_session()
    release = server.holds("one", "two")
    async with server.events() as events:
        await server.prompt(session_id)
        await events.until(lambda: events.of(session_id, "message.part.delta"))
        assert (await server.status())[session_id] == {"type": "busy"}
        assert session_id not in await server.get("/session/status", directory=str(tmp_path))
        release()
        await events.idle(session_id)
    assert session_id not in await server.status()


async def test_two_prompts_are_answered_in_turn_with_one_idle(server: Subject):
    session_id = await server.new_session()
    release = server.holds("one", "two", then="three")
    async with server.events() as events:
        await server.prompt(session_id, "first")
        await events.until(lambda: events.of(session_id, "message.part.delta"))
        await server.prompt(session_id, "second")
        await events.until(
            lambda: len([label for label in _labels(events, session_id) if label == "text"]) >= 3
        )
        release()
        await events.idle(session_id)
        assert len(events.of(session_id, "session.idle")) == 1
    messages = await server.messages(session_id)
    users = [message["info"]["id"] for message in messages if message["info"]["role"] == "user"]
    answers = {
        message["info"]["parentID"]: _text(message)
        for message in messages
        if message["info"]["role"] == "assistant"
    }
    assert answers == {users[0]: "onetwo", users[1]: "three"}


async def test_a_permission_is_asked_and_once_runs_the_tool(server: Subject, tmp_path: Path):
    session_id = await server.new_session()
    server.runs("echo hi", then="Done.")
    async with server.events() as events:
        await server.prompt(session_id)
        asked = await _first(events, session_id, "permission.asked")
        assert asked["sessionID"] == session_id
        assert (asked["permission"], asked["patterns"], asked["always"]) == ("bash", ["echo hi"], ["echo *"])
        assert asked["metadata"]["command"] == "echo hi"
        assert asked["tool"].keys() == {"messageID", "callID"}
        assert asked in await server.get("/permission", **server.here)
        assert await server.get("/permission", directory=str(tmp_path)) == []
        assert session_id in await server.status()
        reply = f"/permission/{asked['id']}/reply"
        wrong = await server.client.post(reply, json={"reply": "once"}, params={"directory": str(tmp_path)})
        assert wrong.status_code == 404
        assert wrong.json()["_tag"] == "PermissionNotFoundError"
        assert await server.post(reply, {"reply": "once"}, **server.here) is True
        replied = await _first(events, session_id, "permission.replied")
        assert replied == {"sessionID": session_id, "requestID": asked["id"], "reply": "once"}
        await events.idle(session_id)
        again = await server.client.post(reply, json={"reply": "once"}, params=server.here)
        assert again.status_code == 404
    _assert_in_order(
        _labels(events, session_id),
        *("tool pending", "permission.asked", "permission.replied", "tool completed", "step-finish"),
        *("assistant tool-calls", "busy", "assistant", "step-start", "text done", "assistant stop", "idle"),
    )
    _, step, last = await server.messages(session_id)
    assert step["info"]["finish"] == "tool-calls"
    tool = next(part for part in step["parts"] if part["type"] == "tool")
    assert (tool["tool"], tool["state"]["status"], tool["state"]["output"]) == ("bash", "completed", "hi\n")
    assert tool["state"]["input"]["command"] == "echo hi"
    assert last["info"]["parentID"] == step["info"]["parentID"]
    assert _text(last) == "Done."


async def test_always_allows_the_pattern_from_then_on(server: Subject):
    session_id = await server.new_session()
    async with server.events() as events:
        server.runs("printf hi", then="Done.")
        await server.prompt(session_id)
        asked = await _first(events, session_id, "permission.asked")
        await server.post(f"/permission/{asked['id']}/reply", {"reply": "always"}, **server.here)
        await events.idle(session_id)
        other = await server.new_session()
        server.runs("printf hi", then="Done again.")
        await server.prompt(other)
        await events.idle(other)
        assert not events.of(other, "permission.asked")


async def test_rejected_without_a_word_the_turn_ends(server: Subject):
    session_id = await server.new_session()
    server.runs("echo hi", then="Never said.")
    async with server.events() as events:
        await server.prompt(session_id)
        asked = await _first(events, session_id, "permission.asked")
        await server.post(f"/permission/{asked['id']}/reply", {"reply": "reject"}, **server.here)
        await events.idle(session_id)
    last = (await server.messages(session_id))[-1]
    assert last["info"]["finish"] == "tool-calls"
    tool = next(part for part in last["parts"] if part["type"] == "tool")
    assert tool["state"]["status"] == "error"
    assert tool["state"]["error"] == "The user rejected permission to use this specific tool call."


async def test_rejected_with_a_message_the_model_goes_on(server: Subject):
    session_id = await server.new_session()
    server.runs("echo hi", then="Then not.")
    async with server.events() as events:
        await server.prompt(session_id)
        asked = await _first(events, session_id, "permission.asked")
        body = {"reply": "reject", "message": "not today", "unknown": 1}
        await server.post(f"/permission/{asked['id']}/reply", body, **server.here)
        await events.idle(session_id)
    *_, step, last = await server.messages(session_id)
    tool = next(part for part in step["parts"] if part["type"] == "tool")
    assert tool["state"]["error"].endswith("with the following feedback: not today")
    assert (last["info"]["finish"], _text(last)) == ("stop", "Then not.")


async def test_a_question_is_asked_and_its_answer_goes_to_the_model(server: Subject):
    session_id = await server.new_session()
    server.asks(then="Red it is.")
    async with server.events() as events:
        await server.prompt(session_id)
        asked = await _first(events, session_id, "question.asked")
        assert asked in await server.get("/question", **server.here)
        options = asked["questions"][0].pop("options")
        assert asked["questions"] == [{"question": "Which colour?", "header": "Colour"}]
        assert [option.keys() for option in options] == [{"label", "description"}] * 2
        path = f"/question/{asked['id']}/reply"
        assert await server.post(path, {"answers": [["Red"]]}, **server.here) is True
        replied = await _first(events, session_id, "question.replied")
        assert replied == {"sessionID": session_id, "requestID": asked["id"], "answers": [["Red"]]}
        await events.idle(session_id)
        assert await server.get("/question", **server.here) == []
    *_, step, last = await server.messages(session_id)
    tool = next(part for part in step["parts"] if part["type"] == "tool")
    assert '"Which colour?"="Red"' in tool["state"]["output"]
    assert _text(last) == "Red it is."


async def test_a_dismissed_question_ends_the_turn(server: Subject):
    session_id = await server.new_session()
    server.asks(then="Never said.")
    async with server.events() as events:
        await server.prompt(session_id)
        asked = await _first(events, session_id, "question.asked")
        assert await server.post(f"/question/{asked['id']}/reject", **server.here) is True
        rejected = await _first(events, session_id, "question.rejected")
        assert rejected == {"sessionID": session_id, "requestID": asked["id"]}
        await events.idle(session_id)
    last = (await server.messages(session_id))[-1]
    tool = next(part for part in last["parts"] if part["type"] == "tool")
    assert tool["state"]["error"] == "The user dismissed this question"
    assert last["info"]["finish"] == "tool-calls"


@pytest.mark.parametrize("kind", ["permission", "question"])
async def test_a_reply_to_what_was_never_asked_is_404(server: Subject, kind: str):
    body = {"reply": "once", "answers": [["Red"]]}
    request_id = f"{kind[:3]}_unknown"
    response = await server.client.post(f"/{kind}/{request_id}/reply", json=body, params=server.here)
    assert response.status_code == 404
    assert response.json()["_tag"] == f"{kind.title()}NotFoundError"
    assert response.json()["requestID"] == request_id


async def test_a_sub_agent_is_a_child_session_that_asks_for_itself(server: Subject):
    session_id = await server.new_session()
    call = {"command": "echo hi", "description": "Try it"}
    task = {"description": "Look", "prompt": "Look around", "subagent_type": "general"}
    child_reply = Reply(tools=[ToolCall(input=call, asks=True)], text="child done")
    server.answers(
        [
            Reply(
                tools=[SubAgent(reply=child_reply, description="Look", prompt="Look around")],
                text="All done.",
            )
        ],
        [
            Answer(calls=[("task", task)]),
            Answer(calls=[("bash", call)]),
            Answer(chunks=["child done"]),
            Answer(chunks=["All done."]),
        ],
    )
    async with server.events() as events:
        await server.prompt(session_id)

        def children() -> list[str]:
            kinds = [record["payload"] for record in events.records]
            infos = [kind["properties"]["info"] for kind in kinds if kind["type"] == "session.created"]
            return [info["id"] for info in infos if info.get("parentID") == session_id]

        (child,) = await events.until(children)
        asked = await _first(events, child, "permission.asked")
        assert asked["sessionID"] == child
        assert {session_id, child} <= (await server.status()).keys()
        assert [session["id"] for session in await server.get(f"/session/{session_id}/children")] == [child]
        await server.post(f"/permission/{asked['id']}/reply", {"reply": "once"}, **server.here)
        await events.idle(session_id)
    idle = [
        record["payload"]["properties"]["sessionID"]
        for record in events.records
        if record["payload"]["type"] == "session.idle"
    ]
    assert idle == [child, session_id]
    tool = next(part for part in (await server.messages(session_id))[1]["parts"] if part["type"] == "tool")
    assert tool["tool"] == "task"
    assert tool["state"]["metadata"]["sessionId"] == child
    assert "child done" in tool["state"]["output"]


async def test_an_abort_says_so_before_the_message_shows_it(server: Subject):
    session_id = await server.new_session()
    server.holds("one", "two")
    async with server.events() as events:
        await server.prompt(session_id)
        await events.until(lambda: events.of(session_id, "message.part.delta"))
        assert await server.post(f"/session/{session_id}/abort") is True
        await events.idle(session_id, times=2)
    labels = _labels(events, session_id)
    _assert_in_order(
        labels,
        "session.error",
        "idle",
        "session.idle",
        "text done",
        "assistant MessageAbortedError",
        "session.idle",
    )
    error = await _first(events, session_id, "session.error")
    assert error["error"] == {"name": "MessageAbortedError", "data": {"message": "Aborted"}}
    last = (await server.messages(session_id))[-1]
    assert last["info"]["error"]["name"] == "MessageAbortedError"
    assert last["info"]["time"]["completed"]
    assert "finish" not in last["info"]
    assert _text(last) == "one"
    assert session_id not in await server.status()


async def test_a_prompt_that_waits_is_lost_with_an_abort(server: Subject):
    session_id = await server.new_session()
    server.holds("one", "two", then="never said")
    async with server.events() as events:
        await server.prompt(session_id)
        await events.until(lambda: events.of(session_id, "message.part.delta"))
        await server.prompt(session_id, "second")
        await events.until(lambda: _labels(events, session_id).count("text") >= 3)
        await server.post(f"/session/{session_id}/abort")
        await events.idle(session_id, times=2)
    roles = [message["info"]["role"] for message in await server.messages(session_id)]
    assert roles == ["user", "assistant", "user"]


async def test_aborting_an_idle_session_is_true_and_says_idle_again(server: Subject):
    session_id = await server.new_session()
    async with server.events() as events:
        assert await server.post(f"/session/{session_id}/abort") is True
        await events.idle(session_id)
    assert not events.of(session_id, "session.error")


async def test_a_permission_outlives_the_abort_of_its_turn(server: Subject):
    session_id = await server.new_session()
    server.runs("echo hi", then="Never said.")
    async with server.events() as events:
        await server.prompt(session_id)
        asked = await _first(events, session_id, "permission.asked")
        await server.post(f"/session/{session_id}/abort")
        await events.idle(session_id, times=2)
        assert session_id not in await server.status()
        assert asked in await server.get("/permission", **server.here)
        assert await server.post(f"/permission/{asked['id']}/reply", {"reply": "once"}, **server.here) is True
        assert asked not in await server.get("/permission", **server.here)
    tool = next(part for part in (await server.messages(session_id))[-1]["parts"] if part["type"] == "tool")
    assert (tool["state"]["status"], tool["state"]["error"]) == ("error", "Tool execution aborted")


async def test_a_provider_error_says_idle_before_the_message_shows_it(server: Subject):
    session_id = await server.new_session()
    server.answers([Reply(error="no such luck")], [Answer(status=400, message="no such luck")])
    async with server.events() as events:
        await server.prompt(session_id)
        await events.idle(session_id, times=2)
    _assert_in_order(
        _labels(events, session_id),
        *(
            "busy",
            "assistant",
            "session.error",
            "idle",
            "session.idle",
            "assistant APIError",
            "idle",
            "session.idle",
        ),
    )
    error = (await _first(events, session_id, "session.error"))["error"]
    assert (error["name"], error["data"]["message"]) == ("APIError", "no such luck")
    last = (await server.messages(session_id))[-1]
    assert last["info"]["error"] == error
    assert last["info"]["time"]["completed"]


async def test_an_unknown_model_leaves_two_errors_and_no_answer(server: Subject):
    session_id = await server.new_session()
    async with server.events() as events:
        await server.prompt(session_id, model={"providerID": "fake", "modelID": "nope"})
        await events.until(lambda: len(events.of(session_id, "session.error")) == 2)
        await events.idle(session_id)
    errors = [properties["error"] for _, properties in events.of(session_id, "session.error")]
    assert [error["name"] for error in errors] == ["UnknownError", "UnknownError"]
    assert errors[0]["data"]["message"] == "Model not found: fake/nope."
    assert [message["info"]["role"] for message in await server.messages(session_id)] == ["user"]
    body = {"parts": [{"type": "text", "text": "x"}], "model": {"providerID": "fake", "modelID": "nope"}}
    response = await server.client.post(f"/session/{session_id}/message", json=body)
    assert response.status_code == 500


async def test_deleting_a_session_is_told_for_its_children_too(server: Subject):
    parent = await server.new_session()
    child = (await server.post("/session", {"parentID": parent}, **server.here))["id"]
    async with server.events() as events:
        await server.client.delete(f"/session/{parent}")
        await events.until(lambda: events.of(parent, "session.deleted"))
        assert events.of(child, "session.deleted")
    assert (await server.client.get(f"/session/{child}")).status_code == 404


async def test_a_deleted_session_stays_busy_in_the_status(server: Subject):
    session_id = await server.new_session()
    release = server.holds("one", "two")
    async with server.events() as events:
        await server.prompt(session_id)
        await events.until(lambda: events.of(session_id, "message.part.delta"))
        await server.client.delete(f"/session/{session_id}")
        await events.until(lambda: events.of(session_id, "session.deleted"))
        assert session_id in await server.status()
    release()


@pytest.mark.parametrize("path", ["/global/health", "/session", "/event", "/global/event", "/api/info"])
async def test_without_credentials_every_route_is_401(locked: Subject, path: str):
    for auth in (None, ("opencode", "wrong"), ("someone", "sesame")):
        response = await locked.client.get(path, auth=auth)
        assert (response.status_code, response.content) == (401, b"")
        assert response.headers["www-authenticate"] == 'Basic realm="Secure Area"'


async def test_with_credentials_it_answers(locked: Subject):
    response = await locked.client.get("/global/health", auth=("opencode", "sesame"))
    assert response.json()["healthy"] is True
    response = await locked.client.get("/global/health", params={"auth_token": "b3BlbmNvZGU6c2VzYW1l"})
    assert response.json()["healthy"] is True
