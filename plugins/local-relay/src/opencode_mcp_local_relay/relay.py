"""What is done on the relay, by a POSIX sh there that is taught `script.py`.

Every value reaches it quoted by `shlex.quote`, so that it is a value whatever it holds.
"""

import dataclasses
import hashlib
import shlex
from collections.abc import Sequence

from opencode_mcp import TransportError, clean_line
from opencode_mcp_local_relay.registration import SUFFIX, Registration, UnusableError, id_prefix, parse
from opencode_mcp_local_relay.script import SCRIPT
from opencode_mcp_local_relay.ssh import Shell

_REPLY_SECONDS = 20.0
_PROBE_SECONDS = 10
_LIST_LIMIT = 900
"""Files; a reply has at most 1000 lines."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A registration file that holds the id: where it is, its name, what it says if it can be read."""

    path: str
    name: str
    registration: Registration | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A file on the relay whose name is that of a registration.

    Attributes:
        name: The file's.
        fault: Empty if only we and root can have written it, `unknown` if that cannot be told; else who
            else can, `open` or `foreign <uid>`; or `special` if it is no regular file, `name` if its name
            has a line break, which is a blank here.
        content: The first 64 KiB and a byte, without line breaks; empty if it is not to be read.
    """

    name: str
    fault: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The registry directory on the relay.

    Attributes:
        files: Ordered by name, at most 900.
        trusted: Whether only we and root decide what it holds.
        more: Whether there are more files.
    """

    files: Sequence[Listed]
    trusted: bool
    more: bool


