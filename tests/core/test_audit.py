"""What the hook `opencode_mcp_instance_audit` is told of each action, from its beginning to its end."""

import dataclasses
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from mcp_types import Implementation

from opencode_mcp import Action, Activity, hookimpl
from opencode_mcp.conversation import Conversation
from opencode_mcp.errors import ConversationError, OpenCodeMCPError
from opencode_mcp.fleet import Fleet
from opencode_mcp.testing import FakeOpenCode, Fault, Gate, Reply
from support.command import Command
from support.distributions import Site
from support.fleets import Listed, endpoint, only, running_fleet, until
from support.held import held
from support.mcp_client import connected, in_both_eras, prompts

pytestmark = pytest.mark.anyio

LONG = 30.0


class Audit:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.actions: list[Action] = []

    @hookimpl
    def opencode_mcp_instance_audit(self, action: Action) -> None:
        self.actions.append(action)

    async def told(self, count: int = 2) -> Sequence[Action]:
        """Wait until it has been told so much; it is told a moment later."""
        await until(lambda: len(self.actions) >= count, show=lambda: self.actions)
        assert len(self.actions) == count
        return self.actions

    async def both(self) -> tuple[Action, Action]:
        """The beginning and the end of the only action there was, of which they have the same in common."""
        begin, end = await self.told()
        assert (begin.outcome, begin.detail) == ("", "")
        assert end.outcome != ""
        assert dataclasses.replace(end, outcome="", detail="", session=begin.session) == begin
        return begin, end


@dataclasses.dataclass
class Audited:
    """A fleet with one instance, and how much it had been asked to do as each action was told of.

    Attributes:
        sent: How many requests that change something had come in, for each that was told.
    """

    fleet: Fleet
    talk: Conversation
    audit: Audit
    fake: FakeOpenCode
    sent: list[int]


@asynccontextmanager
async def audited(fake: FakeOpenCode, *hooks: object) -> AsyncGenerator[Audited]:
    listed, audit, sent = Listed(), Audit(), list[int]()
    async with fake.serve(), running_fleet(listed, hooks=[audit, *hooks]) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        tell = fleet.audit

        def count(action: Action) -> None:
            sent.append(sum(request.method != "GET" for request in fake.requests))
            tell(action)

        fleet.audit = count
        yield Audited(fleet, Conversation(fleet, patience=1.0), audit, fake, sent)


async def test_sending_is_told_before_anything_is_sent_and_when_it_is_over():
    fake = FakeOpenCode()
    session = fake.create_session("Greetings")
    async with audited(fake) as one:
        before = datetime.now(UTC)
        instance = only(one.fleet).instance
        await one.talk.send("laptop", "Say hello", seconds=LONG, caller="me")
        begin, end = await one.audit.both()
    assert (begin.kind, begin.caller, begin.text, begin.session) == ("send", "me", "Say hello", session)
    assert (end.outcome, end.detail, end.session) == ("done", "", session)
    assert begin.instance == instance
    assert before <= begin.began <= datetime.now(UTC)
    assert one.sent == [0, 1]


async def test_the_session_of_a_new_conversation_is_known_at_the_end():
    fake = FakeOpenCode()
    async with audited(fake) as one:
        reply = await one.talk.send("laptop", "Hi", seconds=LONG, session="new")
        begin, end = await one.audit.both()
    assert (begin.session, end.session) == ("", reply.session_id)
    assert reply.session_id in fake.sessions
    assert one.sent[0] == 0  # not even a session had been made


async def test_a_busy_session_gets_nothing_and_that_is_the_outcome():
    fake = FakeOpenCode()
    session = fake.create_session("Deploy")
    async with audited(fake) as one:
        fake.set_busy(session)
        await until(lambda: only(one.fleet).instance.activity is Activity.BUSY)
        reply = await one.talk.send("laptop", "Hi", seconds=LONG)
        _, end = await one.audit.both()
    assert (end.outcome, end.detail, end.session) == ("busy", reply.note, session)
    assert one.sent == [0, 0]


async def test_an_agent_that_fails_is_the_outcome_without_what_it_said():
    fake = FakeOpenCode()
    fake.script(Reply(text="My secret thoughts", error="No credit left"))
    async with audited(fake) as one:
        reply = await one.talk.send("laptop", "Hi", seconds=LONG)
        _, end = await one.audit.both()
    assert (end.outcome, reply.state) == ("failed", "failed")
    assert "No credit left" in end.detail
    assert "secret thoughts" not in f"{end}{end.detail}{end.text}"


