"""A real OpenCode, announced over local-relay, driven over stdio as a chat client does; and from a shell."""

import json
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from mcp import Client

from support.command import Command
from support.mcp_client import Answer, Later, call, in_both_eras, until, until_shown
from support.model_server import Answer as Says
from support.model_server import ModelServer
from support.real_opencode import VERSION, RealOpenCode, running_opencode
from support.stdio_server import announce, client_of

pytestmark = [pytest.mark.anyio, pytest.mark.real]

PATIENCE = 60.0
"""Seconds for what takes a real OpenCode moments, on a busy machine."""

Running = tuple[RealOpenCode, ModelServer]


@pytest.fixture(scope="module")
async def opencode(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Running]:
    """An OpenCode without a password, for all tests that leave it running."""
    model = ModelServer()
    async with (
        model.serve(),
        running_opencode(tmp_path_factory.mktemp("project"), model.url) as server,
    ):
        yield server, model


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def port_of(server: RealOpenCode) -> int:
    return urlsplit(server.url).port or 0


@asynccontextmanager
async def chatting(
    command: Command, server: RealOpenCode, mode: str = "auto", **variables: str
) -> AsyncGenerator[Client]:
    """Announce the server and connect a client; everything in the block is bounded in time."""
    more = {"cwd": str(server.directory), "hostname": "laptop"}
    await anyio.to_thread.run_sync(lambda: announce(command, "laptop-shop", port_of(server), **more))
    with anyio.fail_after(2 * PATIENCE):
        async with client_of(command, mode, **variables) as client:
            yield client


@asynccontextmanager
async def sending(client: Client, message: str, **arguments: Any) -> AsyncGenerator[Later]:
    """Send while the block runs; leaving the block waits for the answer."""
    later = Later()
    given = {"instance": "shop", "message": message, "session": "new", **arguments}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: later.run(client, "send", given, listen=True))
        yield later


async def send(client: Client, message: str, **arguments: Any) -> Answer:
    given = {"instance": "shop", "session": "new", **arguments}
    return await call(client, "send", heard=[], message=message, **given)


async def decide(server: RealOpenCode, reply: str) -> None:
    """Answer the open permission request, as the person at the machine does."""
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as person:
        where = {"directory": str(server.directory)}
        [request] = (await person.get("/permission", params=where)).json()
        answered = await person.post(
            f"/permission/{request['id']}/reply", params=where, json={"reply": reply}
        )
        answered.raise_for_status()


@in_both_eras
async def test_a_chat_model_finds_it_talks_to_it_and_reads(
    opencode: Running, command: Command, mode: str
) -> None:
    server, model = opencode
    async with chatting(command, server, mode) as client:
        row = await until_shown(client, "laptop-shop", status="online")
        assert (row["version"], row["host"]) == (VERSION, "laptop")
        assert row["directory"] == str(server.directory)
        pieces = [f"word{number} " for number in range(60)]
        model.script(Says(reasoning=["They ", "greet. "], chunks=pieces))
        answer = await send(client, "Say hello")
        assert (answer.is_error, answer.data["state"]) == (False, "done")
        assert answer.streamed.strip() == answer.text.strip() == "".join(pieces).strip()
        session = answer.data["session_id"]
        transcript = await call(client, "read", instance="shop", session=session)
        texts = [(message["role"], message["text"].strip()) for message in transcript.data["messages"]]
        assert texts == [("user", "Say hello"), ("assistant", "".join(pieces).strip())]
        model.script(Says(chunks=["Hello ", "again."]))
        again = await send(client, "Once more", session=None)
        assert (again.text, again.data["session_id"]) == ("Hello again.", session)
        await until_shown(client, "laptop-shop", activity="idle", session=model.title)


