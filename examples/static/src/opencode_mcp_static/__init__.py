"""The transport `static`: OpenCode servers that you list yourself, in a TOML file."""

import os
import tomllib
from contextlib import nullcontext
from pathlib import Path

from anyio.to_thread import run_sync
from pydantic import ValidationError

import opencode_mcp as core


class StaticSettings(core.Settings):
    """The environment variables of this transport."""

    file: Path = core.variable(
        "STATIC_FILE",
        Path("~/.config/opencode-mcp/instances.toml"),
        takes="the path of a TOML file; `~` stands for your home",
        about="Where your instances are listed. The default need not exist; another file must.",
    )


class Static(core.Transport):
    """Finds the instances that the file lists."""

    def __init__(self, settings: StaticSettings) -> None:
        self._file = settings.file
        self._must_exist = settings.file != StaticSettings.model_fields["file"].default
        self._rejected: list[core.Rejection] = []
        self.invitation = f'Add three lines to {self._file}: [[instance]], name = "x", url = "http://x:4096".'

    async def discover(self) -> list[core.Endpoint]:
        """Return all that is listed. Core asks every 30 seconds; if this raises, it keeps what it has."""
        items = await run_sync(self._read, abandon_on_cancel=True)  # in a thread: a disk may be slow
        found: dict[str, core.Endpoint] = {}
        self._rejected = []
        for number, item in enumerate(items, start=1):
            try:  # an item may set any field of Endpoint; these two it may leave out
                endpoint = core.Endpoint.model_validate({"id": str(item.get("name")), "vouched": True} | item)
                if found.setdefault(endpoint.id, endpoint) is endpoint:
                    continue
                problem = f"{endpoint.id!r} is listed above; give one of them another name, or an id"
            except ValidationError as error:
                problem = core.explain(error)
            self._rejected.append(core.Rejection(source=f"{self._file}, instance {number}", reason=problem))
        return list(found.values())

    def rejected(self) -> list[core.Rejection]:
        """Return what the last look left out, for the user to see."""
        return self._rejected

    def _read(self) -> list[dict[str, object]]:
        try:
            with self._file.expanduser().open("rb") as file:
                status = os.fstat(file.fileno())  # who can write the file decides where messages go
                if os.name == "posix" and (status.st_mode & 0o002 or status.st_uid not in (0, os.geteuid())):
                    raise PermissionError("others can write it; run chown and `chmod o-w` on it")
                content: dict[str, list[dict[str, object]]] = tomllib.load(file)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not self._must_exist:
                return []
            raise core.TransportError(f"{self._file} cannot be used: {error}") from error
        items = content.pop("instance", [])
        if content or type(items) is not list or any(type(item) is not dict for item in items):
            raise core.TransportError(f"{self._file} must hold tables called [[instance]], and nothing else.")
        return items


def _open(settings: StaticSettings) -> nullcontext[Static]:
    return nullcontext(Static(settings))


@core.hookimpl
def opencode_mcp_transports() -> list[core.TransportPlugin[StaticSettings]]:
    """Describe the transport. `name` is what TRANSPORT says, and the entry point in pyproject.toml."""
    about = "finds the OpenCode servers that you list in a TOML file"
    return [core.TransportPlugin(name="static", summary=about, settings=StaticSettings, open=_open)]
