"""A real tailnet without a network: `tests/tailnet`, a Go program with tailscale's own code, built once."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from support.require import skip_or_fail

_ROOT = Path(__file__).parents[2]
_SOURCES = _ROOT / "tests" / "tailnet"
_CACHE = _ROOT / ".cache" / "tailnet"
# parts that would listen on all addresses, or talk to the network outside
_WITHOUT = "ts_omit_peerapiserver,ts_omit_portmapper,ts_omit_captiveportal,ts_omit_logtail"
_BUILD_SECONDS = 900
_COMMAND_SECONDS = 60
_STOP_SECONDS = 10
_LONGEST_ANSWER = 64 * 1024
_FOREIGN = ("TS_", "TSNET_")  # what tailscale's code reads from the environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the tailnet, as things were at the last command about it.

    Attributes:
        name: What commands call it.
        id: Its stable id.
        node_id: Its number, which the bus uses.
        node_key: Its public key, `nodekey:` and hex digits.
        dns_name: With a dot at its end.
        ips: IPv4 first.
        socket: Where its LocalAPI is, while it runs.
    """

    name: str
    id: str
    node_id: int
    node_key: str
    dns_name: str
    ips: tuple[str, ...]
    socket: Path


class Tailnet:
    """A running tailnet, whose DNS suffix is `tail.test`. Peers hear of each command within milliseconds.

    Attributes:
        directory: Where its sockets are.
        pid: Its process.
    """

    def __init__(self, process: anyio.abc.Process, directory: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._commands = process.stdin
        self._answers = BufferedByteReceiveStream(process.stdout)
        self._turn = anyio.Lock()
        self.directory = directory
        self.pid = process.pid

    @property
    def log(self) -> str:
        """What all nodes have written so far."""
        return _log(self.directory).read_text(errors="replace")

    async def add(
        self, name: str, *, login: str = "ann@example.com", tags: Sequence[str] = (), host_name: str = ""
    ) -> Node:
        """Add a node; returns when it is Running.

        Args:
            name: Of letters, digits and `-`, and short; also the first label of its DNS name. It may be that
                of a node that was removed.
            login: Its user, who is made if there is none yet.
            tags: What it has instead of a user, such as `tag:opencode`.
            host_name: What it calls itself, if not `name`.
        """
        return await self._command("add", name, Login=login, Tags=list(tags), HostName=host_name)

    async def stop(self, node: Node) -> None:
        """End a node as if its daemon ended: its socket goes, peers see it offline, its state stays."""
        await self._command("stop", node.name)

    async def start(self, node: Node) -> Node:
        """Start it again; returns when it is Running, with the id and the addresses it had."""
        return await self._command("start", node.name)

    async def rotate(self, node: Node) -> Node:
        """Have a running node log in anew, which gives it another node key."""
        return await self._command("rotate", node.name)

    async def remove(self, node: Node) -> None:
        """Take a node out of the tailnet for good; if it runs, it does so without peers, as NeedsLogin."""
        await self._command("remove", node.name)

    async def set_online(self, node: Node, online: bool | None) -> None:
        """Tell peers that a node is online or not, whatever is true; None tells the truth again."""
        await self._command("online", node.name, Value=online)

    async def hide(self, node: Node, hidden: bool) -> None:
        """Let the others not be told of a node, as if the tailnet's rules kept them apart; or tell them."""
        await self._command("hide", node.name, Value=hidden)

    async def expire(self, node: Node, expired: bool = True) -> None:
        """Let a node's key have expired, which makes it NeedsLogin, or be good again; returns when it is."""
        await self._command("expire", node.name, Value=expired)

    async def rename(self, node: Node, label: str) -> Node:
        """Give a node another DNS name; what it calls itself stays."""
        return await self._command("rename", node.name, DNSLabel=label)

    async def block(self, node: Node, *sources: Node) -> None:
        """Let a node drop, without a word, new connections from these nodes, and from no others.

        It does so a few ms later; nothing tells when.
        """
        await self._command("block", node.name, From=[source.name for source in sources])

    async def _command(self, do: str, name: str, **arguments: Any) -> Node:
        line = json.dumps({"Do": do, "Name": name, **arguments}) + "\n"
        with anyio.fail_after(_COMMAND_SECONDS):
            async with self._turn:
                await self._commands.send(line.encode())
                answer = json.loads(await self._answers.receive_until(b"\n", _LONGEST_ANSWER))
        if "error" in answer:
            raise RuntimeError(f"the tailnet says: {answer['error']}")
        answer.update(name=name, ips=tuple(answer["ips"]), socket=Path(answer["socket"]))
        return Node(**answer)


@contextlib.asynccontextmanager
async def tailnet(*, within: Sequence[str] = ()) -> AsyncGenerator[Tailnet]:
    """Run a tailnet without nodes until the block ends; skip or fail the test if it cannot be built.

    Args:
        within: Words that run a command elsewhere, such as in a network namespace. What a node's serve
            configuration forwards to is looked for there, too.
    """
    binary = await anyio.to_thread.run_sync(tailnet_binary)
    # paths of sockets have about 100 bytes, so no $TMPDIR
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="tailnet-", ignore_cleanup_errors=True) as scratch:
        directory = Path(scratch)
        with _log(directory).open("wb") as log:
            process = await anyio.open_process(
                [*within, str(binary), "-dir", scratch], stderr=log, cwd=scratch, env=_environment(directory)
            )
        try:
            yield Tailnet(process, directory)
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)


async def _end(process: anyio.abc.Process) -> None:
    """Close its input, which ends it; kill it if it does not."""
    assert process.stdin is not None
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.stdin.aclose()
    with anyio.move_on_after(_STOP_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
    await process.aclose()


def tailnet_binary() -> Path:
    """Return the program; build it if this version of it is not in the cache, else skip or fail the test."""
    go = shutil.which("go")
    if go is None:
        skip_or_fail("`go` is missing: install Go to run a tailnet")
    environment = {**_environment(None), "GOTOOLCHAIN": "local", "GOWORK": "off"}
    version = subprocess.run(
        [go, "env", "GOVERSION"], env=environment, cwd="/", capture_output=True, text=True, check=True
    ).stdout.strip()
    digest = hashlib.sha256(f"{version} {_WITHOUT}".encode())
    for source in sorted(path for path in _SOURCES.iterdir() if path.suffix in {".go", ".mod", ".sum"}):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    home = _CACHE / digest.hexdigest()[:16]
    binary = home / "tailnet"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(go, home / "unfinished", environment)
            (home / "unfinished").rename(binary)
    return binary


def _build(go: str, output: Path, environment: dict[str, str]) -> None:
    # without its stamp the library cannot tell its version
    [stamp] = re.findall(r"tailscale\.com v(\S+)", (_SOURCES / "go.mod").read_text())
    flags = f"-s -w -X tailscale.com/version.shortStamp={stamp} -X tailscale.com/version.longStamp={stamp}"
    words = [go, "build", "-trimpath", "-buildvcs=false", "-tags", _WITHOUT, "-ldflags", flags]
    try:
        done = subprocess.run(
            [*words, "-o", str(output), "."],
            cwd=_SOURCES,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        skip_or_fail(f"the tailnet could not be built in {_BUILD_SECONDS} s")
    if done.returncode != 0:
        last = " ".join(done.stderr.split())[-500:]
        skip_or_fail(f"the tailnet could not be built (it needs Go modules from their proxy once): {last}")


def _environment(home: Path | None) -> dict[str, str]:
    """What is in ours, without what tailscale's code reads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept if home is None else {**kept, "HOME": str(home)}


def _log(directory: Path) -> Path:
    return directory / "log"
