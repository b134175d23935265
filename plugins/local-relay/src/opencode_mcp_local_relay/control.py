"""The control socket of an announcement's ssh: where it is, and what is done over it without a login."""

import contextlib
import hashlib
import os
import re
import stat
import subprocess
import tempfile
from pathlib import Path

import anyio
from anyio.abc import ByteStream
from anyio.streams.stapled import StapledByteStream

from opencode_mcp_local_relay.process import end, piped, start

PROBE_SECONDS = 10.0
_REQUEST_SECONDS = 5.0
_LONGEST = 86
"""Characters. ssh adds 18 while it makes a socket, and macOS allows 104."""
_ROOM = len("/opencode-mcp-12345678/12345")
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")  # what ssh takes as it is
_GET = b"GET /global/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def control_path(instance_id: str) -> Path | None:
    """Where the control socket of an instance is; None if there is no place for one. Blocks a little.

    It has a directory to itself, so that no other instance can remove that while ssh is still logging in.
    """
    if not hasattr(os, "geteuid"):
        return None
    digest = hashlib.sha256(instance_id.encode(errors="surrogatepass")).hexdigest()[:16]
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - in a directory of our own
        path = Path(parent, f"opencode-mcp-{os.geteuid()}-{digest}", "s")
        if len(str(path)) <= _LONGEST and _PLAIN.fullmatch(str(path)):
            return path
    return None


def new_room() -> Path | None:
    """Make a directory of its own for sockets with names of a few characters; None if there is no place.

    Blocks a little.
    """
    if not hasattr(os, "geteuid"):
        return None
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - in a directory of our own
        if len(parent) <= _LONGEST - _ROOM and _PLAIN.fullmatch(parent):
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="opencode-mcp-", dir=parent))
    return None


def is_ours(path: Path) -> bool:
    """Whether nobody else can have put something there, so that it may be talked to. Blocks a little."""
    try:
        status = path.parent.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def make_room(path: Path) -> str:
    """Make the directory for a control socket, and remove a socket left there; say what is against it."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not is_ours(path):
            return f"{path.parent} is not a directory of yours that nobody else may enter; remove it"
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"{path.parent} cannot be used: {error.strerror}"
    return ""


def clear_away(path: Path) -> bool:
    """Remove a control socket, and its directory; whether there was a socket."""
    there = False
    with contextlib.suppress(OSError):
        if is_ours(path):
            path.unlink()
            there = True
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    return there


def over(path: Path, *words: str) -> list[str]:
    """Return an ssh command that uses the connection behind `path`, and fails at once if there is none."""
    options = (f"ControlPath={path}", "ControlMaster=no", "ProxyCommand=false", "BatchMode=yes")
    return ["ssh", "-F", "none", "-T", *(word for option in options for word in ("-o", option)), *words]


async def request(path: Path, what: str, *options: str) -> bool:
    """Ask the ssh behind `path` for something, as `ssh -O` does; whether it complied."""
    with contextlib.suppress(OSError), anyio.move_on_after(_REQUEST_SECONDS):
        done = await anyio.run_process(
            over(path, "-O", what, *options, "relay"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode == 0
    return False


async def forwards(path: Path, port: int) -> bool | None:
    """Whether `port` of the relay leads to something that speaks HTTP; None if that cannot be tried."""
    try:
        process = await start(over(path, "-W", f"127.0.0.1:{port}", "relay"), stderr=subprocess.DEVNULL)
    except OSError:
        return None
    try:
        with anyio.move_on_after(PROBE_SECONDS):
            if await _answers(StapledByteStream(piped(process.stdin), piped(process.stdout))):
                return True
            return None if await process.wait() else False
        return False
    finally:
        await end(process)


async def answers(host: str, port: int) -> bool:
    """Whether the instance itself speaks HTTP at present."""
    try:
        with anyio.move_on_after(PROBE_SECONDS):
            async with await anyio.connect_tcp(host, port) as stream:
                return await _answers(stream)
    except OSError:
        pass
    return False


async def _answers(stream: ByteStream) -> bool:
    """Any answer will do: a refused password comes through the tunnel as well."""
    head = b""
    with contextlib.suppress(
        OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError
    ):
        await stream.send(_GET)
        while len(head) < len(b"HTTP/1."):
            head += await stream.receive()
    return head.startswith(b"HTTP/1.")
