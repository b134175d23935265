"""A real OpenCode behind a real sshd: `opencode-connected` on one side, the MCP server on the other."""

import json
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client

from support.connected import Connected, Started
from support.fleets import until
from support.mcp_client import call, until_shown
from support.model_server import Answer, ModelServer
from support.real_opencode import VERSION, project_config
from support.real_sshd import RealSshd, processes, running_sshd
from support.stdio_server import client_of

pytestmark = [pytest.mark.anyio, pytest.mark.real]

NAME = "laptop-shop"
AGAIN = 5.0
"""Seconds in which it must be back after its ssh was killed."""
PATIENCE = 60.0
"""Seconds for what takes a real OpenCode moments, on a busy machine."""


@pytest.fixture
def connected(tmp_path: Path) -> Iterator[Connected]:
    one = Connected(tmp_path / "laptop", real=True)
    yield one
    assert one.end() == {}


@pytest.fixture
async def sshd(tmp_path: Path) -> AsyncGenerator[RealSshd]:
    async with running_sshd(tmp_path / "sshd") as server:
        yield server


@asynccontextmanager
async def announcing(connected: Connected, sshd: RealSshd, model: ModelServer) -> AsyncGenerator[Started]:
    """Run it until the end of the block, which begins once it is announced on the relay."""
    (connected.project / "opencode.json").write_text(json.dumps(project_config(model.url)))
    variables = {"RELAY_SSH_CMD": sshd.command, "INSTANCE_NAME": NAME}
    with connected.started("--headless", environment=variables) as started:
        await until(connected.files, PATIENCE, show=lambda: started.said + connected.logs())
        yield started


def tunnels(connected: Connected) -> list[int]:
    """The processes of ssh that were started on the laptop."""
    ours = connected.processes()
    return [pid for pid, _, words in processes() if pid in ours and words.split()[0].endswith("ssh")]


async def back(connected: Connected, before: dict[str, Any], old: list[int], seconds: float) -> None:
    """Wait until it is reachable through another ssh, registered once, as the same instance."""
    with anyio.fail_after(seconds):
        async with httpx2.AsyncClient(trust_env=False, timeout=1) as client:
            while True:
                registered = connected.registrations()
                if registered and not set(old) & set(tunnels(connected)):
                    try:
                        url = f"http://127.0.0.1:{registered[0]['port']}/global/health"
                        if (await client.get(url)).status_code == 200:
                            break
                    except httpx2.TransportError:
                        pass
                await anyio.sleep(0.02)
    [after] = connected.registrations()
    assert (after["id"], after["name"]) == (before["id"], before["name"])


async def says(client: Client, model: ModelServer, *words: str) -> None:
    """Send a message, and find the answer streamed and complete."""
    await until_shown(client, NAME, status="online", seconds=PATIENCE)
    model.script(Answer(chunks=words))
    answer = await call(client, "send", heard=[], instance=NAME, message="Go", session="new")
    assert (answer.is_error, answer.text) == (False, "".join(words))
    assert answer.streamed.strip() == answer.text.strip()
    assert answer.progress


async def test_it_is_listed_and_answers_through_the_tunnel_whatever_happens_to_that(
    connected: Connected, sshd: RealSshd
) -> None:
    model = ModelServer()
    with anyio.fail_after(4 * PATIENCE):
        async with (
            model.serve(),
            announcing(connected, sshd, model) as started,
            client_of(connected.gateway) as client,
        ):
            before = connected.registration()
            assert before["name"] == NAME
            assert before["port"] != before["localPort"], "a port of the relay, which leads to the other"
            assert before["localPort"] == int(before["localPort"])
            row = await until_shown(client, NAME, status="online", seconds=PATIENCE)
            assert (row["version"], row["directory"]) == (VERSION, str(connected.project))
            await says(client, model, "Through ", "the ", "tunnel.")

            old = tunnels(connected)
            assert old
            for pid in old:
                os.kill(pid, signal.SIGKILL)
            await back(connected, before, old, AGAIN)
            await says(client, model, "Back ", "again.")

            old = tunnels(connected)
            await anyio.to_thread.run_sync(sshd.stop)
            await until(lambda: "Next attempt in" in connected.logs().rpartition("is announced")[2], PATIENCE)
            await anyio.to_thread.run_sync(sshd.start)
            await back(connected, before, old, 2 * AGAIN)
            await says(client, model, "And ", "again.")

            listed = (await call(client, "instances")).data["instances"]
            assert [one["name"] for one in listed] == [NAME]

            started.signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(started.code)
            assert connected.files() == []
            assert connected.processes().keys() <= {pid for pid, _, w in processes() if "opencode_mcp" in w}


async def test_status_looks_at_the_relay_through_the_tunnel_and_cleanup_after_a_kill(
    connected: Connected, sshd: RealSshd
) -> None:
    model = ModelServer()
    async with model.serve(), announcing(connected, sshd, model) as started:
        variables = {"RELAY_SSH_CMD": sshd.command}
        outcome = await anyio.to_thread.run_sync(lambda: connected("status", environment=variables))
        assert outcome.code == 0, outcome.out
        rows = [line.split()[0:2] for line in outcome.out.splitlines() if line.startswith("  ")]
        assert ["tunnel", "ok"] in rows
        assert "health through the tunnel" in outcome.out
        started.signal(signal.SIGKILL)
        await anyio.to_thread.run_sync(started.code)
        await until(lambda: not tunnels(connected), 3, show=connected.processes)
        outcome = await anyio.to_thread.run_sync(lambda: connected("cleanup", environment=variables))
        assert outcome.code == 0, outcome.out
        assert outcome.out.endswith(f"{NAME}: nothing is left\n")
        assert connected.files() == []
        await until(lambda: not connected.processes(), 3, show=connected.processes)