async def test_an_agent_that_works_on_is_the_outcome_when_the_waiting_is_over():
    fake = FakeOpenCode()
    fake.script(Reply(text="My secret thoughts", never_finishes=True))
    async with audited(fake) as one:
        await one.talk.send("laptop", "Hi", seconds=0)
        _, end = await one.audit.both()
    assert end.outcome == "running"
    assert "secret thoughts" not in end.detail


async def test_stopping_an_agent_is_told():
    fake = FakeOpenCode()
    fake.script(Reply(text="x", never_finishes=True))
    session = fake.create_session("Deploy")
    async with audited(fake) as one:
        fake.prompt(session, "Go")
        await until(lambda: only(one.fleet).instance.activity is Activity.BUSY)
        await one.talk.abort("laptop", caller="me")
        begin, end = await one.audit.both()
    assert (begin.kind, begin.caller, begin.text, begin.session) == ("abort", "me", "", session)
    assert (end.outcome, end.session) == ("aborted", session)
    assert one.sent == [0, 1]


async def test_an_agent_that_is_not_at_work_cannot_be_stopped_and_that_is_told():
    async with audited(FakeOpenCode()) as one:
        await one.talk.abort("laptop")
        begin, end = await one.audit.both()
    assert (begin.kind, begin.session, end.outcome) == ("abort", "", "nothing to abort")
    assert one.sent == [0, 0]


async def test_reading_is_told_without_what_was_read():
    fake = FakeOpenCode()
    session = fake.create_session("Greetings")
    async with audited(fake) as one:
        await one.talk.send("laptop", "Say hello", seconds=LONG)
        await one.audit.told()
        one.audit.actions.clear()
        await one.talk.read("laptop", caller="me")
        begin, end = await one.audit.both()
    assert (begin.kind, begin.caller, begin.text, begin.session) == ("read", "me", "", session)
    assert (end.outcome, end.detail) == ("done", "")


@pytest.mark.parametrize(
    ("path", "detail"),
    [("/session", ""), ("/session/{session}/prompt_async", "Whether the message arrived is not known")],
)
async def test_an_error_is_the_outcome_and_says_what_may_have_happened(path: str, detail: str):
    fake = FakeOpenCode()
    session = fake.create_session("Greetings")
    async with audited(fake) as one:
        fake.fault, fake.fault_path = Fault.SERVER_ERROR, path.format(session=session)
        with pytest.raises(OpenCodeMCPError) as error:
            await one.talk.send("laptop", "Hi", seconds=LONG)
        _, end = await one.audit.both()
    assert end.outcome == "error"
    assert end.detail == " ".join(str(error.value).split())
    assert detail in end.detail


async def test_who_stops_waiting_is_told_and_what_was_sent_goes_on():
    fake, gate = FakeOpenCode(), Gate()
    fake.script(Reply(text="ok", gate=gate))
    fake.create_session("Greetings")
    async with audited(fake) as one:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: one.talk.send("laptop", "Hi", seconds=LONG))
            await until(lambda: prompts(fake))
            await one.audit.told(1)
            tasks.cancel_scope.cancel()
        _, end = await one.audit.both()
        assert end.outcome == "cancelled"
        assert "goes on" in end.detail
        gate.open()


async def test_of_what_concerns_no_instance_nothing_is_told():
    fake = FakeOpenCode()
    fake.create_session("Greetings")
    async with audited(fake) as one:
        for attempt in (
            one.talk.send("desktop", "Hi", seconds=LONG),
            one.talk.send("laptop", " ", seconds=LONG),
            one.talk.read("desktop"),
            one.talk.abort("desktop"),
        ):
            with pytest.raises(ConversationError):
                await attempt
        await one.talk.read("laptop")
        begin, _ = await one.audit.both()
        assert begin.kind == "read"


async def test_asking_for_a_session_that_is_not_there_is_told_since_it_shows_those_that_are():
    fake = FakeOpenCode()
    fake.create_session("Greetings")
    async with audited(fake) as one:
        with pytest.raises(ConversationError, match="It has: 'Greetings'"):
            await one.talk.read("laptop", session="no such session", caller="me")
        begin, end = await one.audit.both()
    assert (begin.kind, begin.session, end.outcome) == ("read", "", "error")


