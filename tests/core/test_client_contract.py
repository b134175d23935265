"""What everything else relies on in an `OpenCode`, whatever its generation: on fakes and on the real one."""

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2
import pytest

from opencode_mcp import Activity, Route, Session, opencode_auth
from opencode_mcp.errors import CredentialsError, RequestError
from opencode_mcp.opencode.api import (
    ActivityChanged,
    Delta,
    Event,
    Logged,
    Message,
    MessageUpdated,
    OpenCode,
    PartUpdated,
    RequestClosed,
    RequestOpened,
    SessionChanged,
    SessionDeleted,
    SessionFailed,
    SessionUpdated,
)
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http
from opencode_mcp.testing import Ask, FakeOpenCode, Gate, Question, Reply, SubAgent, ToolCall
from support.generations import CLASSIC, CURRENT, PASSWORD, PREVIEW, MakeFake, answer_permission
from support.model_server import Answer, ModelServer
from support.real_opencode import VERSION, project_config, running_opencode

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FAKES: dict[str, MakeFake] = {"1": CLASSIC, "2": CURRENT, "2-preview": PREVIEW}
EVERY = [*FAKES, pytest.param("real", marks=pytest.mark.real)]
WAIT_SECONDS = 20

Kind = TypeVar("Kind")


class Recording(httpx2.AsyncHTTPTransport):
    """Notes the path of each request."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.paths.append(request.url.path)
        return await super().handle_async_request(request)


class Told:
    """What the stream told so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lives = 0
        self._news = anyio.Event()

    def hear(self) -> None:
        self.lives += 1

    def add(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()
        self._news = anyio.Event()

    def of(self, kind: type[Kind], session_id: str = "") -> list[Kind]:
        """The events of a kind, of one session or of all."""
        return [
            one
            for one in self.events
            if isinstance(one, kind) and (not session_id or getattr(one, "session_id", "") == session_id)
        ]

    async def until(self, condition: Callable[[], Any]) -> Any:
        with anyio.fail_after(WAIT_SECONDS):
            while not (found := condition()):
                await self._news.wait()
        return found

    async def rest(self, session_id: str, times: int = 1) -> None:
        """Wait until a session came to rest for the nth time after work."""

        def came() -> bool:
            levels = [one.activity for one in self.of(ActivityChanged, session_id)]
            turns = [now for before, now in zip([None, *levels], levels, strict=False) if now is not before]
            return turns.count(Activity.IDLE) >= times

        await self.until(came)

    def streamed(self, session_id: str) -> str:
        """The text that streamed, without reasoning and questions."""
        kinds: dict[str, str] = {}
        pieces: list[tuple[str, str]] = []
        for one in self.events:
            if isinstance(one, PartUpdated) and one.session_id == session_id:
                kinds[one.part_id] = one.kind
            elif isinstance(one, Delta) and one.session_id == session_id:
                if one.kind:
                    kinds[one.part_id] = one.kind
                pieces.append((one.part_id, one.text))
        return "".join(piece for part_id, piece in pieces if kinds.get(part_id) == "text")


class Subject:
    """A server, its model, and our client of it."""

    def __init__(self, api: OpenCode, paths: Sequence[str], directory: str) -> None:
        self.api = api
        self.paths = paths
        self.directory = directory
        self.fake: FakeOpenCode | None = None
        self.model: ModelServer | None = None
        self.person: httpx2.AsyncClient | None = None

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

    def holds(self, first: str, second: str) -> Callable[[], None]:
        """Say `first`, and `second` once the returned function is called."""
        gate, event = Gate(), anyio.Event()
        gate.release()
        self.answers([Reply(chunks=[first, second], gate=gate)], [Answer(chunks=[first, second], gate=event)])

        def release() -> None:
            gate.open()
            event.set()

        return release

    def runs(self, command: str, then: str) -> None:
        """Call `bash`, which asks, and say something."""
        call = {"command": command, "description": "Try it"}
        self.answers(
            [
                Reply(
                    tools=[ToolCall(input=call, asks=True, patterns=[command], always=[f"{command} *"])],
                    text=then,
                )
            ],
            [Answer(calls=[("bash", call)]), Answer(chunks=[then])],
        )

    async def decide(self, request_id: str, session_id: str) -> None:
        """Allow something, once, as a person does."""
        if self.fake is not None:
            await answer_permission(self.fake)
            return
        assert self.person is not None
        here = {"directory": self.directory}
        reply = await self.person.post(f"/permission/{request_id}/reply", params=here, json={"reply": "once"})
        reply.raise_for_status()

    async def rename(self, session: Session, title: str) -> None:
        """Give a session another title, on the server's own screen."""
        if self.fake is not None:
            self.fake._works.store.touch_session(session.id, title=title)
            return
        assert self.person is not None
        (await self.person.patch(f"/session/{session.id}", json={"title": title})).raise_for_status()

    async def delete(self, session: Session) -> None:
        """Remove a session, on the server's own screen."""
        if self.fake is not None:
            self.fake._works.store.delete_session(session.id)
            return
        assert self.person is not None
        (await self.person.delete(f"/session/{session.id}")).raise_for_status()

    @contextlib.asynccontextmanager
    async def told(self) -> AsyncGenerator[Told]:
        """Follow the stream while the block runs."""
        told = Told()

        async def read() -> None:
            async with self.api.events(told.hear) as events:
                async for event in events:
                    told.add(event)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await told.until(lambda: told.events)
            await self._listening(told)
            yield told
            tasks.cancel_scope.cancel()

    async def _listening(self, told: Told) -> None:
        """Wait until the stream tells what happens: that of 1.x loses what comes right after its start."""

        def heard() -> bool:
            return any(one.session.id in probes for one in told.of(SessionUpdated))

        probes: list[str] = []
        with anyio.fail_after(WAIT_SECONDS):
            while not heard():
                probes.append((await self.api.create_session(self.directory)).id)
                with anyio.move_on_after(0.2):
                    await told.until(heard)

    async def new(self) -> Session:
        return await self.api.create_session(self.directory)

    async def turn(self, told: Told, session: Session, text: str = "go") -> list[Message]:
        """Prompt, wait for the end, and return what is stored."""
        before = len(await self.api.messages(session.id, 20))
        await self.api.prompt(session, text)
        with anyio.fail_after(WAIT_SECONDS):
            while len(await self.api.messages(session.id, 20)) < before + 2:
                await anyio.sleep(0.02)
        await self.settled(session)
        resting = ActivityChanged(session.id, Activity.IDLE)
        await told.until(lambda: told.of(ActivityChanged, session.id)[-1:] == [resting])
        return list(await self.api.messages(session.id, 20))

    async def settled(self, session: Session) -> None:
        """Wait until nothing runs: rest can be told a moment before it is true."""
        with anyio.fail_after(WAIT_SECONDS):
            while await self.api.is_busy(session):
                await anyio.sleep(0.02)
            while not all(_ended(one) for one in await self.api.messages(session.id, 20)):
                await anyio.sleep(0.02)


def _ended(message: Message) -> bool:
    return message.completed or message.role == "user"


@contextlib.asynccontextmanager
async def _subject(kind: str, root: Path) -> AsyncGenerator[Subject]:
    async with contextlib.AsyncExitStack() as stack:
        fake = model = person = None
        if kind in FAKES:
            fake = FAKES[kind](str(root), deaf_seconds=0.05) if kind == "1" else FAKES[kind](str(root))
            await stack.enter_async_context(fake.serve())
            url = fake.url
        else:
            model = ModelServer()
            await stack.enter_async_context(model.serve())
            url = (await stack.enter_async_context(running_opencode(root, model.url))).url
            person = httpx2.AsyncClient(base_url=url, timeout=WAIT_SECONDS, trust_env=False)
            await stack.enter_async_context(person)
            await person.get("/provider", params={"directory": str(root)})  # an abort before this breaks it
        recording = Recording()
        route = Route(base_url=url, transport=recording)
        http = Http(route, seconds=10, vouched=True, auth=opencode_auth(PASSWORD))
        await stack.enter_async_context(http)
        subject = Subject(await detect(http), recording.paths, str(root))
        subject.fake, subject.model, subject.person = fake, model, person
        yield subject


@pytest.fixture(scope="module", params=EVERY)
async def server(
    request: pytest.FixtureRequest, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Subject]:
    async with _subject(request.param, tmp_path_factory.mktemp("project")) as subject:
        yield subject
        if subject.api.generation == 1:
            assert not [path for path in subject.paths if path.startswith("/api")]
        else:
            assert {path for path in subject.paths if not path.startswith("/api/")} == {"/global/health"}


def versions() -> dict[str, str]:
    return {"real": VERSION, **{name: make.version for name, make in FAKES.items()}}


async def test_it_is_recognised_with_its_version(server: Subject):
    assert server.api.version in versions().values()
    assert server.api.generation == int(server.api.version[0])
    await server.api.ping()
    assert await server.api.directory() == (server.directory if server.api.generation == 1 else "")


async def test_a_wrong_password_is_an_error_of_credentials():
    for make in FAKES.values():
        async with make(password="right").serve() as fake:
            for auth, says in (
                (None, "It wants a password"),
                (opencode_auth("wrong"), "It refuses our user name"),
            ):
                async with Http(Route(base_url=fake.url), seconds=10, vouched=True, auth=auth) as http:
                    with pytest.raises(CredentialsError, match=says):
                        await detect(http)


async def test_a_session_is_created_where_it_is_wanted_and_listed_newest_first(
    server: Subject, tmp_path: Path
):
    first, second = await server.new(), await server.new()
    there = await server.api.create_session(str(tmp_path))
    home = await server.api.create_session("")
    assert (first.directory, there.directory) == (server.directory, str(tmp_path))
    assert home.directory == server.directory
    assert first.parent_id is None
    listed = [one.id for one in await server.api.sessions()]
    assert listed.index(second.id) < listed.index(first.id)
    for one in (first, there):
        assert (await server.api.session(one.id)).directory == one.directory


async def test_a_session_that_is_not_there_is_refused(server: Subject):
    with pytest.raises(RequestError):
        await server.api.session("ses_0000000000000000000000000")
    with pytest.raises(RequestError):
        await server.api.messages("ses_0000000000000000000000000", 10)


async def test_a_turn_is_told_and_stored(server: Subject):
    session = await server.new()
    server.says("Hello ", "to ", "you.", reasoning=["Hm, ", "they greet."])
    async with server.told() as told:
        asked, answer = await server.turn(told, session, "Say hello")
        await told.until(lambda: told.streamed(session.id) == "Hello to you.")
        levels = [one.activity for one in told.of(ActivityChanged, session.id)]
        assert (levels[0], levels[-1]) == (Activity.BUSY, Activity.IDLE)
        messages = told.of(MessageUpdated, session.id)
        roles = {one.message.id: one.message.role for one in messages}
        assert roles == {asked.id: "user", answer.id: "assistant"}
        assert {one.message.parent_id for one in messages if one.message.role == "assistant"} == {asked.id}
        assert messages[[one.message.id for one in messages].index(answer.id)].message.completed is False
        last = [one.message for one in messages if one.message.id == answer.id][-1]
        assert (last.completed, last.finish, last.error) == (True, "stop", "")
        whole = [one.text for one in told.of(PartUpdated, session.id) if one.message_id == answer.id]
        assert "Hello to you." in whole
        assert told.lives
    assert (asked.role, asked.text, asked.parent_id) == ("user", "Say hello", "")
    assert (answer.text, answer.finish, answer.error, answer.parent_id) == (
        "Hello to you.",
        "stop",
        "",
        asked.id,
    )
    assert answer.created >= asked.created > 0


async def test_a_prompt_tells_its_id_or_nothing(server: Subject):
    session = await server.new()
    server.says("ok")
    async with server.told() as told:
        told_id = await server.api.prompt(session, "go")
        await told.rest(session.id)
        await server.settled(session)
    asked, _ = await server.api.messages(session.id, 10)
    assert told_id == ("" if server.api.generation == 1 else asked.id)


async def test_the_newest_messages_are_told_oldest_first_each_with_whom_it_answers(server: Subject):
    session = await server.new()
    async with server.told() as told:
        for number in range(3):
            server.says(f"answer {number}")
            await server.turn(told, session, f"question {number}")
    everything = list(await server.api.messages(session.id, 100))
    assert [one.text for one in everything] == [
        text for number in range(3) for text in (f"question {number}", f"answer {number}")
    ]
    for limit in range(1, 7):
        found = list(await server.api.messages(session.id, limit))
        assert found == everything[-limit:]
    assert [one.parent_id for one in everything[1::2]] == [one.id for one in everything[::2]]


async def test_each_step_with_a_tool_is_a_message_of_the_same_turn(server: Subject):
    session = await server.new()
    server.runs("echo hi", then="Said.")
    async with server.told() as told:
        await server.api.prompt(session, "go")
        (opened,) = await told.until(lambda: told.of(RequestOpened))
        await server.decide(opened.request.id, session.id)
        await told.rest(session.id)
        await server.settled(session)
        used = [one.tool for one in told.of(PartUpdated, session.id) if one.tool is not None]
        assert {one.tool for one in used} == {"bash"}
        assert used[-1].status == "completed"
        assert used[-1].title
    asked, step, last = await server.api.messages(session.id, 10)
    assert (step.finish, step.completed, step.parent_id) == ("tool-calls", True, asked.id)
    assert [(one.tool, one.status) for one in step.tools] == [("bash", "completed")]
    assert (last.text, last.finish, last.parent_id) == ("Said.", "stop", asked.id)


async def test_who_is_at_work_is_known_in_every_project(server: Subject, tmp_path: Path):
    if server.model is not None:
        (tmp_path / "opencode.json").write_text(json.dumps(project_config(server.model.url)))
    here, there = await server.new(), await server.api.create_session(str(tmp_path))
    async with server.told() as told:
        for session in (here, there):
            release = server.holds("one ", "two")
            await server.api.prompt(session, "go")
            await told.until(lambda session=session: told.streamed(session.id) == "one ")
            assert await server.api.is_busy(session)
            snapshot = await server.api.snapshot([str(tmp_path)])
            assert session.id in snapshot.busy
            assert session.id in {one.id for one in snapshot.sessions} or server.api.generation == 1
            release()
            await told.rest(session.id)
            await server.settled(session)
        snapshot = await server.api.snapshot([str(tmp_path)])
        assert not {here.id, there.id} & snapshot.busy
        assert snapshot.directory == await server.api.directory()


async def test_an_abort_ends_the_turn_and_keeps_what_was_said(server: Subject):
    session = await server.new()
    release = server.holds("Half of ", "it")
    async with server.told() as told:
        await server.api.prompt(session, "go")
        await told.until(lambda: told.streamed(session.id) == "Half of ")
        await server.api.abort(session.id)
        await told.rest(session.id)
        await told.until(lambda: told.of(SessionFailed, session.id))
        await server.settled(session)
    release()
    _, answer = await server.api.messages(session.id, 10)
    assert (answer.text, answer.completed) == ("Half of ", True)
    assert answer.error
    await server.api.abort(session.id)  # idle: no error


async def test_a_permission_is_told_listed_and_closed(server: Subject):
    session = await server.new()
    server.runs("echo hi", then="ok")
    async with server.told() as told:
        await server.api.prompt(session, "go")
        (opened,) = await told.until(lambda: told.of(RequestOpened))
        asked = opened.request
        assert (asked.kind, asked.session_id, asked.summary) == ("permission", session.id, "bash: echo hi")
        assert asked in (await server.api.snapshot()).requests
        await server.decide(asked.id, session.id)
        await told.until(lambda: RequestClosed(asked.id) in told.events)
        await told.rest(session.id)
        assert asked not in (await server.api.snapshot()).requests


async def test_a_question_is_told_and_listed_and_an_abort_ends_it(server: Subject):
    session = await server.new()
    options = [{"label": label, "description": f"Choose {label}"} for label in ("Red", "Blue")]
    question = {"question": "Which colour?", "header": "Colour", "options": options}
    server.answers(
        [Reply(tools=[Ask(questions=[Question()])])],
        [Answer(calls=[("question", {"questions": [question]})])],
    )
    async with server.told() as told:
        await server.api.prompt(session, "go")
        (opened,) = await told.until(lambda: told.of(RequestOpened))
        asked = opened.request
        assert (asked.kind, asked.session_id, asked.summary) == ("question", session.id, "Which colour?")
        assert asked in (await server.api.snapshot()).requests
        await server.api.abort(session.id)
        await told.rest(session.id)
        await server.settled(session)


async def test_a_sub_agent_is_a_session_of_its_own_that_asks_for_itself(server: Subject):
    session = await server.new()
    call = {"command": "echo child", "description": "Try it"}
    child = Reply(tools=[ToolCall(input=call, asks=True, patterns=["echo child"])], text="Looked.")
    task = {"description": "Look around", "prompt": "Look", "subagent_type": "general"}
    server.answers(
        [Reply(tools=[SubAgent(reply=child)], text="It looked.")],
        [
            Answer(calls=[("task", task)]),
            Answer(calls=[("bash", call)]),
            Answer(chunks=["Looked."]),
            Answer(chunks=["It looked."]),
        ],
    )
    async with server.told() as told:
        await server.api.prompt(session, "go")
        (opened,) = await told.until(lambda: told.of(RequestOpened))
        asked = opened.request
        born = [one.session for one in told.of(SessionUpdated) if one.session.parent_id == session.id]
        assert asked.session_id == born[0].id != session.id
        snapshot = await server.api.snapshot()
        assert {session.id, asked.session_id} <= snapshot.busy
        assert asked in snapshot.requests
        assert asked.session_id not in {one.id for one in await server.api.sessions()}
        await server.decide(asked.id, asked.session_id)
        await told.rest(asked.session_id)
        await told.rest(session.id)
        await server.settled(session)
    assert (await server.api.messages(session.id, 10))[-1].text == "It looked."


async def test_a_provider_error_is_told_and_stored(server: Subject):
    session = await server.new()
    server.answers([Reply(error="no credit")], [Answer(status=400, message="no credit")])
    async with server.told() as told:
        await server.api.prompt(session, "go")
        failed = await told.until(lambda: told.of(SessionFailed, session.id))
        assert "no credit" in failed[0].error
        await told.rest(session.id)
        await server.settled(session)
    _, answer = await server.api.messages(session.id, 10)
    assert answer.completed
    assert "no credit" in answer.error


async def test_new_titles_and_ends_of_sessions_are_told(server: Subject):
    async with server.told() as told:
        session = await server.new()
        await told.until(lambda: any(one.session.id == session.id for one in told.of(SessionUpdated)))
        await server.rename(session, "Another title")

        def title() -> str:
            said = [one.session.title for one in told.of(SessionUpdated) if one.session.id == session.id]
            said += [one.title or "" for one in told.of(SessionChanged, session.id)]
            return said[-1]

        await told.until(lambda: title() == "Another title")
        assert (await server.api.session(session.id)).title == "Another title"
        await server.delete(session)
        await told.until(lambda: told.of(SessionDeleted, session.id))
        assert session.id not in {one.id for one in await server.api.sessions()}


async def test_what_a_session_keeps_can_be_read_from_where_one_left_off_or_there_is_nothing(server: Subject):
    session = await server.new()
    async with server.told() as told:
        server.says("one")
        await server.turn(told, session, "first")
        if server.api.generation == 1:
            assert list(await server.api.log(session.id, 0)) == []
            return
        position = max(one.position for one in told.of(Logged, session.id))
        server.says("two ", "words")
        *_, answer = await server.turn(told, session, "second")
        missed = list(await server.api.log(session.id, position))
        kinds = {type(one) for one in missed}
        assert {ActivityChanged, MessageUpdated, PartUpdated, Logged} <= kinds
        assert Delta not in kinds
        said = [one.text for one in missed if isinstance(one, PartUpdated) and one.message_id == answer.id]
        assert said == ["two words"]
        positions = [one.position for one in missed if isinstance(one, Logged)]
        assert positions == sorted(set(positions))
        assert positions[0] == position + 1
        assert list(await server.api.log(session.id, positions[-1])) == []
        assert list(await server.api.log("ses_0000000000000000000000000", 0)) == []
