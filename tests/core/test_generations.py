"""OpenCode 1.x and 2.x behind the same tools: told apart, upgraded, cut off, and fed with nonsense."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio
import pytest

from opencode_mcp import Activity, Endpoint, Route, Session, Status
from opencode_mcp.conversation import Conversation, Reply
from opencode_mcp.conversation.listening import Silent
from opencode_mcp.errors import ConversationError
from opencode_mcp.fleet import Fleet
from opencode_mcp.testing import Ask, FakeOpenCode, Fault, Gate, Question, ToolCall
from opencode_mcp.testing import Reply as Says
from support.fleets import FAST, Listed, endpoint, only, running_fleet, status, until
from support.generations import CLASSIC, CURRENT, PASSWORD, PREVIEW, MakeFake, person
from support.mcp_client import connected, prompts

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

every_2 = pytest.mark.parametrize("make", [CURRENT, PREVIEW], ids=["2", "2-preview"])
HEALTHS = {"/global/health", "/api/info", "/api/health"}


class Hears(Silent):
    def __init__(self) -> None:
        self.heard = ""

    async def text(self, piece: str) -> None:
        self.heard += piece


class Sending:
    """A message on its way, and what is heard of its answer."""

    def __init__(self) -> None:
        self.listener = Hears()
        self.reply: Reply | None = None

    @property
    def heard(self) -> str:
        return self.listener.heard

    @property
    def text(self) -> str:
        assert self.reply is not None
        return self.reply.text


@contextlib.asynccontextmanager
async def sending(
    fleet: Fleet, message: str = "go", *, session: str | None = None
) -> AsyncGenerator[Sending]:
    """Send while the block runs; leaving it waits for the answer."""
    found = Sending()

    async def send() -> None:
        talk = Conversation(fleet)
        found.reply = await talk.send("laptop", message, seconds=30, session=session, listener=found.listener)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            yield found


@contextlib.asynccontextmanager
async def watched(fake: FakeOpenCode, **settings: Any) -> AsyncGenerator[Fleet]:
    """Serve a fake and watch it, as `laptop`."""
    listed = Listed()
    async with fake.serve(), running_fleet(listed, server_password=PASSWORD, **settings) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        yield fleet


def paths(fake: FakeOpenCode) -> list[str]:
    return [one.path for one in fake.requests]


async def stored(fake: FakeOpenCode, session: str) -> list[dict[str, Any]]:
    """What the log of a session holds."""
    async with person(fake) as client:
        answer = await client.get(f"/api/experimental/session/{session}/log")
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines][:-1]


# Told apart


async def test_of_1x_its_own_second_api_is_never_asked():
    fake = CLASSIC()
    async with watched(fake) as fleet:
        talk = Conversation(fleet)
        assert (await talk.send("laptop", "Hello", seconds=20)).text == "You said: Hello"
        assert len((await talk.read("laptop")).messages) == 2
        fake.script(Says(never_finishes=True))
        assert (await talk.send("laptop", "Go on", seconds=0)).state == "running"
        await until(lambda: fake.busy)
        assert (await talk.abort("laptop")).state == "aborted"
        fake.cut_streams()
        await until(lambda: paths(fake).count("/global/event") == 2 and only(fleet).streaming)
        assert not [path for path in paths(fake) if path.startswith("/api")]


@every_2
async def test_of_2x_nothing_but_its_api_is_asked(make: MakeFake):
    fake = make()
    async with watched(fake) as fleet:
        talk = Conversation(fleet)
        assert (await talk.send("laptop", "Hello", seconds=20)).text == "You said: Hello"
        assert len((await talk.read("laptop")).messages) == 2
        others = {path for path in paths(fake) if not path.startswith("/api/")}
        assert others == {"/global/health"}


@pytest.mark.parametrize(
    ("old", "new"),
    [(CLASSIC, CURRENT), (CLASSIC, PREVIEW), (PREVIEW, CURRENT), (CURRENT, CLASSIC)],
    ids=lambda make: make.name,
)
async def test_another_version_on_the_same_port_is_picked_up_while_watched(old: MakeFake, new: MakeFake):
    before, after = old("/srv/old"), new("/srv/new")
    before.create_session("Before")
    session = after.create_session("After")
    async with watched(before) as fleet:
        assert only(fleet).instance.version == old.version
        await before.kill()
        async with after.serve(port=before.port):
            await until(lambda: only(fleet).instance.version == new.version and only(fleet).stocked)
            instance = only(fleet).instance
            assert (instance.status, instance.directory) == (Status.ONLINE, "/srv/new")
            assert instance.session is not None
            assert instance.session.title == "After"
            reply = await Conversation(fleet).send("laptop", "Hello", seconds=20)
            assert (reply.text, reply.session_id) == ("You said: Hello", session)
            if new.generation == 1:
                assert not [path for path in paths(after) if path.startswith("/api")]


async def test_an_upgrade_to_one_that_wants_a_password_is_said():
    before, after, listed = CLASSIC(), CURRENT(), Listed()
    async with before.serve(), running_fleet(listed) as fleet:
        listed.publish(endpoint(before))
        await until(lambda: status(fleet) == "online")
        await before.kill()
        async with after.serve(port=before.port):
            await until(lambda: status(fleet) == "needs credentials")
            assert "OPENCODE_SERVER_PASSWORD" in only(fleet).instance.detail


@pytest.mark.parametrize(
    ("fault", "wanted", "detail"),
    [
        (Fault.HTML, "offline", "was answered with something else than JSON"),
        (Fault.UNAUTHORIZED, "needs credentials", "check OPENCODE_SERVER_USERNAME"),
    ],
    ids=["html", "401"],
)
async def test_a_server_with_one_answer_to_everything_is_asked_for_its_health_and_nothing_more(
    fault: Fault, wanted: str, detail: str
):
    odd, good, listed = CURRENT(), CURRENT(), Listed()
    odd.fault = fault
    async with odd.serve(), good.serve(), running_fleet(listed, server_password=PASSWORD) as fleet:
        listed.publish(endpoint(odd, "odd"), endpoint(good, "good"))
        await until(lambda: status(fleet, "odd") == wanted and status(fleet, "good") == "online")
        (found,) = [one.instance for one in fleet.monitors if one.name == "odd"]
        assert detail in found.detail
        asked = len(odd.requests)
        await until(lambda: len(odd.requests) > asked + 6)
        assert set(paths(odd)) <= HEALTHS
        assert status(fleet, "good") == "online"


# Whose process it is


class Expecting(Listed):
    """A transport that knows which process has to answer."""

    def __init__(self, **expected: Any) -> None:
        super().__init__()
        self.expected = expected

    def connect(self, endpoint: Endpoint):
        @contextlib.asynccontextmanager
        async def route() -> AsyncGenerator[Route]:
            yield Route(base_url=endpoint.url, **self.expected)

        return route()


@every_2
async def test_the_process_that_is_expected_is_followed(make: MakeFake):
    fake, listed = make(pid=4711), Expecting(pid=4711, version=make.version)
    async with fake.serve(), running_fleet(listed, server_password=PASSWORD) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "online" and only(fleet).stocked)


@pytest.mark.parametrize("make", [CLASSIC, CURRENT, PREVIEW], ids=lambda make: make.name)
@pytest.mark.parametrize(
    "expected", [{"pid": 4712}, {"pid": 4711, "version": "2.9.9"}], ids=["pid", "version"]
)
async def test_another_process_than_expected_is_sent_nothing(make: MakeFake, expected: dict[str, Any]):
    fake, listed = make(pid=4711), Expecting(**expected)
    async with fake.serve(), running_fleet(listed, server_password=PASSWORD) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "offline")
        assert "answers there, not " in only(fleet).instance.detail
        assert set(paths(fake)) <= ({"/global/health"} if make is CLASSIC else HEALTHS)
        assert {one.method for one in fake.requests} == {"GET"}


# A stream that falls silent, or is cut


@every_2
async def test_comments_are_heard_as_signs_of_life_and_are_no_events(make: MakeFake):
    fake = make(heartbeat_seconds=0.01)
    async with watched(fake, pace=FAST) as fleet:
        api, heard, events = only(fleet).api, list[int](), list[object]()

        async def read() -> None:
            async with api.events(lambda: heard.append(1)) as stream:
                async for event in stream:
                    events.append(event)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await until(lambda: len(heard) > 20)
                tasks.cancel_scope.cancel()
        assert len(events) == 1


@every_2
async def test_after_silence_it_is_pinged_then_connected_anew_and_polled_while_that_says_nothing(
    make: MakeFake,
):
    pace = dataclasses.replace(FAST, silence_of_2=0.1, mute_of_2=0.4, restream=0.3)
    fake = make(heartbeat_seconds=0.02)
    health = "/api/health" if make.preview else "/api/info"
    async with watched(fake, pace=pace) as fleet:
        await until(lambda: only(fleet).streaming)
        session, opened = fake.create_session("s"), paths(fake).count("/api/event")
        asked = paths(fake).count(health)
        fake.fault = Fault.STREAM_SILENT
        await until(lambda: paths(fake).count(health) > asked)
        await until(lambda: paths(fake).count("/api/event") > opened and only(fleet).stocked)
        fake.set_busy(session)  # no stream tells it
        await until(lambda: only(fleet).instance.activity is Activity.BUSY)
        assert only(fleet).instance.status is Status.ONLINE
        fake.fault = None
        await until(lambda: only(fleet).streaming)


@contextlib.asynccontextmanager
async def without_stream(fake: FakeOpenCode, fleet: Fleet) -> AsyncGenerator[None]:
    """Cut the stream, and refuse new ones while the block runs; then wait until it is followed again."""
    fake.fault_path, fake.fault = "/api/event", Fault.SERVER_ERROR
    fake.cut_streams()
    await until(lambda: not only(fleet).streaming)
    yield
    fake.fault = None
    await until(lambda: only(fleet).streaming)


@pytest.fixture
def only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stored is looked at unless an event is a reason to."""
    monkeypatch.setattr("opencode_mcp.conversation.waiting.CHECK_SECONDS", 60)
    monkeypatch.setattr("opencode_mcp.conversation.waiting.CHECK_WITHOUT_STREAM_SECONDS", 60)


