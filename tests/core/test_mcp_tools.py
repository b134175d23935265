"""What the server says of itself and its tools, and what it refuses before it does anything."""

import re
from typing import Any

import pytest
from mcp_types import Tool

from opencode_mcp.testing import FakeOpenCode
from support.mcp_client import Connection, connected, in_both_eras

pytestmark = [pytest.mark.anyio, in_both_eras]


async def tools_of(connection: Connection) -> dict[str, Tool]:
    return {tool.name: tool for tool in (await connection.client.list_tools()).tools}


def takes(tool: Tool) -> dict[str, Any]:
    """Name and type, with the default, of each argument."""
    shown: dict[str, Any] = {}
    for name, schema in tool.input_schema["properties"].items():
        kinds = "|".join(one["type"] for one in schema.get("anyOf", [schema]))
        shown[name] = (kinds, schema["default"]) if "default" in schema else kinds
    return shown


async def test_there_are_three_tools_with_titles_and_annotations(mode: str) -> None:
    async with connected(mode=mode) as connection:
        tools = await tools_of(connection)
        assert {name: tool.title for name, tool in tools.items()} == {
            "instances": "List OpenCode instances",
            "send": "Send a message to an OpenCode agent",
            "read": "Read an OpenCode conversation",
        }
        hints = {name: tool.annotations for name, tool in tools.items()}
        assert all(hints.values())
        assert {name for name, hint in hints.items() if hint and hint.read_only_hint} == {"instances", "read"}
        assert {name for name, hint in hints.items() if hint and hint.destructive_hint} == {"send"}
        assert {name for name, hint in hints.items() if hint and hint.open_world_hint} == {"send", "read"}


async def test_a_model_is_told_what_each_tool_and_argument_is_for(mode: str) -> None:
    async with connected(mode=mode) as connection:
        for tool in (await tools_of(connection)).values():
            assert tool.description
            assert len(tool.description) > 50
            assert not re.search(r"\n +|\s$", tool.description), "the source's indentation shows"
            for argument in tool.input_schema["properties"].values():
                assert argument["description"]
        info, instructions = connection.client.server_info, connection.client.instructions
        assert info
        assert (info.name, info.title) == ("opencode-mcp", "OpenCode instances")
        assert info.version
        assert instructions
        assert all(f"`{name}`" in instructions for name in ("instances", "send", "read"))


async def test_arguments_are_those_of_the_original_and_optional_ones(mode: str) -> None:
    async with connected(mode=mode) as connection:
        tools = await tools_of(connection)
        assert takes(tools["instances"]) == {}
        assert takes(tools["send"]) == {
            "instance": "string",
            "message": ("string", ""),
            "abort": ("boolean", False),
            "session": ("string|null", None),
            "wait": ("number|null", None),
        }
        assert takes(tools["read"]) == {
            "instance": "string",
            "message_limit": ("integer", 10),
            "session": ("string|null", None),
        }
        for name in ("send", "read"):
            assert tools[name].input_schema["required"] == ["instance"]


async def test_every_tool_advertises_what_its_structured_content_holds(mode: str) -> None:
    async with connected(mode=mode) as connection:
        schemas = {name: tool.output_schema for name, tool in (await tools_of(connection)).items()}
        fields = {name: set(schema["properties"]) for name, schema in schemas.items() if schema}
        assert fields == {
            "instances": {"instances", "notes"},
            "send": {"instance", "state", "session_id", "session", "text", "note"},
            "read": {"instance", "session_id", "session", "activity", "waiting_for", "messages", "note"},
        }
        assert schemas["instances"]
        row = schemas["instances"]["$defs"]["InstanceRow"]["properties"]
        assert {"name", "host", "directory", "version", "activity", "session", "last_seen"} <= set(row)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("send", {"message": "hi"}),
    ("send", {"instance": "alpha", "message": "hi", "wait": -1}),
    ("send", {"instance": "alpha", "message": "hi", "wait": 86_401}),
    ("send", {"instance": "alpha", "message": "hi", "wait": "soon"}),
    ("send", {"instance": "alpha", "message": ["hi"]}),
    ("send", {"instance": "x" * 501, "message": "hi"}),
    ("send", {"instance": "alpha", "message": ""}),
    ("send", {"instance": "alpha", "message": " \n\t "}),
    ("read", {"instance": "alpha", "message_limit": 0}),
    ("read", {"instance": "alpha", "message_limit": 201}),
    ("read", {"instance": "alpha", "message_limit": 1.5}),
    ("shell", {"instance": "alpha"}),
]


async def test_what_cannot_be_meant_is_refused_and_nobody_is_asked(mode: str) -> None:
    fake = FakeOpenCode()
    async with connected(fake, mode=mode) as connection:
        before = len(fake.requests)
        for tool, arguments in REFUSED:
            result = await connection.client.call_tool(tool, arguments)
            assert result.is_error, (tool, arguments)
        assert len(fake.requests) == before
        assert fake.sessions == {}
        blank = await connection.call("send", instance="alpha", message=" ")
        assert blank.text == "There is no message to send."


async def test_a_client_speaks_the_protocol_of_its_era(mode: str) -> None:
    async with connected(mode=mode) as connection:
        spoken = {"auto": "2026-07-28", "legacy": "2025-11-25"}
        assert connection.client.protocol_version == spoken[mode]
