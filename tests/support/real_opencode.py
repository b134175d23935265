"""A real OpenCode 1.18.33: fetched from npm once, run offline in a project and a home of its own."""

import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2

from support.require import skip_or_fail

VERSION = "1.18.33"
_CACHE = Path(__file__).parents[2] / ".cache" / "opencode"
_ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_FETCH_SECONDS = 300
_START_SECONDS = 60
_STOP_SECONDS = 5
_LOG = "serve.log"
_OWN_VARIABLES = ("OPENCODE", "XDG_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealOpenCode:
    """A running OpenCode server.

    Attributes:
        url: `http://127.0.0.1:port`.
        directory: The project it runs in.
        process: Its process, the leader of a group of its own.
    """

    url: str
    directory: Path
    process: subprocess.Popen[bytes]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, if there still are any."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def package_name() -> str:
    """Return the npm package with the executable for this machine."""
    system = platform.system().lower()
    name = f"opencode-{system}-{_ARCHITECTURES.get(platform.machine().lower(), platform.machine())}"
    return f"{name}-musl" if system == "linux" and platform.libc_ver()[0] != "glibc" else name


def opencode_binary() -> Path:
    """Return the executable; fetch it if it is not in the cache yet, else skip or fail the test."""
    home = _CACHE / VERSION
    binary = home / "package" / "bin" / "opencode"
    if binary.exists():
        return binary
    wanted = f"{package_name()}@{VERSION}"
    how = f"OpenCode {VERSION} is missing: install npm with access to its registry (`npm pack {wanted}`)"
    npm = shutil.which("npm")
    if npm is None:
        skip_or_fail(how)
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="fetch-") as scratch:
        error = ""
        for _ in range(3):
            archive, error = _pack(npm, wanted, Path(scratch))
            if archive is not None:
                break
        else:
            skip_or_fail(f"{how}; npm said: {error}")
        subprocess.run(["tar", "xzf", archive, "-C", scratch], check=True)
        archive.unlink()
        with contextlib.suppress(OSError):  # another run was faster
            Path(scratch).rename(home)
            Path(scratch).mkdir()
    return binary


def _pack(npm: str, wanted: str, into: Path) -> tuple[Path | None, str]:
    """Return the archive of a package, or None and what npm said."""
    command = [npm, "pack", "--loglevel=error", wanted]
    try:
        done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=_FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"nothing for {_FETCH_SECONDS} s"
    if done.returncode != 0:
        return None, " ".join(done.stderr.split())[:300]
    return into / done.stdout.split()[-1], ""


def project_config(model_url: str) -> dict[str, Any]:
    """Return an `opencode.json` whose only model is a scripted one, and in which `bash` asks."""
    models = {"fake": {"name": "fake", "tool_call": True, "reasoning": True}}
    options = {"baseURL": model_url, "apiKey": "x"}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "fake", "options": options, "models": models}
    return {
        "provider": {"fake": provider},
        "model": "fake/fake",
        "small_model": "fake/fake",
        "permission": {"bash": "ask"},
    }


def free_port() -> int:
    """Return a port of loopback that is free at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.asynccontextmanager
async def running_opencode(
    directory: Path,
    model_url: str,
    *,
    password: str | None = None,
    port: int | None = None,
    home: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncGenerator[RealOpenCode]:
    """Run `opencode serve` until the block ends.

    Args:
        directory: The project; gets an `opencode.json`.
        model_url: The base URL of the scripted model.
        password: The password it wants; None for none.
        port: The port; None for any free one.
        home: A home directory, to find again what an earlier run stored; None for a fresh one.
        environment: Further environment variables.
    """
    port = port or free_port()
    async with contextlib.AsyncExitStack() as stack:
        if home is None:
            fresh = anyio.TemporaryDirectory(prefix="opencode-home-", ignore_cleanup_errors=True)
            home = Path(await stack.enter_async_context(fresh))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_OWN_VARIABLES)}
        variables = {
            **inherited,
            "HOME": str(home),
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            **({"OPENCODE_SERVER_PASSWORD": password} if password else {}),
            **(environment or {}),
        }
        process = await anyio.to_thread.run_sync(_spawn, directory, model_url, port, home, variables)
        server = RealOpenCode(url=f"http://127.0.0.1:{port}", directory=directory, process=process)
        try:
            await _answering(server, password, home / _LOG)
            yield server
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_stop, server)


def _spawn(
    directory: Path, model_url: str, port: int, home: Path, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    (directory / "opencode.json").write_text(json.dumps(project_config(model_url)))
    with (home / _LOG).open("wb") as log:
        return subprocess.Popen(
            [opencode_binary(), "serve", "--port", str(port)],
            cwd=directory,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


async def _answering(server: RealOpenCode, password: str | None, log: Path) -> None:
    """Wait until it answers. Asked too early it accepts the request and never answers, so ask again."""
    auth = ("opencode", password) if password else None
    with anyio.move_on_after(_START_SECONDS):
        async with httpx2.AsyncClient(auth=auth, timeout=1, trust_env=False) as client:
            while server.process.poll() is None:
                with contextlib.suppress(httpx2.TransportError):
                    response = await client.get(f"{server.url}/global/health")
                    if response.status_code == 200:
                        return
                await anyio.sleep(0.05)
    said = (await anyio.Path(log).read_text(errors="replace"))[-2000:]
    raise RuntimeError(f"OpenCode did not start within {_START_SECONDS} s; it said: {said}")


def _stop(server: RealOpenCode) -> None:
    server.signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(_STOP_SECONDS)
    server.signal(signal.SIGKILL)
    server.process.wait()