@every_2
@pytest.mark.usefixtures("only_events")
async def test_what_was_said_while_the_stream_was_away_is_read_from_the_log_behind_what_was_heard(
    make: MakeFake,
):
    fake, gate = make(), Gate()
    fake.script(Says(tools=[ToolCall(says="First I look.")], chunks=["All ", "done."], gate=gate))
    session = fake.create_session("s")
    async with watched(fake) as fleet, sending(fleet) as sent:
        await until(lambda: len(fake.messages[session]) == 2)
        last = (await stored(fake, session))[-1]["durable"]["seq"]
        await until(lambda: only(fleet).positions == {session: last})
        async with without_stream(fake, fleet):
            gate.release()
            await until(lambda: len(fake.messages[session]) == 3)  # the next step has begun
        await until(lambda: sent.heard == "First I look.")
        gate.open()
    assert sent.heard == "First I look.\n\nAll done."
    assert sent.text == "All done."
    asked = [one for one in fake.requests if one.path.endswith("/log")]
    assert [one.query for one in asked] == [{}, {"after": str(last)}]


@every_2
@pytest.mark.usefixtures("only_events")
async def test_a_text_that_is_cut_in_the_middle_is_complete_in_the_end_and_repeats_nothing(make: MakeFake):
    fake, gate = make(), Gate()
    fake.script(Says(chunks=["one ", "two ", "three"], gate=gate))
    async with watched(fake) as fleet, sending(fleet) as sent:
        gate.release()
        await until(lambda: sent.heard == "one ")
        async with without_stream(fake, fleet):
            gate.release()
            await until(lambda: len(fake.deltas) == 2)
        gate.open()
    assert sent.text == "one two three"
    assert sent.heard in ("one three", "one two three")


