"""`opencode-mcp instances`, `send`, `read` and `transports`: the model's tools from a shell."""

import json
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import anyio
import typer

from opencode_mcp.cli import show
from opencode_mcp.cli.doctor import doctor
from opencode_mcp.cli.new_transport import new_transport
from opencode_mcp.cli.serve import give_up, serve
from opencode_mcp.conversation import Conversation, Reply, Transcript, overview
from opencode_mcp.errors import ConversationError, OpenCodeMCPError
from opencode_mcp.plugins import installed_transports, missing_transports
from opencode_mcp.runtime import Runtime
from opencode_mcp.settings import CoreSettings, read_settings

T = TypeVar("T")

_CALLER = "cli"

app = typer.Typer(
    name="opencode-mcp",
    help="Find, follow and drive every OpenCode you run. Without a command: the MCP server on stdio.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_Instance = Annotated[str, typer.Argument(help="Its name, or a part that fits only one.")]
_Session = Annotated[
    str | None,
    typer.Option(
        "--session", "-s", help='A session id, a part of a title, or "new". Default: the last one used.'
    ),
]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Find, follow and drive every OpenCode you run. Without a command: the MCP server on stdio."""
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure"):
        stdout.reconfigure(errors="replace")  # a terminal that lacks a character still shows the others
    if show_version:
        typer.echo(f"opencode-mcp {version('opencode-mcp-core')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        serve()


@app.command()
def instances(as_json: _Json = False) -> None:
    """List the instances: name, state, machine, project."""

    async def work(conversation: Conversation, _: CoreSettings) -> dict[str, Any]:
        await conversation.fleet.first_look(conversation.patience + 1)
        return overview(conversation.fleet)

    data = _run(work)
    if as_json:
        _print_json(data)
    else:
        show.instances(data)


@app.command()
def send(
    instance: _Instance,
    message: Annotated[str, typer.Argument(help='What to say; "-" reads it from stdin.')] = "",
    session: _Session = None,
    wait: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait for the answer. Default: SEND_TIMEOUT_MS.")
    ] = None,
    abort: Annotated[bool, typer.Option("--abort", help="Stop the agent's work instead.")] = False,
    as_json: _Json = False,
) -> None:
    """Send a message and print the agent's answer. Exit code 1 if there is none (yet)."""
    prompt = _prompt(message)
    listener = show.Typing() if sys.stdout.isatty() and not as_json else show.SignsOnly()

    async def work(conversation: Conversation, settings: CoreSettings) -> Reply:
        if abort:
            return await conversation.abort(instance, session=session, caller=_CALLER)
        seconds = settings.send_timeout_ms / 1000 if wait is None else wait
        return await conversation.send(
            instance, prompt, seconds=seconds, session=session, listener=listener, caller=_CALLER
        )

    reply = _run(work)
    if as_json:
        _print_json(reply.model_dump(mode="json"))
    else:
        listener.end(reply)
    if reply.state not in ("done", "aborted", "nothing to abort"):
        raise typer.Exit(1)


@app.command()
def read(
    instance: _Instance,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="How many messages.")] = 10,
    session: _Session = None,
    as_json: _Json = False,
) -> None:
    """Print the newest messages of an instance's session."""

    async def work(conversation: Conversation, _: CoreSettings) -> Transcript:
        return await conversation.read(instance, limit=limit, session=session, caller=_CALLER)

    transcript = _run(work)
    if as_json:
        _print_json(transcript.model_dump(mode="json"))
    else:
        typer.echo(transcript.text())


@app.command()
def transports(as_json: _Json = False) -> None:
    """List the installed transports: which package brings them, and whether they work."""
    try:
        selected = read_settings(CoreSettings).transport
    except OpenCodeMCPError as error:
        give_up(error)
    rows, missing = installed_transports(selected), missing_transports(selected)
    if as_json:
        _print_json([show.transport_row(row) for row in (*rows, *missing)])
    else:
        show.transports(rows, missing)


app.command()(doctor)
app.command()(new_transport)


def _prompt(message: str) -> str:
    try:
        typed = sys.stdin.read() if message == "-" and sys.stdin else ""  # None if it was closed
        prompt = typed if message == "-" else message
        prompt.encode()  # bytes that are no text come as lone surrogates
    except UnicodeError:
        give_up(
            ConversationError(f"The message is not text in this terminal's encoding, {sys.stdin.encoding}.")
        )
    return prompt


def _run(work: Callable[[Conversation, CoreSettings], Awaitable[T]]) -> T:
    """Do `work` with a running fleet; what the user can put right ends the process with 2."""

    async def body(runtime: Runtime) -> T:
        async with runtime.fleet() as fleet:
            patience = runtime.settings.health_check_timeout_ms / 1000
            return await work(Conversation(fleet, patience=patience), runtime.settings)

    try:
        return anyio.run(body, Runtime())
    except OpenCodeMCPError as error:
        give_up(error)
    except BaseExceptionGroup as group:
        known, other = group.split(OpenCodeMCPError)
        if known is None or other is not None:
            raise
        give_up(_first(known))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _first(group: BaseExceptionGroup[OpenCodeMCPError]) -> OpenCodeMCPError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("a group has members")


def _print_json(data: object) -> None:
    plain = not sys.stdout.encoding.lower().startswith("utf")
    typer.echo(json.dumps(data, indent=2, ensure_ascii=plain))
