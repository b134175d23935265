"""A real OpenCode on a real tailnet, `opencode-connected` beside it, the MCP server on another machine."""

import json
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from mcp import Client

from support.command import Command
from support.connected import Connected, Started
from support.mcp_client import call, until_shown
from support.model_server import Answer, ModelServer
from support.real_opencode import VERSION, project_config
from support.stdio_server import client_of
from support.tailnet import Node, tailnet

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.slow]

NAME = "laptop-shop"
GONE = 15.0
"""Seconds in which it must be off the list after everything was killed."""
PATIENCE = 60.0
"""Seconds for what takes a real OpenCode moments, on a busy machine."""
PASSWORD = "over the tailnet"


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Connected]:
    one = Connected(tmp_path / "laptop", real=True)
    yield one
    assert one.end() == {}


@pytest.fixture
def gateway(tmp_path: Path) -> Command:
    home = tmp_path / "gateway"
    home.mkdir()
    return Command(home)


@asynccontextmanager
async def two_machines() -> AsyncGenerator[tuple[Node, Node]]:
    async with tailnet() as net:
        yield await net.add("laptop"), await net.add("gateway")


def variables(node: Node) -> dict[str, str]:
    return {
        "TRANSPORT": "tailscale",
        "TAILSCALE_SOCKET": str(node.socket),
        "TAILSCALE_PORTS": "1",  # in user space all machines have the ports of this one
        "OPENCODE_SERVER_PASSWORD": PASSWORD,
    }


def announcing(laptop: Connected, node: Node, model: ModelServer) -> AbstractContextManager[Started]:
    (laptop.project / "opencode.json").write_text(json.dumps(project_config(model.url)))
    return laptop.started("--headless", environment={**variables(node), "INSTANCE_NAME": NAME})


async def says(client: Client, model: ModelServer, *words: str) -> None:
    """Send a message, and find the answer streamed and complete."""
    model.script(Answer(chunks=words))
    answer = await call(client, "send", heard=[], instance=NAME, message="Go", session="new")
    assert (answer.is_error, answer.text) == (False, "".join(words))
    assert answer.streamed.strip() == answer.text.strip()
    assert answer.progress


async def until_gone(client: Client, seconds: float) -> None:
    with anyio.fail_after(seconds):
        while (await call(client, "instances")).data["instances"]:
            await anyio.sleep(0.1)


async def test_it_is_listed_and_streams_its_answer_and_once_killed_it_is_gone_soon(
    laptop: Connected, gateway: Command
):
    model = ModelServer()
    with anyio.fail_after(4 * PATIENCE):
        async with (
            two_machines() as (here, there),
            model.serve(),
            client_of(gateway, DISCOVERY_INTERVAL_MS="1000", **variables(there)) as client,
        ):
            with announcing(laptop, here, model) as started:
                row = await until_shown(
                    client, NAME, status="online", directory=str(laptop.project), seconds=PATIENCE
                )
                assert (row["version"], row["transport"], row["host"]) == (VERSION, "tailscale", "laptop")
                assert laptop("status", environment=variables(here)).code == 0
                await says(client, model, "Through ", "the ", "tailnet.")

                os.kill(started.pid, signal.SIGKILL)
                await until_gone(client, GONE)
            assert "kill" not in started.said
            laptop.end()  # OpenCode itself, should it have outlived its announcer


async def test_ended_it_is_withdrawn_and_started_anew_it_is_listed_again(laptop: Connected, gateway: Command):
    model = ModelServer()
    with anyio.fail_after(4 * PATIENCE):
        async with (
            two_machines() as (here, there),
            model.serve(),
            client_of(gateway, DISCOVERY_INTERVAL_MS="1000", **variables(there)) as client,
        ):
            with announcing(laptop, here, model) as started:
                await until_shown(client, NAME, status="online", seconds=PATIENCE)
                started.signal(signal.SIGTERM)
                assert started.code() == -signal.SIGTERM
                await until_gone(client, GONE)
            with announcing(laptop, here, model):
                await until_shown(client, NAME, status="online", seconds=PATIENCE)
                await says(client, model, "Back ", "again.")