@every_2
@pytest.mark.usefixtures("only_events")
async def test_an_answer_that_ends_while_the_stream_is_away_is_told_by_the_log(make: MakeFake):
    fake, gate = make(), Gate()
    fake.script(Says(chunks=["one ", "two ", "three"], gate=gate))
    async with watched(fake) as fleet, sending(fleet) as sent:
        gate.release()
        await until(lambda: sent.heard == "one ")
        async with without_stream(fake, fleet):
            gate.open()
            await until(lambda: not fake.busy)
    assert sent.text == "one two three"
    assert "one two three".startswith(sent.heard)


@every_2
async def test_without_a_log_the_lists_tell_what_was_missed(make: MakeFake):
    fake, gate = make(has_log=False), Gate()
    fake.script(Says(tools=[ToolCall(says="First I look.")], chunks=["All ", "done."], gate=gate))
    session = fake.create_session("s")
    async with watched(fake) as fleet, sending(fleet) as sent:
        await until(lambda: fake.busy and only(fleet).positions)
        async with without_stream(fake, fleet):
            gate.release()
            await until(lambda: len(fake.messages[session]) == 3)
        await until(lambda: any(path.endswith("/log") for path in paths(fake)))
        gate.open()
    assert sent.text == "All done."
    assert sent.heard.count("All done.") <= 1
    assert only_one_of_each_word(sent.heard)