async def test_each_action_has_an_id_of_its_own_also_when_they_overlap():
    fake = FakeOpenCode()
    async with audited(fake) as one, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(lambda: one.talk.send("laptop", "Hi", seconds=LONG, session="new"))
        actions = await one.audit.told(10)
    ids = [action.id for action in actions]
    assert {ids.count(each) for each in ids} == {2}
    for each in set(ids):
        assert [bool(action.outcome) for action in actions if action.id == each] == [False, True]


async def test_the_text_of_a_message_is_in_no_repr():
    async with audited(FakeOpenCode()) as one:
        await one.talk.send("laptop", "My secret plans", seconds=LONG)
        begin, end = await one.audit.both()
    assert begin.text == end.text == "My secret plans"
    assert "secret" not in repr(begin) + repr(end)


async def test_a_hook_that_hangs_or_fails_holds_up_no_message(caplog: pytest.LogCaptureFixture):
    with held() as hook:

        class Hangs:
            @hookimpl
            def opencode_mcp_instance_audit(self) -> None:
                hook()

        class Fails:
            @hookimpl
            def opencode_mcp_instance_audit(self) -> None:
                raise OSError("the disk is full")

        async with audited(FakeOpenCode(), Hangs(), Fails()) as one:
            assert (await one.talk.send("laptop", "Hi", seconds=LONG)).state == "done"
            await one.audit.both()
            await until(lambda: hook.entered and one.fleet.problems)
            (problem,) = one.fleet.problems
            assert problem.source == "plugin test-hook-2"
            assert "opencode_mcp_instance_audit failed with OSError" in problem.reason
            hook.release()
    assert "the disk is full" in caplog.text


# Who asked.


@in_both_eras
async def test_an_mcp_client_is_known_by_the_name_and_version_it_gives(mode: str):
    fake, audit = FakeOpenCode(), Audit()
    client = Implementation(name="claude\x1b[31m-code\n", version="2.1")
    async with connected(fake, mode=mode, hooks=[audit], client_info=client) as connection:
        await connection.call("send", instance="alpha", message="Hi")
        await connection.call("read", instance="alpha")
        await connection.call("send", instance="alpha", abort=True)
        actions = await audit.told(6)
    assert [action.kind for action in actions] == ["send", "send", "read", "read", "abort", "abort"]
    assert {action.caller for action in actions} == {"claude-code 2.1"}


@in_both_eras
async def test_what_a_client_says_of_itself_is_cut(mode: str):
    fake, audit = FakeOpenCode(), Audit()
    client = Implementation(name="x" * 100_000, version="2.1")
    async with connected(fake, mode=mode, hooks=[audit], client_info=client) as connection:
        await connection.call("read", instance="alpha")
        begin, _ = await audit.both()
    assert len(begin.caller) == 200


NOTES = """
    import json, os

    from opencode_mcp import hookimpl

    @hookimpl
    def opencode_mcp_instance_audit(action):
        with open(os.environ["AUDIT_FILE"], "a") as file:
            row = [action.kind, action.caller, action.text, action.outcome, action.session]
            file.write(json.dumps(row) + "\\n")
"""


@pytest.mark.slow
async def test_the_command_is_known_as_cli_and_tells_it_all_before_it_ends(tmp_path: Path):
    command, site, fake = Command(tmp_path), Site(tmp_path / "site"), FakeOpenCode()
    site.install("dist", plugins={"notes": "notes"}, modules={"notes": NOTES})
    session = fake.create_session("Greetings")
    notes = tmp_path / "audit.jsonl"
    command.registry.mkdir(mode=0o700)
    async with fake.serve():
        record = {"name": "laptop", "hostname": "laptop", "port": fake.port, "cwd": "/x"}
        path = command.registry / "laptop.json"
        path.write_text(json.dumps(record))
        path.chmod(0o600)
        for arguments in (["send", "laptop", "Hi"], ["read", "laptop"], ["send", "laptop", "--abort"]):
            ended = await command.meanwhile(*arguments, PYTHONPATH=f"{site.path}", AUDIT_FILE=f"{notes}")
            assert ended.code == 0
    assert [json.loads(line) for line in notes.read_text().splitlines()] == [
        ["send", "cli", "Hi", "", session],
        ["send", "cli", "Hi", "done", session],
        ["read", "cli", "", "", session],
        ["read", "cli", "", "done", session],
        ["abort", "cli", "", "", session],
        ["abort", "cli", "", "nothing to abort", session],
    ]
