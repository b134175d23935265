"""From what the user wants to a running OpenCode that is being announced."""

import gc
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import anyio
from pydantic import ValidationError

from opencode_mcp.connect.banner import banner
from opencode_mcp.connect.child import Child
from opencode_mcp.connect.launch import (
    announced_url,
    check_passed_on,
    environment_for,
    find_program,
    free_port,
    listening_address,
    local_url,
    password_for,
)
from opencode_mcp.connect.leaving import Early, end_as
from opencode_mcp.connect.logs import start_logging
from opencode_mcp.connect.naming import instance_name, shown_directory
from opencode_mcp.connect.places import state_directory
from opencode_mcp.connect.presence import Presence
from opencode_mcp.connect.records import Record, Slot, claim, one_at_a_time, running
from opencode_mcp.connect.supervise import Plan, Supervisor
from opencode_mcp.connect.terminal import Terminal
from opencode_mcp.errors import StartError
from opencode_mcp.model import Endpoint
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import ConnectSettings, CoreSettings, Settings, read_settings
from opencode_mcp.text import clean_line
from opencode_mcp.transport import LOOPBACK, Announcing, TransportPlugin

Selected = Sequence[tuple[TransportPlugin[Any], Settings]]


def start(*, headless: bool, attach: str | None, port: int | None, passed_on: Sequence[str]) -> NoReturn:
    """Start OpenCode, or find the one that runs; announce it until it ends; end as it ended.

    Args:
        headless: Start the server alone.
        attach: The URL of a server that runs already; then nothing is started.
        port: The port it is to listen on; None for any.
        passed_on: Arguments for OpenCode.

    Raises:
        OpenCodeMCPError: Something is wrong that the user can put right; nothing was started.
    """
    settings = read_settings(ConnectSettings)
    if attach is not None and (passed_on or port is not None):
        raise StartError("--attach starts nothing, so neither --port nor arguments after -- go with it.", 2)
    check_passed_on(passed_on)
    program = [] if attach is not None else find_program(settings)
    transports, needs = select(settings)
    directory = _working_directory()
    state = state_directory()
    early = Early()
    address = listening_address([need.listen for need in needs])
    password, made_up = password_for(LOOPBACK if attach is not None else address, settings, state)
    with _place(state, settings, directory, address, port, attach) as (slot, endpoint, url):
        facts = {name: value for need in needs for name, value in need.facts.items()}
        sys.stderr.write(banner(slot.name, url, facts, str(directory), slot.log, made_up))
        sys.stderr.flush()
        interactive = attach is None and not headless
        _start_logging(slot.log, settings, on_stderr=not interactive)
        child = None
        if attach is None:
            serve = ["serve"] if headless else []
            listen = ["--port", str(urlsplit(url).port), "--hostname", address]
            terminal = Terminal.if_any() if interactive else None
            arguments = [*program, *serve, *listen, *passed_on]
            child = Child(arguments, environment_for(password), headless=headless, terminal=terminal)
        plan = Plan(
            slot=slot,
            endpoint=endpoint,
            presence=Presence(url, username=settings.server_username, password=password),
            transports=transports,
            interactive=interactive,
        )
        supervisor = _supervised(plan, child, early)
        slot.left_nothing = supervisor.clean
    if supervisor.problem:
        sys.stderr.write(f"opencode-connected: {supervisor.problem} The log is {slot.log}\n")
    if child is None:
        told = supervisor.told
        raise SystemExit(1 if told is None else 0 if told == signal.SIGTERM else 128 + told)
    end_as(1 if supervisor.problem and not child.code else child.code or 0)


def select(settings: CoreSettings) -> tuple[Selected, Sequence[Announcing]]:
    """Return the selected transports with their settings, and what announcing on each of them takes.

    Raises:
        OpenCodeMCPError: One is missing, broken, misconfigured, or announces nothing.
    """
    transports = [
        (plugin, read_settings(plugin.settings)) for plugin in Plugins().load_transports(settings.transport)
    ]
    needs: list[Announcing] = []
    for plugin, own in transports:
        if plugin.announcing is None:
            raise StartError(
                f"Transport {plugin.name!r} finds instances, but announces none. Set TRANSPORT to another.",
                2,
            )
        needs.append(plugin.announcing(own))
    return transports, needs


def _supervised(plan: Plan, child: Child | None, early: Early) -> Supervisor:
    async def run() -> Supervisor:
        gc.enable()
        gc.collect()  # what the imports left, so that its place is used again
        gc.freeze()
        supervisor = Supervisor(plan, child, early)
        await supervisor.run()
        return supervisor

    return anyio.run(run)


@contextmanager
def _place(
    state: Path,
    settings: ConnectSettings,
    directory: Path,
    address: str,
    port: int | None,
    attach: str | None,
) -> Generator[tuple[Slot, Endpoint, str]]:
    """Hold a name and a port until the block ends; yield the name, what is announced, where it answers."""
    with ExitStack() as stack:
        with one_at_a_time(state):
            slot = stack.enter_context(claim(state, instance_name(settings.instance_name, directory)))
            if attach is None:
                taken = {urlsplit(record.url).port or 0 for record in running(state)}
                chosen = free_port(address, port, taken)
                announced, url = announced_url(address, chosen), local_url(address, chosen)
            else:
                announced = url = attach
            endpoint = _endpoint(slot, announced, directory)
            slot.write(Record.of(endpoint, url=endpoint.url if attach else url, log=slot.log))
        yield slot, endpoint, endpoint.url if attach else url


def _endpoint(slot: Slot, url: str, directory: Path) -> Endpoint:
    try:
        return Endpoint(
            id=slot.id,
            name=slot.name,
            url=url,
            hostname=clean_line(socket.gethostname(), 255),
            directory=shown_directory(directory),
        )
    except ValidationError as error:
        why = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        why = why.removeprefix("Value error, ")
        raise StartError(f"--attach {clean_line(url, 100)!r} cannot be used: it {why}.", 2) from None


def _start_logging(path: Path, settings: ConnectSettings, *, on_stderr: bool) -> None:
    try:
        start_logging(path, level=settings.log_level, on_stderr=on_stderr)
    except OSError as error:
        raise StartError(f"The log {path} cannot be written: {error.strerror}.") from None


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise StartError(
            f"The working directory cannot be used: {error.strerror}. Change to another."
        ) from None