def only_one_of_each_word(text: str) -> bool:
    return len(set(text.split())) == len(text.split())


@every_2
async def test_a_reader_that_is_cut_off_for_being_slow_starts_afresh(make: MakeFake):
    fake = make(most_behind=50)
    async with watched(fake) as fleet:
        await until(lambda: only(fleet).streaming)
        for number in range(400):  # in one go: nobody reads meanwhile
            fake.create_session(f"number {number}")
        await until(lambda: (only(fleet).instance.session or NOTHING).title == "number 399")
        await until(lambda: only(fleet).streaming and only(fleet).instance.status is Status.ONLINE)


NOTHING = Session(id="none")


# Nonsense


def nonsense(session: str) -> Sequence[str]:
    """Events that nobody should send."""
    started = {"type": "session.execution.started", "data": {"sessionID": session}}
    ended = {"type": "session.execution.succeeded", "data": {"sessionID": session}}
    delta = {"sessionID": session, "assistantMessageID": "msg_0", "ordinal": 0, "delta": "x"}
    return [
        "",
        "null",
        "[]",
        "{",
        '"text"',
        "[" * 100_000,
        json.dumps({"type": "session.execution.started"}),
        json.dumps({"type": "session.text.delta", "data": None}),
        json.dumps({"type": "form.created", "data": {"form": 7}}),
        json.dumps({"type": "permission.asked", "data": []}),
        json.dumps({**ended, "durable": {"aggregateID": session, "seq": 10**30}}),
        json.dumps({**ended, "durable": {"aggregateID": session, "seq": 3}}),
        json.dumps(ended),
        json.dumps(started),
        json.dumps(started),
        json.dumps(ended),
        json.dumps(ended),
        json.dumps({"type": "session.text.delta", "data": delta}),
        json.dumps({"type": "session.text.delta", "data": delta}),
        json.dumps({"type": "session.text.ended", "data": {**delta, "text": "y"}}),
        json.dumps({"type": "session.step.ended", "data": {**delta, "finish": "stop"}}),
        json.dumps({"type": "session.deleted", "data": {"sessionID": "ses_never"}}),
    ]


@every_2
async def test_events_without_data_out_of_order_and_twice_disturb_nobody(make: MakeFake):
    fake, gate = make(), Gate()
    fake.script(Says(chunks=["one ", "two"], gate=gate))
    other, session = fake.create_session("other"), fake.create_session("s")
    async with watched(fake) as fleet:
        async with sending(fleet, session=session) as sent:
            gate.release()
            await until(lambda: sent.heard == "one ")
            opened = paths(fake).count("/api/event")
            for event in nonsense(other):
                fake.emit_raw(event)
            gate.open()
        assert sent.text == sent.heard == "one two"
        assert paths(fake).count("/api/event") == opened
        await until(lambda: only(fleet).instance.activity is Activity.IDLE)
        assert only(fleet).instance.status is Status.ONLINE


