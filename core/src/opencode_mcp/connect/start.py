"""From what the user wants to a running OpenCode that is being announced."""

import gc
import logging
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn
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
    is_loopback,
    listening_address,
    local_url,
    password_for,
)
from opencode_mcp.connect.leaving import Early, end_as
from opencode_mcp.connect.logs import start_logging
from opencode_mcp.connect.naming import instance_name
from opencode_mcp.connect.presence import Presence
from opencode_mcp.connect.selection import Selection, select
from opencode_mcp.connect.slots import Slot, claim, one_at_a_time
from opencode_mcp.connect.supervise import Plan, Supervisor
from opencode_mcp.connect.terminal import Terminal
from opencode_mcp.errors import StartError
from opencode_mcp.model import Endpoint
from opencode_mcp.settings import ConnectSettings, read_settings
from opencode_mcp.state.places import state_directory
from opencode_mcp.state.records import Record, running
from opencode_mcp.text import clean_line, printable
from opencode_mcp.transport import LOOPBACK

logger = logging.getLogger(__name__)


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
    selection = select(settings.transport)
    directory = _working_directory()
    state = state_directory()
    address = listening_address(selection.addresses)
    password, made_up = password_for(LOOPBACK if attach is not None else address, settings, state)
    with _place(state, settings, selection, directory, port, attach) as (slot, endpoint, url):
        facts = dict(selection.facts)
        if password is None and selection.reachable_by:
            facts["Password"] = (
                f"none, though it can be reached by {selection.reachable_by}; "
                "OPENCODE_SERVER_PASSWORD sets one, for the gateway too"
            )
        sys.stderr.write(banner(slot.name, url, facts, str(directory), slot.log, made_up))
        sys.stderr.flush()
        early = Early()
        interactive = attach is None and not headless
        _start_logging(slot.log, settings, on_stderr=not interactive)
        logger.info("%s at %s %s", slot.name, url, facts)
        child = None
        if attach is None:
            serve = ["serve"] if headless else []
            listen = ["--port", str(urlsplit(url).port), "--hostname", address]
            arguments = [*program, *serve, *listen, *passed_on]
            terminal = Terminal.if_any()
            environment = environment_for(password, selection.secrets)
            child = Child(arguments, environment, headless=headless, terminal=terminal)
        presence = Presence(
            url, username=settings.server_username, password=password, started_here=child is not None
        )
        plan = Plan(
            slot=slot,
            endpoint=endpoint,
            presence=presence,
            transports=selection.transports,
            places=selection.places,
            exposed=child is not None and not is_loopback(address),
            interactive=interactive,
        )
        slot.keep = slot.written
        supervisor = _supervised(plan, child, early)
        if not supervisor.left:
            slot.keep = None if supervisor.swept else slot.left
    for remark in [supervisor.problem] if supervisor.problem else supervisor.remarks:
        sys.stderr.write(f"opencode-connected: {remark} The log is {slot.log}\n")
    if child is None:
        told = supervisor.told
        raise SystemExit(1 if told is None else 0 if told == signal.SIGTERM else 128 + told)
    end_as(1 if supervisor.problem and not child.code else child.code or 0)


def _supervised(plan: Plan, child: Child | None, early: Early) -> Supervisor:
    async def run() -> Supervisor:
        gc.enable()
        gc.collect()  # what the imports left, so that its place is used again
        gc.freeze()
        supervisor = Supervisor(plan, child, early)
        await supervisor.run()
        return supervisor

    try:
        return anyio.run(run)
    except BaseException:
        if child is not None:
            child.kill_now()
        raise


@contextmanager
def _place(
    state: Path,
    settings: ConnectSettings,
    selection: Selection,
    directory: Path,
    port: int | None,
    attach: str | None,
) -> Generator[tuple[Slot, Endpoint, str]]:
    """Hold a name and a port until the block ends; yield the name, what is announced, where it answers."""
    with ExitStack() as stack:
        try:
            with one_at_a_time(state):
                slot = stack.enter_context(claim(state, instance_name(settings.instance_name, directory)))
                if attach is None:
                    address = listening_address(selection.addresses)
                    taken = {urlsplit(record.url).port or 0 for record in running(state)}
                    chosen = free_port(address, port, taken)
                    endpoint = _endpoint(slot, announced_url(address, chosen), printable(str(directory)))
                    url = local_url(address, chosen)
                else:
                    endpoint = _attached(slot, attach, selection)
                    url = endpoint.url
                slot.write(Record.of(endpoint, url=url, log=slot.log, places=selection.places))
        except OSError as error:
            raise StartError(f"The state directory {state} cannot be used: {error.strerror}.") from None
        yield slot, endpoint, url


def _attached(slot: Slot, url: str, selection: Selection) -> Endpoint:
    """Return the endpoint of a server that runs already; its project is its own to tell."""
    shown = clean_line(url, 100)
    try:
        endpoint = _endpoint(slot, url, "")
    except ValidationError as error:
        why = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        why = why.removeprefix("Value error, ")
        raise StartError(f"--attach {shown!r} cannot be used: it {why}.", 2) from None
    parts = urlsplit(endpoint.url)
    if parts.scheme != "http" or parts.path or parts.port is None:
        raise StartError(f"--attach {shown!r} cannot be used: it must look like http://host:port.", 2)
    if not is_loopback(parts.hostname or "") and all(map(is_loopback, selection.addresses)):
        raise StartError(
            f"--attach {shown!r} cannot be used: {', '.join(selection.needs)} announces servers of this "
            "machine, at http://127.0.0.1:<port>. Run opencode-connected on the machine of that server.",
            2,
        )
    return endpoint


def _endpoint(slot: Slot, url: str, directory: str) -> Endpoint:
    host = clean_line(socket.gethostname(), 255)
    return Endpoint(id=slot.id, name=slot.name, url=url, hostname=host, directory=directory)


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
