"""The tools, as a model sees them: descriptions, arguments, readable text and structured content."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import mcp_types as t
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field

from opencode_mcp.conversation import Conversation, Overview, Reply, Transcript, overview
from opencode_mcp.conversation.overview import overview_text
from opencode_mcp.errors import OpenCodeMCPError
from opencode_mcp.settings import CoreSettings

FIRST_LOOK_SECONDS = 1.0
"""How long the very first `instances` waits for instances that have not answered yet."""
WITHOUT_PROGRESS_SECONDS = 45.0
"""How long `send` waits for a client that shows no progress: several give up after 60 s."""

_Tool = TypeVar("_Tool", bound=Callable[..., Any])
_Context = Context[Conversation, Any]
_Instance = Annotated[
    str,
    Field(description="Name from `instances`; a part of it is enough if it fits only one", max_length=500),
]
_Session = Annotated[
    str | None,
    Field(
        description='A session id, a part of a session\'s title, or "new" for a fresh one. '
        "Default: the session used last",
        max_length=500,
    ),
]


def add_tools(server: MCPServer[Conversation], settings: CoreSettings) -> None:
    """Register `instances`, `send` and `read`."""

    @_tool(
        server,
        title="List OpenCode instances",
        annotations=t.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def instances(ctx: _Context) -> Annotated[t.CallToolResult, Overview]:
        """List the OpenCode coding agents that are connected: name, machine, project, idle or busy.

        Answered at once, from a live picture. Offline ones are listed too, with when they were last seen.
        """
        fleet = _conversation(ctx).fleet
        await fleet.first_look(FIRST_LOOK_SECONDS)
        data = overview(fleet)
        return _result(overview_text(data), data)

    @_tool(
        server,
        title="Send a message to an OpenCode agent",
        annotations=t.ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True),
    )
    async def send(
        ctx: _Context,
        instance: _Instance,
        message: Annotated[
            str, Field(description="The task or question, in plain words; not needed with abort")
        ] = "",
        abort: Annotated[
            bool, Field(description="Stop the agent's present work instead of sending a message")
        ] = False,
        session: _Session = None,
        wait: Annotated[
            float | None,
            Field(
                description="Seconds to wait for the answer, 0 for not at all. The agent works on regardless",
                ge=0,
                le=86_400,
            ),
        ] = None,
    ) -> Annotated[t.CallToolResult, Reply]:
        """Give an OpenCode agent a message and return its final answer.

        The agent reads and changes files and runs commands on its machine. Its text streams as progress.
        If it is still at work when the waiting ends, the result says `running`: use `read` later. If it is
        busy with something else, nothing is sent and the result says `busy`.
        """
        conversation = _conversation(ctx)
        try:
            if abort:
                reply = await conversation.abort(instance, session=session, caller=_caller(ctx))
                if message.strip():
                    reply.note += " Your message was not sent: abort only stops."
            else:
                reply = await conversation.send(
                    instance,
                    message,
                    seconds=_patience(ctx, wait, settings),
                    session=session,
                    listener=_Progress(ctx),
                    caller=_caller(ctx),
                )
        except OpenCodeMCPError as error:
            return _error(str(error))
        text = "\n\n".join(filter(None, (reply.text, f"[{reply.note}]" if reply.note else "")))
        if reply.state == "failed":
            return _error(
                f"{reply.instance}: {reply.note}" + (f"\n\n{reply.text}" if reply.text else ""), reply
            )
        return _result(text, reply.model_dump(mode="json"))

    @_tool(
        server,
        title="Read an OpenCode conversation",
        annotations=t.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True),
    )
    async def read(
        ctx: _Context,
        instance: _Instance,
        message_limit: Annotated[
            int, Field(description="How many of the newest messages", ge=1, le=200)
        ] = 10,
        session: _Session = None,
    ) -> Annotated[t.CallToolResult, Transcript]:
        """Read the newest messages between a person and an OpenCode agent, without sending anything."""
        try:
            transcript = await _conversation(ctx).read(
                instance, limit=message_limit, session=session, caller=_caller(ctx)
            )
        except OpenCodeMCPError as error:
            return _error(str(error))
        return _result(transcript.text(), transcript.model_dump(mode="json"))

    _ = instances, send, read


def _tool(
    server: MCPServer[Conversation], *, title: str, annotations: t.ToolAnnotations
) -> Callable[[_Tool], _Tool]:
    """Register a tool with its docstring as the description, without the indentation it has here."""

    def register(function: _Tool) -> _Tool:
        about = inspect.getdoc(function)
        server.add_tool(function, title=title, description=about, annotations=annotations)
        return function

    return register


class _Progress:
    """Passes what an agent says on as progress notifications; their numbers only have to rise."""

    def __init__(self, ctx: _Context) -> None:
        self._ctx = ctx
        self._count = 0

    async def text(self, piece: str) -> None:
        self._count += 1
        await self._ctx.report_progress(self._count, None, piece)

    async def sign_of_life(self, what: str) -> None:
        await self.text(what)


def _conversation(ctx: _Context) -> Conversation:
    return ctx.request_context.lifespan_context


def _caller(ctx: _Context) -> str:
    params = ctx.session.client_params
    client = params.client_info if params else None
    return f"{client.name} {client.version}" if client else "an MCP client"


def _patience(ctx: _Context, wait: float | None, settings: CoreSettings) -> float:
    if wait is not None:
        return wait
    asked = (ctx.request_context.meta or {}).get("progress_token") is not None
    longest = settings.send_timeout_ms / 1000
    return longest if asked else min(WITHOUT_PROGRESS_SECONDS, longest)


def _result(text: str, data: dict[str, Any]) -> t.CallToolResult:
    return t.CallToolResult(content=[t.TextContent(type="text", text=text)], structured_content=data)


def _error(text: str, data: BaseModel | None = None) -> t.CallToolResult:
    return t.CallToolResult(
        is_error=True,
        content=[t.TextContent(type="text", text=text)],
        structured_content=data.model_dump(mode="json") if data else None,
    )