@every_2
@pytest.mark.parametrize("when", ["at rest", "at work"])
async def test_an_event_of_five_megabytes_ends_the_stream_and_nothing_else(make: MakeFake, when: str):
    fake, good, gate, listed = make(), make(), Gate(), Listed()
    fake.script(Says(chunks=["one ", "two"], gate=gate))
    async with fake.serve(), good.serve(), running_fleet(listed, server_password=PASSWORD) as fleet:
        listed.publish(endpoint(fake), endpoint(good, "good"))
        await until(lambda: len(fleet.monitors) == 2 and all(one.streaming for one in fleet.monitors))
        (odd,) = [one for one in fleet.monitors if one.name == "laptop"]
        huge = json.dumps({"type": "session.text.ended", "data": {"text": "x" * 5_000_000}})
        if when == "at rest":
            fake.emit_raw(huge)
            await until(lambda: not odd.streaming)
            gate.open()
        async with sending(fleet) as sent:
            gate.release()
            await until(lambda: fake.deltas)
            fake.emit_raw(huge)
            gate.open()
        assert sent.text == "one two"
        await until(lambda: status(fleet) == status(fleet, "good") == "online")
        assert paths(good).count("/api/event") == 1


@every_2
@pytest.mark.parametrize("kind", ["holodeck", "number", ""])
async def test_a_form_with_fields_of_a_type_nobody_knows_is_a_question_all_the_same(
    make: MakeFake, kind: str
):
    fake = make()
    fake.script(Says(tools=[Ask(questions=[Question(field=kind)])]))
    session = fake.create_session("s")
    async with watched(fake) as fleet:
        fake.prompt(session, "go")
        await until(lambda: only(fleet).instance.waiting_for == "question: Which colour?")
        fake.cut_streams()  # and so it is in a fresh snapshot
        await until(lambda: paths(fake).count("/api/event") == 2 and only(fleet).streaming)
        assert only(fleet).instance.waiting_for == "question: Which colour?"


# Projects


@every_2
async def test_a_session_that_moves_to_another_directory_is_followed_there(make: MakeFake):
    fake = make("/srv/old")
    session = fake.create_session("Wanderer")
    async with watched(fake) as fleet:
        await until(lambda: only(fleet).instance.directory == "/srv/old")
        fake.move_session(session, "/srv/new")
        await until(lambda: only(fleet).instance.directory == "/srv/new")
        reply = await Conversation(fleet).send("laptop", "Hello", seconds=20)
        assert (reply.text, reply.session_id) == ("You said: Hello", session)
        assert (await Conversation(fleet).read("laptop")).session_id == session


@every_2
async def test_an_archived_session_is_gone_and_cannot_be_written_to(make: MakeFake):
    fake = make()
    kept, gone = fake.create_session("Kept"), fake.create_session("Gone")
    async with watched(fake) as fleet:
        await until(lambda: (only(fleet).instance.session or NOTHING).title == "Gone")
        fake.sessions[gone]["time"]["archived"] = 1
        fake.emit("session.archived", {"sessionID": gone})
        await until(lambda: (only(fleet).instance.session or NOTHING).title == "Kept")
        with pytest.raises(ConversationError, match="The session is archived"):
            await Conversation(fleet).send("laptop", "Hi", seconds=20, session=gone)
        assert (await Conversation(fleet).send("laptop", "Hi", seconds=20)).session_id == kept