async def test_the_first_piece_arrives_before_the_answer_is_complete(
    opencode: Running, command: Command
) -> None:
    server, model = opencode
    gate = anyio.Event()
    async with chatting(command, server) as client:
        model.script(Says(chunks=["First.", " Second."], gate=gate))
        async with sending(client, "Go") as later:
            await until(lambda: "First." in later.streamed, PATIENCE)
            assert not later.is_over
            row = await until_shown(client, "laptop-shop", activity="busy")
            assert row["status"] == "online"
            busy = await send(client, "Me too", session=None)
            assert busy.data["state"] == "busy"
            gate.set()
        assert later.answer.text == later.streamed == "First. Second."


async def test_a_turn_with_a_tool_ends_with_the_text_after_it(opencode: Running, command: Command) -> None:
    server, model = opencode
    async with chatting(command, server) as client:
        path = str(server.directory / "opencode.json")
        look = Says(chunks=["I look."], calls=[("read", {"filePath": path})])
        model.script(look, Says(chunks=["It is a file."]))
        answer = await send(client, "What is it?")
        assert answer.text == "It is a file."
        assert answer.streamed == "I look.\n\nIt is a file."
        transcript = await call(client, "read", instance="shop", session=answer.data["session_id"])
        [tool] = [tool for message in transcript.data["messages"] for tool in message["tools"]]
        assert tool.startswith("read: ")
        assert tool.endswith("opencode.json → completed")


@pytest.mark.parametrize(("reply", "text"), [("once", "It said hi."), ("reject", "")])
async def test_a_pending_permission_is_shown_and_its_answer_lets_the_turn_go_on(
    opencode: Running, command: Command, reply: str, text: str
) -> None:
    server, model = opencode
    call_bash = ("bash", {"command": "echo hi", "description": "Say hi"})
    async with chatting(command, server) as client:
        model.script(Says(calls=[call_bash]), Says(chunks=["It said hi."]))
        waiting = await send(client, "Say hi", wait=0)
        row = await until_shown(client, "laptop-shop", waiting_for="permission: bash: echo hi")
        assert row["activity"] == "busy"
        session = waiting.data["session_id"]
        transcript = await call(client, "read", instance="shop", session=session)
        assert transcript.data["waiting_for"] == "permission: bash: echo hi"
        busy = await send(client, "And?", session=session)
        assert busy.data["state"] == "busy"
        assert "it waits for a person (permission: bash: echo hi)" in busy.text
        await decide(server, reply)
        await until_shown(client, "laptop-shop", activity="idle", waiting_for="")
        transcript = await call(client, "read", instance="shop", session=session)
        assert transcript.data["messages"][-1]["text"] == text


async def test_who_waits_through_a_permission_gets_the_answer(opencode: Running, command: Command) -> None:
    server, model = opencode
    call_bash = ("bash", {"command": "echo hi", "description": "Say hi"})
    async with chatting(command, server) as client:
        for reply, text in (("once", "It said hi."), ("reject", "")):
            model.script(Says(calls=[call_bash]), Says(chunks=["It said hi."]))
            async with sending(client, "Say hi") as later:
                await until_shown(client, "laptop-shop", waiting_for="permission: bash: echo hi")
                await decide(server, reply)
            assert (later.answer.data["state"], later.answer.data["text"]) == ("done", text)


async def test_an_error_of_the_model_comes_back_as_an_error(opencode: Running, command: Command) -> None:
    server, model = opencode
    async with chatting(command, server) as client:
        model.script(Says(status=400, message="the model is out to lunch"))
        answer = await send(client, "Hi")
        assert answer.is_error
        assert answer.data["state"] == "failed"
        assert "APIError" in answer.text
        assert "the model is out to lunch" in answer.text


async def test_abort_stops_it_and_tells_who_waits(opencode: Running, command: Command) -> None:
    server, model = opencode
    gate = anyio.Event()
    async with chatting(command, server) as client:
        nothing = await call(client, "send", instance="shop", abort=True)
        assert nothing.data["state"] == "nothing to abort"
        model.script(Says(chunks=["Some text.", " More."], gate=gate))
        async with sending(client, "Go") as later:
            await until(lambda: "Some text." in later.streamed, PATIENCE)
            aborted = await call(client, "send", instance="shop", abort=True)
            assert aborted.data["state"] == "aborted"
        assert later.answer.is_error
        assert "MessageAbortedError" in later.answer.text
        assert later.answer.data["text"] == "Some text."
        await until_shown(client, "laptop-shop", activity="idle")
        gate.set()


