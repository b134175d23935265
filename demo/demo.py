"""The whole path in a minute: an OpenCode, announced over local-relay, driven by an MCP client over stdio.

Uses the real `opencode` if it is on PATH and has a model to answer with, else the built-in FakeOpenCode.
Everything lives in a temporary directory, on loopback, and is gone at the end.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import Process, TaskStatus
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, TextContent

from opencode_mcp import Announcer, Endpoint
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import read_settings
from opencode_mcp.testing import FakeOpenCode, Reply

PROMPT = "In two short sentences: what are you, and what can you do for me?"
ANSWER = (
    "I am the FakeOpenCode of this demo: I speak OpenCode's HTTP API, but no model stands behind me. "
    "Install OpenCode, give it a model, and run the demo again to hear a real agent."
)

START_SECONDS = 40
"""How long OpenCode may take to start and tell its configuration."""
CONFIGURATION_SECONDS = 20.0
"""How long each answer about its configuration may take; 8 s on a slow machine without network."""
ANSWER_SECONDS = 5.0
"""How long OpenCode may take for any other answer."""
ODD = (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, AttributeError, TypeError)
"""What asking it may raise: it does not answer, or otherwise than an OpenCode does."""


class DemoError(Exception):
    """The demo cannot go on."""


async def main() -> None:
    """Run the demo."""
    with tempfile.TemporaryDirectory(prefix="opencode-mcp-demo-") as folder:
        registry, project = Path(folder, "registry"), Path(folder, "hello-world")
        await anyio.Path(project).mkdir()
        os.environ["RELAY_REGISTRY_DIR"] = str(registry)  # for the announcer here and the server below
        async with open_code(project) as url, announced(url, project):
            say(f"2. It is announced over local-relay: a file in {registry}")
            server = StdioServerParameters(
                command=sys.executable,
                args=["-m", "opencode_mcp"],
                env={**os.environ, "TRANSPORT": "local-relay", "RELAY_REGISTRY_DIR": str(registry)},
            )
            say("3. The MCP server starts over stdio, and we call its tools as any MCP client would.")
            async with Client(server) as client:
                await converse(client)
    say("Done. Everything that was started has ended, and nothing is left behind.")


async def converse(client: Client) -> None:
    """Call the three tools."""
    with anyio.fail_after(30):
        while True:
            listing = await client.call_tool("instances", {})
            content: dict[str, Any] = listing.structured_content or {}
            rows = content.get("instances", [])
            if rows and rows[0]["status"] == "online":
                break
            await anyio.sleep(0.1)
    call("instances", "")
    print(indented(text_of(listing)), flush=True)

    call("send", f'instance="hello", message="{PROMPT}"')
    print("   ", end="", flush=True)

    async def stream(progress: float, total: float | None, message: str | None) -> None:
        print((message or "").replace("\n", "\n   "), end="", flush=True)

    reply = await client.call_tool("send", {"instance": "hello", "message": PROMPT}, progress_callback=stream)
    print(flush=True)
    check(reply)

    call("read", 'instance="hello", message_limit=2')
    transcript = await client.call_tool("read", {"instance": "hello", "message_limit": 2})
    check(transcript)
    print(indented(text_of(transcript)), flush=True)


@asynccontextmanager
async def announced(url: str, project: Path) -> AsyncGenerator[None]:
    """Keep the instance announced over local-relay."""
    (plugin,) = Plugins().load_transports(["local-relay"])
    endpoint = Endpoint(
        id="demo", name="demo-hello-world", url=url, hostname=socket.gethostname(), directory=str(project)
    )
    async with plugin.open(read_settings(plugin.settings)) as transport, anyio.create_task_group() as tasks:
        if not isinstance(transport, Announcer):
            raise DemoError("The local-relay transport cannot announce.")

        async def announce(*, task_status: TaskStatus[None]) -> None:
            await transport.announce(endpoint, task_status=task_status)

        await tasks.start(announce)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def open_code(project: Path) -> AsyncGenerator[str]:
    """Start an OpenCode, the real one if it can answer, and yield its URL."""
    executable = shutil.which("opencode")
    if executable is None:
        why = "there is no `opencode` on PATH"
    else:
        async with real_open_code(executable, project) as (url, why):
            if url:
                say(f"1. The real OpenCode ({executable}) runs at {url}")
                yield url
                return
    fake = FakeOpenCode(directory=str(project))
    fake.script(Reply(text=ANSWER, delay=0.03))
    async with fake.serve():
        say(f"1. The built-in FakeOpenCode runs at {fake.url}, since {why}.")
        yield fake.url


@asynccontextmanager
async def real_open_code(executable: str, project: Path) -> AsyncGenerator[tuple[str, str]]:
    """Start `opencode serve`; yield its URL, or an empty string and why it is of no use here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scratch = project.parent / "tmp"  # OpenCode leaves files in its temporary directory
    await anyio.Path(scratch).mkdir()
    environment = {**os.environ, "OPENCODE_DISABLE_AUTOUPDATE": "1", "TMPDIR": str(scratch)}
    environment.pop("OPENCODE_SERVER_PASSWORD", None)
    try:
        process = await anyio.open_process(
            [executable, "serve", "--hostname", "127.0.0.1", "--port", str(port)],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        yield "", f"the `opencode` on PATH cannot be started ({error.strerror})"
        return
    url = f"http://127.0.0.1:{port}"
    try:
        why = await why_useless(process, url)
        yield ("", why) if why else (url, "")
    finally:
        with anyio.CancelScope(shield=True):
            await delete_sessions(url)
            await end(process)


async def why_useless(process: Process, url: str) -> str:
    """Wait for OpenCode to answer, and say why it cannot take part; an empty string if it can."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=ANSWER_SECONDS) as client:
        with anyio.move_on_after(START_SECONDS):
            while process.returncode is None:
                with suppress(*ODD):
                    if not (await client.get("/global/health")).json()["version"].startswith("1."):
                        return "the `opencode` on PATH is not a 1.x version"
                    break
                await anyio.sleep(0.1)
            else:
                return "the `opencode` on PATH ended at once"
            try:
                config: dict[str, Any] = (await ask(client, "/config")).json()
                providers: dict[str, Any] = (await ask(client, "/provider")).json()
                # The provider `opencode` is connected on every fresh installation, without anybody's choice.
                if config.get("model") or set(providers.get("connected", [])) - {"opencode"}:
                    return ""
            except ODD as error:
                return f"the `opencode` on PATH does not tell its configuration ({type(error).__name__})"
            return "the `opencode` on PATH has no model configured"
        return f"the `opencode` on PATH did not answer within {START_SECONDS} s"


async def ask(client: httpx2.AsyncClient, path: str) -> httpx2.Response:
    """Ask OpenCode for what it may first have to fetch from the network, and wait for in vain without one."""
    return (await client.get(path, timeout=CONFIGURATION_SECONDS)).raise_for_status()


async def delete_sessions(url: str) -> None:
    """Take the demo's conversation out of OpenCode's history, since its project is gone in a moment."""
    with anyio.move_on_after(10), suppress(*ODD):
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=ANSWER_SECONDS) as client:
            for session in (await client.get("/session")).json():
                await client.delete(f"/session/{session['id']}")


async def end(process: Process) -> None:
    """End OpenCode and what it started; it leads a process group of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        with anyio.move_on_after(5):
            await process.wait()
            break
    await process.aclose()


def check(result: CallToolResult) -> None:
    """End the demo if a tool reports an error."""
    if result.is_error:
        raise DemoError(f"The tool failed: {text_of(result)}")


def text_of(result: CallToolResult) -> str:
    """Return the readable text of a tool result."""
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))


def call(tool: str, arguments: str) -> None:
    """Show a tool call."""
    print(f"\n>> {tool}({arguments})", flush=True)


def say(line: str) -> None:
    """Tell what happens."""
    print(f"\n{line}", flush=True)


def indented(text: str) -> str:
    """Set text off from the demo's own."""
    return "\n".join(f"   {line}" for line in text.splitlines())


def run() -> None:
    """Run the demo; end with 1 and one sentence if it fails, with 130 if it is interrupted."""
    try:
        anyio.run(main)
    except* DemoError as group:
        print(f"\nThe demo failed: {first(group)}", file=sys.stderr)
        raise SystemExit(1) from None
    except* KeyboardInterrupt:
        raise SystemExit(130) from None


def first(group: BaseExceptionGroup[DemoError]) -> DemoError:
    """Return the error inside nested groups."""
    inner = group.exceptions[0]
    return first(inner) if isinstance(inner, BaseExceptionGroup) else inner


if __name__ == "__main__":
    run()
