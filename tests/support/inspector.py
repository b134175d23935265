"""The MCP Inspector's command line, fetched from npm once: a client that shares no code with our server."""

import contextlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from support.command import MODULE, Command
from support.require import skip_or_fail

VERSION = "2.12.0"
_PACKAGE = f"@modelcontextprotocol/inspector@{VERSION}"
_CACHE = Path(__file__).parents[2] / ".cache" / "inspector"
_OLDEST_NODE = 20
_FETCH_SECONDS = 300
_CALL_SECONDS = 60


def inspector_program() -> tuple[str, ...]:
    """Return the program; fetch it if it is not in the cache yet, else skip or fail the test."""
    node = shutil.which("node")
    if node is None or _major_version(node) < _OLDEST_NODE:
        skip_or_fail(f"The MCP Inspector needs Node.js {_OLDEST_NODE} or newer on PATH: install it, with npm")
    home = _CACHE / VERSION
    script = home / "node_modules" / ".bin" / "mcp-inspector"
    if not script.exists():
        _fetch(home)
    return node, str(script)


def _major_version(node: str) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=_CALL_SECONDS)
    return int(said.stdout.lstrip("v").partition(".")[0] or 0)


def _fetch(home: Path) -> None:
    how = f"The MCP Inspector is missing: install npm with access to its registry (`npm install {_PACKAGE}`)"
    npm = shutil.which("npm")
    if npm is None:
        skip_or_fail(how)
    _CACHE.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", _PACKAGE]
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="fetch-", ignore_cleanup_errors=True) as scratch:
        error = ""
        for _ in range(3):
            try:
                done = subprocess.run(
                    [*command, "--prefix", scratch], capture_output=True, text=True, timeout=_FETCH_SECONDS
                )
            except subprocess.TimeoutExpired:
                error = f"nothing for {_FETCH_SECONDS} s"
                continue
            if done.returncode == 0:
                break
            error = " ".join(done.stderr.split())[:300]
        else:
            skip_or_fail(f"{how}; npm said: {error}")
        with contextlib.suppress(OSError):  # another run was faster
            Path(scratch).rename(home)


async def inspect(command: Command, era: str, method: str, *options: str) -> dict[str, Any]:
    """Let the Inspector start our server, send one request and return the result.

    Args:
        command: Where the server runs.
        era: `legacy` or `modern`.
        method: For example `tools/list`.
        *options: Of the Inspector's command line.
    """
    program = await anyio.to_thread.run_sync(inspector_program)
    registry = f"RELAY_REGISTRY_DIR={command.registry}"
    arguments = ("--cli", *MODULE, "-e", registry, "--protocol-era", era, "--format", "json")
    with anyio.fail_after(_CALL_SECONDS):
        ended = await anyio.run_process(
            [*program, *arguments, "--method", method, *options],
            check=False,
            cwd=command.home,
            env=command.environment(),
        )
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    return json.loads(ended.stdout)["result"]