@every_2
async def test_one_server_with_many_projects_is_one_line_with_its_busiest_or_newest_session(make: MakeFake):
    fake, gate = make("/srv/home"), Gate()
    fake.script(Says(chunks=["ok"], gate=gate))
    blog = fake.create_session("Blog", directory="/srv/blog")
    shop = fake.create_session("Shop", directory="/srv/shop")
    async with connected(fake, mode="auto") as connection:
        await connection.until("alpha", session="Shop", directory="/srv/shop", activity="idle")
        fake.prompt(blog, "Go")
        await connection.until("alpha", session="Blog", directory="/srv/blog", activity="busy")
        assert len((await connection.call("instances")).data["instances"]) == 1
        # The others are free meanwhile, wherever they are.
        answer = await connection.call("send", instance="alpha", session="Shop", message="Hi")
        assert (answer.text, answer.data["session_id"]) == ("You said: Hi", shop)
        busy = await connection.call("send", instance="alpha", session="blog", message="Hi")
        assert busy.data["state"] == "busy"
        gate.open()
        await connection.until("alpha", activity="idle", session="Blog")
        for wanted, directory, texts in (
            ("Blog", "/srv/blog", ["Go", "ok"]),
            (shop, "/srv/shop", ["Hi", "You said: Hi"]),
        ):
            told = await connection.call("read", instance="alpha", session=wanted)
            assert [one["text"] for one in told.data["messages"]] == texts
            assert fake.sessions[told.data["session_id"]]["directory"] == directory


# Turns of others


@every_2
async def test_a_message_never_steers_the_running_turn_of_somebody_else(make: MakeFake):
    fake, gate = make(), Gate()
    fake.script(Says(tools=[ToolCall(says="I look.")], text="For them.", gate=gate), Says(text="For us."))
    session = fake.create_session("Shared")
    async with watched(fake) as fleet:
        fake.prompt(session, "Theirs")
        await until(lambda: only(fleet).picture.is_busy(session))
        api = only(fleet).api
        # As if their turn had begun between our look and our message.
        message = await api.prompt(await api.session(session), "Ours")
        (asked,) = [one for one in fake.requests if one.path.endswith("/prompt")]
        assert asked.body == {"text": "Ours", "delivery": "queue"}
        gate.open()
        await until(lambda: not fake.busy)
        said = {one.text: one.parent_id for one in await api.messages(session, 10) if one.role == "assistant"}
        assert list(said) == ["I look.", "For them.", "For us."]
        assert said["For us."] == message
        assert said["I look."] == said["For them."] != message


@every_2
async def test_who_waits_behind_the_turn_of_somebody_else_hears_only_the_own_answer(make: MakeFake):
    fake, gate, listed = make(), Gate(), Listed()
    fake.script(Says(chunks=["For ", "them."], gate=gate), Says(text="For us.", gate=gate))
    session = fake.create_session("Shared")
    async with fake.serve(), running_fleet(listed, server_password=PASSWORD) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        held = fake.hold_turns()
        fake.prompt(session, "Theirs")  # taken, and not begun: the session looks idle
        async with sending(fleet) as sent:
            await until(lambda: prompts(fake))
            held.set()
            gate.release()
            await until(lambda: fake.deltas)
            gate.open()
        assert sent.heard == sent.text == "For us."
        assert sent.reply is not None
        assert sent.reply.state == "done"


@every_2
async def test_a_message_that_steers_our_turn_is_answered_together_with_ours(make: MakeFake):
    fake, gate = make(), Gate()
    fake.script(Says(tools=[ToolCall(says="I look.")], text="Done, quickly.", gate=gate))
    session = fake.create_session("Shared")
    async with watched(fake) as fleet:
        async with sending(fleet) as sent:
            await until(lambda: len(fake.messages[session]) == 2)  # its first step has begun
            async with person(fake) as client:
                body = {"text": "And quickly", "delivery": "steer"}
                (await client.post(f"/api/session/{session}/prompt", json=body)).raise_for_status()
            gate.open()
        assert sent.text == "Done, quickly."
        assert sent.reply is not None
        assert sent.reply.state == "done"


