"""Finds tailscaled on this machine: its Unix socket, or on macOS the port and token of the app."""

import base64
import dataclasses
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
import httpcore2

from opencode_mcp import TransportError, clean_line
from opencode_mcp_tailscale.settings import TailscaleSettings
from opencode_mcp_tailscale.through import UnixStream, network_backend

_UNIX = ("/var/run/tailscale/tailscaled.sock",)
_LINUX = (
    *_UNIX,
    "/tmp/tailscaled.sock",  # noqa: S108 - Tailscale's container image; see `_ANYBODYS`
    "/var/packages/Tailscale/var/tailscaled.sock",  # Synology, DSM 7
    "/var/packages/Tailscale/etc/tailscaled.sock",  # Synology, DSM 6
    "/tmp/tailscale/tailscaled.sock",  # noqa: S108 - QNAP
    "/var/snap/tailscale/common/socket/tailscaled.sock",
)
_ANYBODYS = "/tmp/"  # noqa: S108
"""Where everybody can pretend to be tailscaled. The other places are root's, or the package manager's: there
it may run as a user of its own, as on Synology, or as a root whom a container sees as nobody."""
_MACOS = ("/var/run/tailscaled.socket", "/var/run/tailscale/tailscaled.sock")
_MACOS_APP = Path("/Library/Tailscale")
_PROCESSES = Path("/proc")
_CONNECT_SECONDS = 1.0
_LSOF_SECONDS = 3.0
_HIGHEST_PORT = 65_535
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Daemon:
    """Where tailscaled's LocalAPI is.

    Attributes:
        path: Its Unix socket; empty if it is at a port.
        port: Its port on 127.0.0.1; 0 if it is at a Unix socket.
        token: What it wants as the password at a port.
        named: Whether the user named the socket, so that whoever runs it is right wherever it is.
        elsewhere: Whether it was seen in another network namespace: its loopback is not ours.
    """

    path: str = ""
    port: int = 0
    token: str = dataclasses.field(default="", repr=False)
    named: bool = False
    elsewhere: bool = False

    @property
    def headers(self) -> Mapping[str, str]:
        """What every request has to carry."""
        if not self.token:
            return {}
        return {"Authorization": f"Basic {base64.b64encode(f':{self.token}'.encode()).decode()}"}

    def __str__(self) -> str:
        return clean_line(self.path, 200) or f"127.0.0.1:{self.port}"

    async def connect(self, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection.

        Raises:
            httpcore2.ConnectError: It cannot be connected to, or not relied on.
            httpcore2.ConnectTimeout: It does not answer.
        """
        if not self.path:
            return await network_backend().connect_tcp("127.0.0.1", self.port, timeout)
        stream = UnixStream(await network_backend().connect_unix_socket(self.path, timeout))
        doubtful = not self.named and self.path.startswith(_ANYBODYS)
        user = _peer(stream.get_extra_info("socket")).user if doubtful else None
        if user in (None, 0, os.geteuid()):
            return stream
        await stream.aclose()
        raise httpcore2.ConnectError(f"the user {user} runs it; if that is right, set TAILSCALE_SOCKET to it")


async def find_daemon(settings: TailscaleSettings, *, platform: str = sys.platform) -> Daemon:
    """Return the first of the usual places where tailscaled accepts connections.

    Raises:
        TransportError: It does so nowhere; the message says where was looked and what to do.
    """
    if platform == "win32":
        raise TransportError(
            "TRANSPORT=tailscale is not supported on Windows, where tailscaled has a named pipe instead of a "
            "socket. Use static peers: a transport that lists the addresses of your instances."
        )
    failures: list[str] = []
    chosen = settings.socket or settings.container_socket
    for daemon in await anyio.to_thread.run_sync(lambda: list(_candidates(chosen, platform))):
        if isinstance(daemon, str):
            failures.append(daemon)
            continue
        tried = await _tried(daemon)
        if not isinstance(tried, str):
            return tried
        failures.append(f"{daemon} ({tried})")
    advice = (
        f"Correct {'TAILSCALE_SOCKET' if settings.socket else 'TS_SOCKET'}, or start tailscaled."
        if chosen
        else "Start Tailscale, or set TAILSCALE_SOCKET to the path of its socket. In a container, mount the "
        "directory of the socket."
    )
    raise TransportError(f"tailscaled cannot be reached. Tried: {'; '.join(failures)}. {advice}")


def _candidates(chosen: str, platform: str) -> Iterator[Daemon | str]:
    """Where it may be; of what is known not to be usable, what and why."""
    if chosen:
        yield Daemon(path=chosen, named=True)
    elif platform == "darwin":
        yield from _macos_apps()
        yield from (Daemon(path=path) for path in _MACOS)
    else:
        yield from (Daemon(path=path) for path in (_LINUX if platform == "linux" else _UNIX))


async def _tried(daemon: Daemon) -> Daemon | str:
    """Return it with what is seen of it, if it accepts connections; else why not."""
    try:
        stream = await daemon.connect(_CONNECT_SECONDS)
    except httpcore2.ConnectTimeout:
        return "it does not answer"
    except httpcore2.ConnectError as error:
        return _why(error)
    process = _peer(stream.get_extra_info("socket")).process if daemon.path else None
    await stream.aclose()
    if process is None:
        return daemon
    return dataclasses.replace(daemon, elsewhere=await anyio.to_thread.run_sync(_is_elsewhere, process))


def _why(error: httpcore2.ConnectError) -> str:
    cause = error.__cause__
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    match cause:
        case FileNotFoundError():
            return "not there"
        case PermissionError():
            return "no permission to connect to it"
        case ConnectionRefusedError():
            return "nobody listens there: tailscaled is not running"
        case OSError(strerror=str(reason)):
            return reason
        case _:
            return str(error)


class _Peer(NamedTuple):
    """Who listens at a Unix socket, as far as the kernel tells: the user, and the process."""

    user: int | None
    process: int | None


def _peer(connected: socket.socket) -> _Peer:
    """Return who listens at a Unix socket; nothing where the kernel does not tell (not Linux).

    The process is None if it is not to be seen from here, as from a container.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return _Peer(None, None)
    told = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", told)
    return _Peer(user, process or None)


def _is_elsewhere(process: int) -> bool:
    """Whether a process is in another network namespace; not if that cannot be told, as of another user's."""
    try:
        here, there = ((_PROCESSES / one / "ns/net").readlink() for one in ("self", str(process)))
    except OSError:
        return False
    return here != there


def _macos_apps() -> Iterator[Daemon | str]:
    """The graphical variants: that of the App Store, whose port and token lsof knows, and the other one."""
    try:
        found: Sequence[Daemon | str] = list(_macos_store(_open_files()))
    except OSError as error:
        why = "does not answer" if isinstance(error, TimeoutError) else error.strerror or "cannot be run"
        found = [f"the app of the App Store (lsof, which would tell its port, {why})"]
    yield from found
    yield from _macos_standalone(_MACOS_APP)


def _macos_standalone(folder: Path) -> Iterator[Daemon | str]:
    """A link names the port, and a file that only administrators can read holds the token."""
    try:
        port = int((folder / "ipnport").readlink().name)
        token = (folder / f"sameuserproof-{port}").read_text("ascii").strip()
    except PermissionError as error:
        yield f"{error.filename} (no permission: only administrators can read it)"
        return
    except (OSError, ValueError):
        return
    if 0 < port <= _HIGHEST_PORT:
        yield Daemon(port=port, token=token)


def _macos_store(names: Sequence[str]) -> Iterator[Daemon]:
    """The app keeps a file open that is called `sameuserproof-<port>-<token>`."""
    for name in names:
        _, found, rest = name.rpartition("/sameuserproof-")
        port, dash, token = rest.partition("-")
        known = found and dash and token and ".tailscale.ipn.macos/" in name
        if known and _PORT.fullmatch(port) and int(port) <= _HIGHEST_PORT:
            yield Daemon(port=int(port), token=token)


def _open_files() -> Sequence[str]:
    """Return which files the app of the App Store has open, if this user runs it.

    Raises:
        OSError: There is no lsof, or it cannot be run, or takes too long.
    """
    import subprocess  # only here

    command = ["/usr/sbin/lsof", "-n", "-a", f"-u{os.getuid()}", "-c", "IPNExtension", "-F", "n"]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LSOF_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(str(error)) from None
    return [line[1:] for line in done.stdout.splitlines() if line.startswith("n")]
