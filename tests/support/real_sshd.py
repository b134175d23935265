"""A real sshd as an ordinary process on loopback, with keys, configuration and a log of its own."""

import contextlib
import dataclasses
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path

import anyio.to_thread

from support.require import skip_or_fail

_START_SECONDS = 10
_STOP_SECONDS = 3


@dataclasses.dataclass
class RealSshd:
    """An sshd that serves the user who runs the tests.

    Attributes:
        home: Where its files are.
        port: Where it listens, on 127.0.0.1.
        options: Lines of its configuration that come first, and so win; read by `start`.
    """

    home: Path
    port: int
    options: Sequence[str] = ()
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def words(self) -> list[str]:
        """An ssh command line that logs in, with nothing of the user's own configuration."""
        options = (
            f"UserKnownHostsFile={self.home / 'known_hosts'}",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
        )
        words = ["ssh", "-F", "none", "-i", str(self.home / "user"), "-p", str(self.port)]
        return [*words, *(w for o in options for w in ("-o", o)), f"{getpass.getuser()}@127.0.0.1"]

    @property
    def command(self) -> str:
        """The same for RELAY_SSH_CMD."""
        return shlex.join(self.words)

    @property
    def user_home(self) -> Path:
        """The home of who logs in."""
        return self.home / "home"

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.home / "log").read_text(errors="replace")

    @property
    def logins(self) -> int:
        """How often somebody has logged in."""
        return self.log.count("Accepted publickey")

    @property
    def children(self) -> list[int]:
        """The processes that serve a connection."""
        if self._process is None:
            return []
        return [pid for pid, parent, _ in processes() if parent == self._process.pid]

    def start(self, *options: str) -> None:
        """Start it and wait until it listens."""
        self.options = options or self.options
        (self.home / "config").write_text(
            "\n".join(
                [
                    *self.options,
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.home / 'host'}",
                    f"AuthorizedKeysFile {self.home / 'authorized_keys'}",
                    f"PidFile {self.home / 'pid'}",
                    f"SetEnv HOME={self.user_home}",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "PermitRootLogin yes",
                    "MaxStartups 100",
                    "LogLevel VERBOSE",
                    "",
                ]
            )
        )
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sshd_program(), "-D", "-e", "-f", str(self.home / "config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                if sock.recv(4) == b"SSH-":
                    return
            time.sleep(0.01)
        raise RuntimeError(f"sshd did not start: {self.log[-2000:]}")

    def stop(self) -> None:
        """Kill it, and the connections it serves."""
        if self._process is None:
            return
        served = self.children
        self._process.kill()
        self._process.wait(_STOP_SECONDS)
        self._process = None
        for pid in served:
            end(pid)

    def cut(self) -> None:
        """Kill the connections it serves; it goes on listening."""
        for pid in self.children:
            end(pid)

    def change_host_key(self) -> None:
        """Make a host key that nobody knows yet; it is used from the next start on."""
        for name in ("host", "host.pub"):
            (self.home / name).unlink(missing_ok=True)
        _keygen(self.home / "host")

    def trust_host_key(self) -> None:
        """Let clients know the host key."""
        kind, key, *_ = (self.home / "host.pub").read_text().split()
        (self.home / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def trust_user(self, *options: str) -> None:
        """Let the user's key in, with options as in authorized_keys."""
        key = (self.home / "user.pub").read_text()
        (self.home / "authorized_keys").write_text(f"{','.join(options)} {key}".lstrip())

    def distrust_user(self) -> None:
        """Let nobody in."""
        (self.home / "authorized_keys").write_text("")

    def wrapper(self, name: str, script: str) -> str:
        """Write a program that does something around ssh, and return its path.

        Args:
            name: Its file name.
            script: Its text for `sh`; `$SSH` is the ssh command line with login, `"$@"` what is appended.
        """
        path = self.home / name
        path.write_text(f"#!/bin/sh\nSSH={shlex.quote(self.command)}\n{script}\n")
        path.chmod(0o755)
        return str(path)


@contextlib.asynccontextmanager
async def running_sshd(home: Path, *options: str) -> AsyncGenerator[RealSshd]:
    """Run an sshd until the block ends."""
    with _prepared(home) as server:
        await anyio.to_thread.run_sync(lambda: server.start(*options))
        try:
            yield server
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(server.stop)


@contextlib.contextmanager
def _prepared(home: Path) -> Generator[RealSshd]:
    home.mkdir(parents=True, exist_ok=True)
    sshd_program()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    server = RealSshd(home, port)
    (home / "log").touch()
    server.user_home.mkdir()
    _keygen(home / "host")
    _keygen(home / "user")
    server.trust_host_key()
    server.trust_user()
    yield server


def sshd_program() -> str:
    """The sshd of this machine; skips or fails the test if it, or what goes with it, is missing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    sshd = shutil.which("sshd", path=path)
    if sshd is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        skip_or_fail("OpenSSH is missing: install its server and client (openssh-server, openssh-client)")
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return sshd


def processes() -> list[tuple[int, int, str]]:
    """All processes that are not zombies: id, parent's id, command line."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()]
    return [(int(row[0]), int(row[1]), row[3]) for row in rows if len(row) == 4 and row[2][0] != "Z"]


def running_with(text: str) -> list[int]:
    """The processes whose command line holds `text`."""
    return [pid for pid, _, arguments in processes() if text in arguments]


def end(pid: int) -> None:
    """Kill a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