@every_2
async def test_what_is_parked_by_somebody_who_interrupts_is_not_waited_for(make: MakeFake):
    fake, gate, listed = make(), Gate(), Listed()
    fake.script(Says(chunks=["For ", "them."], gate=gate))
    session = fake.create_session("Shared")
    async with fake.serve(), running_fleet(listed, server_password=PASSWORD) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        held = fake.hold_turns()
        fake.prompt(session, "Theirs")
        async with sending(fleet) as sent:
            await until(lambda: prompts(fake))
            held.set()
            gate.release()
            await until(lambda: fake.deltas and only(fleet).picture.is_busy(session))
            async with person(fake) as client:
                (await client.post(f"/api/session/{session}/interrupt")).raise_for_status()
        assert sent.reply is not None
        assert (sent.reply.state, sent.text) == ("running", "")
        assert "the message waits on laptop" in sent.reply.note


@every_2
async def test_a_new_session_is_in_the_project_that_is_shown_not_where_the_server_runs(make: MakeFake):
    fake = make()
    fake.create_session("Shop", directory="/srv/shop")
    async with watched(fake) as fleet:
        assert only(fleet).instance.directory == "/srv/shop"
        reply = await Conversation(fleet).send("laptop", "Hi", seconds=30, session="new")
    assert fake.sessions[reply.session_id]["directory"] == "/srv/shop"


@every_2
async def test_an_event_that_comes_twice_is_heard_once(make: MakeFake):
    fake, gate = make(), Gate()
    fake.script(Says(chunks=["Hello ", "world"], gate=gate))
    async with watched(fake) as fleet:
        async with sending(fleet) as sent:
            gate.release()
            await until(lambda: fake.deltas)
            session = next(iter(fake.sessions))
            message = fake.messages[session][-1]["info"]["id"]
            data = {"sessionID": session, "assistantMessageID": message, "ordinal": 0, "delta": "twice "}
            twice = {"id": "evt_same", "type": "session.text.delta", "data": data}
            for _ in range(2):
                fake.emit_raw(json.dumps(twice))
            await until(lambda: "twice" in sent.heard)
            gate.open()
        assert sent.heard.count("twice") == 1


# Together


async def test_all_generations_live_behind_the_same_three_tools():
    fakes = {"classic": CLASSIC(), "current": CURRENT(), "preview": PREVIEW()}
    ids = {name: fake.create_session(f"Of {name}") for name, fake in fakes.items()}
    async with connected(*fakes.values(), mode="auto", names=tuple(fakes)) as connection:
        rows = {row["name"]: row for row in (await connection.call("instances")).data["instances"]}
        assert {name: row["version"] for name, row in rows.items()} == {
            "classic": CLASSIC.version,
            "current": CURRENT.version,
            "preview": PREVIEW.version,
        }
        for name, fake in fakes.items():
            await connection.until(name, session=f"Of {name}", directory="/srv/project")
            answer = await connection.call("send", instance=name, message=f"Hi, {name}", listen=True)
            assert answer.streamed == answer.text == f"You said: Hi, {name}"
            told = await connection.call("read", instance=name)
            assert told.data["session_id"] == ids[name]
            assert [one["text"] for one in told.data["messages"]] == [f"Hi, {name}", answer.text]
            fake.script(Says(text="Endless", never_finishes=True))
            await connection.call("send", instance=name, message="Go", wait=0)
            await until(lambda fake=fake: fake.busy)
            stopped = await connection.call("send", instance=name, abort=True)
            assert stopped.data["state"] == "aborted"
            assert not fake.busy
        for name, fake in fakes.items():
            assert [text for _, text in prompts(fake)] == [f"Hi, {name}", "Go"]


async def test_one_that_hangs_holds_up_none_of_another_generation():
    fakes = {"classic": CLASSIC(), "current": CURRENT(), "hangs": CURRENT(), "hung": CLASSIC()}
    fakes["hangs"].fault = fakes["hung"].fault = Fault.HANG
    async with connected(*fakes.values(), mode="auto", names=tuple(fakes), online=False) as connection:
        for name in ("classic", "current"):
            await connection.until(name)
            assert (await connection.call("send", instance=name, message="Hi")).text == "You said: Hi"
