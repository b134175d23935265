"""MCP clients that share no code with our server: they list its tools and use them."""

import json
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from opencode_mcp.testing import FakeOpenCode
from support.command import MODULE, Command
from support.inspector import inspect
from support.real_opencode import opencode_binary
from support.stdio_server import registered

pytestmark = [pytest.mark.anyio, pytest.mark.real]

ERAS = ["legacy", "modern"]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def text_of(result: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in result["content"])


@pytest.mark.parametrize("era", ERAS)
async def test_the_inspector_lists_the_tools_and_finds_no_fault_with_their_schemas(
    command: Command, era: str
) -> None:
    result = await inspect(command, era, "tools/list", "--strict")
    tools = {tool["name"]: tool for tool in result["tools"]}
    assert set(tools) == {"instances", "send", "read"}
    assert tools["send"]["title"] == "Send a message to an OpenCode agent"
    assert set(tools["send"]["inputSchema"]["properties"]) == {
        "instance",
        "message",
        "abort",
        "session",
        "wait",
    }
    assert all(tool["outputSchema"] and tool["annotations"] for tool in tools.values())


@pytest.mark.parametrize("era", ERAS)
async def test_the_inspector_calls_the_tools(command: Command, era: str) -> None:
    fake = FakeOpenCode()
    async with registered(command, fake):
        listing = await inspect(command, era, "tools/call", "--tool-name", "instances")
        [row] = listing["structuredContent"]["instances"]
        assert (row["name"], row["status"]) == ("laptop-shop", "online")
        assert text_of(listing).startswith("laptop-shop | idle | ")

        arguments = ("--tool-arg", "instance=shop", "message=hello from outside")
        sent = await inspect(command, era, "tools/call", "--tool-name", "send", *arguments)
        assert text_of(sent) == "You said: hello from outside"
        assert sent["structuredContent"]["state"] == "done"

        read = await inspect(command, era, "tools/call", "--tool-name", "read", *arguments[:2])
        assert text_of(read).endswith("You said: hello from outside")


async def test_opencode_itself_shows_the_server_connected(command: Command) -> None:
    binary = await anyio.to_thread.run_sync(opencode_binary)
    server = {
        "type": "local",
        "command": list(MODULE),
        "environment": {"RELAY_REGISTRY_DIR": str(command.registry)},
        "enabled": True,
    }
    config = anyio.Path(command.home) / "opencode.json"
    await config.write_text(json.dumps({"mcp": {"instances": server}}))
    environment = command.environment(
        OPENCODE_DISABLE_AUTOUPDATE="1", OPENCODE_DISABLE_MODELS_FETCH="1", NO_COLOR="1"
    )
    with anyio.fail_after(60):
        ended = await anyio.run_process(
            [str(binary), "mcp", "list"], check=False, cwd=command.home, env=environment
        )
    said = re.sub(r"\x1b\[[0-9;]*m", "", (ended.stdout + ended.stderr).decode())
    assert ended.returncode == 0, said
    assert "✓ instances connected" in said, said
    assert "1 server(s)" in said
