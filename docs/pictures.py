#!/usr/bin/env python3
"""Draw the pictures of terminals in `docs/pictures/`: what the commands really print, as SVG.

`python docs/pictures.py [NAME...]` runs each command in a terminal of its own, against OpenCode servers that
this script starts on loopback, and draws what came out. People, machines and projects in them are invented;
nothing is loaded from elsewhere when they are shown.
"""

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from opencode_mcp.testing import FakeOpenCode, Reply, ToolCall

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
BIN = Path(sys.executable).parent
_SECONDS = 60.0
_COLUMNS = 122

_THEME = TerminalTheme(
    (24, 28, 34),
    (216, 222, 228),
    [
        (70, 78, 88),
        (255, 122, 110),
        (118, 214, 138),
        (240, 200, 100),
        (110, 178, 255),
        (206, 150, 255),
        (90, 212, 212),
        (216, 222, 228),
    ],
    [
        (128, 138, 150),
        (255, 150, 138),
        (150, 232, 166),
        (250, 220, 140),
        (150, 200, 255),
        (222, 180, 255),
        (130, 230, 230),
        (255, 255, 255),
    ],
)
# Rich's own, less the fonts that it loads from elsewhere.
_FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Agents:
    """OpenCodes on several machines that are registered, as far as a registry can tell."""

    def __init__(self, registry: Path, stack: AsyncExitStack) -> None:
        self._registry = registry
        self._stack = stack

    async def agent(
        self, name: str, folder: str, title: str = "", *, password: str | None = None
    ) -> FakeOpenCode:
        """Start an OpenCode with a session, and register it."""
        host, _, project = name.partition("-")
        fake = FakeOpenCode(directory=f"{folder}/{project}", password=password)
        await self._stack.enter_async_context(fake.serve())
        if title:
            fake.create_session(title)
        self.register(name, host, fake.port, fake.directory)
        return fake

    def register(self, name: str, host: str, port: int, directory: str) -> None:
        """Write a registration file."""
        path = self._registry / f"{name}.json"
        path.write_text(json.dumps({"name": name, "hostname": host, "port": port, "cwd": directory}), "utf-8")
        path.chmod(0o600)


@asynccontextmanager
async def agents(registry: Path, *, guarded: bool) -> AsyncGenerator[None]:
    """Run OpenCodes of three machines, and one more that wants a password, or is gone."""
    async with AsyncExitStack() as stack:
        fleet = Agents(registry, stack)
        await fleet.agent("laptop-webshop", "/home/ann", "Checkout forgets the voucher")
        busy = await fleet.agent("laptop-docs", "/home/ann", "Rewrite the tutorial")
        asking = await fleet.agent("tower-api", "/srv", "Add rate limits")
        await fleet.agent("tower-compiler", "/srv", "Why is the build slow?")
        await fleet.agent("nas-photos", "/volume1", "Find duplicates")
        if guarded:
            await fleet.agent("nas-ledger", "/volume1", password="not told to the command")  # noqa: S106
        else:
            fleet.register("tablet-notes", "tablet", 1, "/home/ann/notes")
        busy.set_busy(next(iter(busy.sessions)))
        asking.script(
            Reply(tools=[ToolCall(input={"command": "git push", "description": "Push"}, asks=True)])
        )
        asking.prompt(next(iter(asking.sessions)), "Add rate limits to the public endpoints.")
        with anyio.fail_after(_SECONDS):
            while not asking.permissions:  # noqa: ASYNC110 - the fake tells nobody
                await anyio.sleep(0.02)
        yield


async def instances(home: Path) -> str:
    """The list of all instances."""
    return await _with_agents(home, "opencode-mcp instances", guarded=False, code=0)


async def doctor(home: Path) -> str:
    """What the doctor says of instances of which one wants a password."""
    return await _with_agents(home, "opencode-mcp doctor", guarded=True, code=1)


async def demo(home: Path) -> str:
    """The demo, with the stand-in for OpenCode."""
    program = f"import runpy; runpy.run_path({str(ROOT / 'demo/demo.py')!r}, run_name='__main__')"
    return draw("./dev demo", await _printed(program, {"HOME": str(home), "PATH": str(BIN)}, code=0))


async def _with_agents(home: Path, typed: str, *, guarded: bool, code: int) -> str:
    registry = home / "opencode-relay"
    registry.mkdir(mode=0o700)
    environment = {"HOME": str(home), "PATH": str(BIN), "RELAY_REGISTRY_DIR": "~/opencode-relay"}
    program = f"import sys; sys.argv = {typed.split()!r}; from opencode_mcp.cli import main; main()"
    async with agents(registry, guarded=guarded):
        return draw(typed, await _printed(program, environment, code=code))


async def _printed(program: str, environment: Mapping[str, str], *, code: int) -> str:
    """Run a Python program as if on a machine called `laptop`; return what it printed in a terminal."""
    elsewhere = (
        "import platform, socket; socket.gethostname = lambda: 'laptop'; platform.release = lambda: '6.12'; "
    )
    terminal = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
    command = [sys.executable, "-c", elsewhere + program]
    return await anyio.to_thread.run_sync(_run, command, {**terminal, **environment}, code)


def _run(command: Sequence[str], environment: Mapping[str, str], code: int) -> str:
    """Run a command in a terminal of its own, and return what was on it in the end."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 60, _COLUMNS, 0, 0))
    process = subprocess.Popen(  # noqa: S603 - our own commands
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    )
    os.close(follower)
    written = bytearray()
    with suppress(OSError):  # EIO: nobody has it open any more
        while chunk := os.read(leader, 65536):
            written += chunk
    os.close(leader)
    shown = "\n".join(map(_left_standing, written.decode().replace("\r\n", "\n").split("\n")))
    if process.wait(_SECONDS) != code:
        raise SystemExit(f"{shown}\nIt ended with {process.returncode}, not {code}.")
    return shown


def _left_standing(line: str) -> str:
    """Return what is left of a line after everything that was written over it."""
    return line.rpartition("\x1b[K")[2].rpartition("\r")[2]


def draw(typed: str, printed: str) -> str:
    """Draw a terminal with a command and what it printed."""
    console = Console(
        record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.assemble(("$ ", "bright_black"), (typed, "bold")))
    for line in printed.strip("\n").split("\n"):
        text = Text.from_ansi(line.rstrip())
        for piece in text.divide(range(_COLUMNS, len(text), _COLUMNS)):  # as a terminal does at its edge
            console.print(piece, soft_wrap=True)
    console.print()  # room below the last line
    name = typed.rpartition("/")[2].replace(" ", "-")
    svg = console.export_svg(title=typed, theme=_THEME, code_format=_FORMAT, unique_id=f"terminal-{name}")
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


DRAWN = {"demo": demo, "instances": instances, "doctor": doctor}


async def main(names: Sequence[str]) -> None:
    """Draw the pictures called `names`."""
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            picture = await DRAWN[name](Path(home))
        await anyio.Path(PICTURES / f"{name}.svg").write_text(picture, "utf-8")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1:] or list(DRAWN))
