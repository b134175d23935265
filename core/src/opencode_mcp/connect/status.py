"""`opencode-connected status`: how the instances of this user on this machine stand, seen from outside."""

from itertools import chain
from pathlib import Path

import anyio
import anyio.to_thread

from opencode_mcp.connect.known import known_at
from opencode_mcp.connect.launch import known_password
from opencode_mcp.connect.report import endpoint_of, opened, sentence, show
from opencode_mcp.connect.slots import left_behind
from opencode_mcp.errors import OpenCodeMCPError
from opencode_mcp.model import Finding
from opencode_mcp.opencode.probe import Health, probe
from opencode_mcp.settings import ConnectSettings, read_settings
from opencode_mcp.state.places import state_directory
from opencode_mcp.state.records import Record, running

_LOOK_SECONDS = 30.0
_MARKS = {True: "ok", False: "FAILED", None: "?"}


def status() -> int:
    """Print how everything stands; return 0 if all of it is as it should be, else 1."""
    state = state_directory()
    settings = read_settings(ConnectSettings)
    records = running(state)
    found = anyio.run(_look_at_all, records, settings)
    for record in records:
        print(f"{record.name}  (process {record.pid}, since {record.started})")
        if record.directory:
            show(1, "project", "", record.directory)
        for finding in found[record.name]:
            show(1, finding.about, _MARKS[finding.ok], finding.detail)
        show(1, "log", "", record.log)
    left = [record.name for _, record in left_behind(state)]
    if not records:
        print("No instance of yours is announced from this machine.")
    if left:
        print(f"Something was left behind by {', '.join(left)}: opencode-connected cleanup")
    return int(not records or any(finding.ok is False for finding in chain(*found.values())))


async def _look_at_all(records: list[Record], settings: ConnectSettings) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {record.name: [] for record in records}
    async with anyio.create_task_group() as group:
        for record in records:
            group.start_soon(_look_at, record, settings, found[record.name])
    return found


async def _look_at(record: Record, settings: ConnectSettings, found: list[Finding]) -> None:
    found.append(await _ask(record, settings))
    for name, state in record.transports.items():
        found.append(Finding(about=name, ok=state == "announced", detail=state))
        try:
            with anyio.fail_after(_LOOK_SECONDS):
                async with opened(name, record.places.get(name, "")) as transport:
                    found.extend(await transport.inspect(endpoint_of(record)))
        except TimeoutError:
            found.append(Finding(about=name, ok=None, detail=f"no answer within {_LOOK_SECONDS:g} s"))
        except Exception as error:  # foreign code: the others are to be seen all the same
            found.append(Finding(about=name, ok=None, detail=f"cannot be looked at: {sentence(error)}"))


async def _ask(record: Record, settings: ConnectSettings) -> Finding:
    password = known_password(settings, Path(record.log).parent)
    seconds = settings.health_check_timeout_ms / 1000

    def ask() -> Health:
        known = known_at(record.url, password, record.owner)
        return probe(
            known.url,
            seconds=seconds,
            username=known.username or settings.server_username,
            password=known.password,
            pid=known.pid,
            version=known.version,
            users=known.users,
        )

    try:
        with anyio.fail_after(3 * seconds):  # each step of it may take `seconds`
            health = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)
    except OpenCodeMCPError as error:
        return Finding(about="opencode", ok=False, detail=str(error))
    except TimeoutError:
        return Finding(about="opencode", ok=False, detail=f"{record.url} does not answer in time")
    return Finding(about="opencode", ok=True, detail=f"{health.version} answers at {record.url}")