async def test_a_message_follows_one_that_was_just_handed_over_only_when_it_is_done(
    opencode: Running, command: Command
) -> None:
    """OpenCode looks idle for a moment after it took a message; two at once it would mix up."""
    server, model = opencode
    gate = anyio.Event()
    async with chatting(command, server) as client:
        model.script(Says(chunks=["First", " answer."], gate=gate), Says(chunks=["Second."]))
        first = await send(client, "One", wait=0)
        session = first.data["session_id"]
        assert (await send(client, "Two", session=session)).data["state"] == "busy"
        gate.set()
        with anyio.fail_after(PATIENCE):
            while (second := await send(client, "Two", session=session)).data["state"] == "busy":
                pass
        assert second.text == "Second."


async def test_a_locked_one_needs_the_password(tmp_path: Path, command: Command) -> None:
    project = tmp_path / "locked"
    project.mkdir()
    model = ModelServer()
    async with model.serve(), running_opencode(project, model.url, password="s3cret") as server:
        async with chatting(command, server) as client:
            row = await until_shown(client, "laptop-shop", status="needs credentials")
            assert "OPENCODE_SERVER_PASSWORD" in row["detail"]
            refused = await send(client, "Hi")
            assert refused.is_error
            assert "OPENCODE_SERVER_PASSWORD" in refused.text
        async with chatting(command, server, OPENCODE_SERVER_PASSWORD="wrong") as client:
            row = await until_shown(client, "laptop-shop", status="needs credentials")
            assert "refuses" in row["detail"]
        async with chatting(command, server, OPENCODE_SERVER_PASSWORD="s3cret") as client:
            model.script(Says(chunks=["Come ", "in."]))
            assert (await send(client, "Knock knock")).text == "Come in."
        assert (command.registry / "laptop-shop.json").exists()


async def test_one_that_is_killed_and_started_again_on_its_port_comes_back(
    tmp_path: Path, command: Command
) -> None:
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir()
    home.mkdir()
    model, gate = ModelServer(), anyio.Event()
    async with (
        model.serve(),
        running_opencode(project, model.url, home=home) as server,
        chatting(command, server) as client,
    ):
        model.script(Says(chunks=["Before."]), Says(chunks=["Cut", " off"], gate=gate))
        before = await send(client, "One")
        assert before.text == "Before."
        session = before.data["session_id"]
        async with sending(client, "Two", session=session) as later:
            await until(lambda: "Cut" in later.streamed, PATIENCE)
            server.signal(signal.SIGKILL)
            await until_shown(client, "laptop-shop", status="offline")
            async with running_opencode(project, model.url, home=home, port=port_of(server)):
                await until_shown(client, "laptop-shop", status="online", seconds=PATIENCE)
                await until(lambda: later.is_over, PATIENCE)
                assert later.answer.is_error
                assert later.answer.data["state"] == "failed"
                model.script(Says(chunks=["After."]))
                after = await send(client, "Three", session=session)
                assert after.text == "After."
                transcript = await call(client, "read", instance="shop", session=session)
                assert "Before." in transcript.text
                gate.set()


async def test_the_same_from_a_shell(opencode: Running, command: Command) -> None:
    server, model = opencode
    announce(command, "laptop-shop", port_of(server), cwd=str(server.directory))
    listed = await command.meanwhile("instances", "--json")
    [row] = json.loads(listed.out)["instances"]
    assert (listed.code, row["name"], row["status"], row["version"]) == (0, "laptop-shop", "online", VERSION)
    model.script(Says(chunks=["Hello ", "shell."]))
    sent = await command.meanwhile("send", "shop", "Say hello", "--session", "new")
    assert (sent.code, sent.out, sent.err) == (0, "Hello shell.\n", "")
    read = await command.meanwhile("read", "shop", "--limit", "1")
    assert read.code == 0
    assert read.out.endswith("Hello shell.\n")