class Relay:
    """The registry directory on the relay."""

    def __init__(self, shell: Shell, directory: str, instance_id: str = "", *, trust_any_owner: bool) -> None:
        """Prepare to use a shell on the relay.

        Args:
            shell: Whose process has just been started.
            directory: An absolute path, or one below `~`.
            instance_id: Whose registrations are written, found and removed, if any are.
            trust_any_owner: Whether the directory may belong to, or be open to, others.
        """
        self._shell = shell
        self._shown = f"{clean_line(directory, 1000)} on the relay"
        self._instance_id = instance_id
        digest = hashlib.sha256(instance_id.encode(errors="surrogatepass")).hexdigest()[:16]
        prefix = id_prefix(instance_id)
        self._setup = (
            f"{SCRIPT}d={quoted_path(directory)}\nt=$d/.{digest}.tmp\n"
            f"prefix={shlex.quote(prefix)}\nsize={len(prefix)}\ntrust={'1' if trust_any_owner else ''}\n"
        )

    async def arrive(self, seconds: float) -> None:
        """Wait until the shell answers.

        Raises:
            EndedError: If ssh ends instead.
            TimeoutError: If it takes longer.
        """
        await self._shell.tell(self._setup)
        await self._shell.ask("end ok", seconds)

    async def put(self, name: str, content: str) -> bool:
        """Write a registration into the file `name`, in one step; False if that is not ours to write.

        Raises:
            TransportError: If it cannot be written, or the relay does not answer.
            EndedError: If ssh ends.
        """
        status, detail = await self._run(f"put {shlex.quote(name)} {shlex.quote(content)}")
        if status not in ("ok", "taken"):
            raise self._failure(status, detail)
        return status == "ok"

    async def drop(self, name: str, seconds: float) -> None:
        """Remove the file `name` if it is ours.

        Raises:
            TransportError: If it cannot be removed.
            EndedError: If ssh ends.
            TimeoutError: If it takes longer.
        """
        status, detail = _parted(await self._shell.ask(f"drop {shlex.quote(name)}", seconds))
        if status != "ok":
            raise self._failure(status, detail)

    async def find(self, *, remove: bool = False, keep: str = "") -> Sequence[Found]:
        """Find the registrations with our id but `keep`, whatever their names are; remove them if so wished.

        Raises:
            TransportError: If that is not possible, or the relay does not answer.
            EndedError: If ssh ends.
        """
        lines: list[str] = []
        command = f"find_ours {shlex.quote('1' if remove else '')} {shlex.quote(keep)}"
        status, detail = await self._run(command, lines)
        if status != "ok":
            raise self._failure(status, detail)
        return [
            Found(
                path=clean_line(path, 1000),
                name=path.rpartition("/")[2],
                registration=_parsed(path, content),
            )
            for path, content in zip(lines[::2], lines[1::2], strict=False)
        ]

    async def listing(self) -> Listing:
        """Read all registrations, whosever they are; a missing directory holds none.

        Raises:
            TransportError: If that is not possible, or the relay does not answer.
            EndedError: If ssh ends.
        """
        lines: list[str] = []
        status, detail = await self._run(f"list {_LIST_LIMIT}", lines)
        if status != "ok":
            raise self._failure(status, detail)
        parts = [line.split("/", 2) for line in lines]
        files = [Listed(fault=part[0], name=part[1], content=part[2]) for part in parts if len(part) == 3]
        trusted, _, more = detail.partition(" ")
        return Listing(files=files, trusted=trusted == "safe", more=bool(more))

    async def exposes(self, port: int) -> bool | None:
        """Whether `port` can be reached from other machines than the relay; None if that cannot be told.

        Raises:
            TransportError: If the relay does not answer.
            EndedError: If ssh ends.
        """
        status, _ = await self._run(f"exposed {port}")
        return {"open": True, "ok": False}.get(status)

    async def probe(self, port: int) -> bool | None:
        """Whether `port` of the relay leads to a web server; None if the relay has nothing to ask it with."""
        try:
            reply = await self._shell.ask(f"probe {port} {_PROBE_SECONDS} &", _REPLY_SECONDS)
        except TimeoutError:
            return False
        return {"answered": True, "failed": False}.get(reply[-1].removeprefix("= "))

    async def _run(self, command: str, lines: list[str] | None = None) -> tuple[str, str]:
        try:
            said = await self._shell.ask(command, _REPLY_SECONDS)
        except TimeoutError:
            raise TransportError(
                f"The relay has not answered for {_REPLY_SECONDS:.0f} s. Its connection is made anew; "
                "if that does not help, see whether the machine is well."
            ) from None
        if lines is not None:
            lines += said[:-1]
        return _parted(said)

    def _failure(self, status: str, detail: str) -> TransportError:
        about = f"The registry directory {self._shown}"
        other = "set RELAY_REGISTRY_DIR to a directory of your own there"
        trust = "; or set RELAY_TRUST_ANY_OWNER=1 if that is meant to be, as in a container."
        sentences = {
            "directory": f"{about} cannot be created: {detail}. Instead, {other}.",
            "write": f"{about} cannot be written: {detail}. Make room there, or {other}.",
            "remove": f"{about} holds a registration that cannot be removed: {detail}. Remove it by hand.",
            "none": f"{about} is not a directory. Remove it, or {other}.",
            "unreadable": f"{about} cannot be read. Run `chmod u+rx` on it, or {other}.",
            "open": f"{about} can be written by everybody, so that others could send your messages "
            f"elsewhere. Run `chmod o-w` on it there, or {other}{trust}",
            "foreign": f"{about} belongs to another user (uid {detail}), who could send your messages "
            f"elsewhere; {other}{trust}",
        }
        return TransportError(sentences.get(status, f"{about} cannot be used: the relay said {status}."))


def quoted_path(directory: str) -> str:
    """Write a path for a shell on another machine; `~` is the home there."""
    if directory == "~" or directory.startswith("~/"):
        return '"${HOME:?}"' + shlex.quote(directory[1:])
    return shlex.quote(directory)


def _parted(said: Sequence[str]) -> tuple[str, str]:
    """Take a reply's last line apart: the status and the detail."""
    status, _, detail = said[-1].removeprefix("= ").partition(" ")
    return status, clean_line(detail, 300)


def _parsed(path: str, content: str) -> Registration | None:
    stem = path.rpartition("/")[2].removesuffix(SUFFIX)
    try:
        return parse(content.encode(errors="replace"), stem)
    except UnusableError:
        return None
