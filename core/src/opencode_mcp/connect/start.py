"""From what the user wants to a running OpenCode that is being announced."""

import gc
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import anyio

from opencode_mcp.connect.banner import banner
from opencode_mcp.connect.child import Child
from opencode_mcp.connect.generation import Versions
from opencode_mcp.connect.launch import (
    check_passed_on,
    environment_for,
    find_program,
    is_loopback,
    listening_address,
    password_for,
)
from opencode_mcp.connect.leaving import Early, end_as
from opencode_mcp.connect.logs import start_logging
from opencode_mcp.connect.naming import instance_name
from opencode_mcp.connect.place import Place, held_place
from opencode_mcp.connect.plan import Plan
from opencode_mcp.connect.presence import Presence
from opencode_mcp.connect.selection import select
from opencode_mcp.connect.supervise import Supervisor
from opencode_mcp.connect.terminal import Terminal
from opencode_mcp.connect.wish import Ended, Wish
from opencode_mcp.errors import StartError
from opencode_mcp.settings import ConnectSettings, read_settings
from opencode_mcp.state.places import state_directory
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
    versions = Versions(state, program) if program else None
    version = versions.find(environment_for(None, selection.secrets)) if versions is not None else ""
    wish = Wish(
        settings=settings,
        selection=selection,
        state=state,
        directory=directory,
        program=program,
        version=version,
        headless=headless,
        attach=attach,
        port=port,
        passed_on=passed_on,
    )
    if wish.second and wish.interactive:
        from opencode_mcp.connect.beside import start_beside_service  # only with OpenCode 2.x

        ended = start_beside_service(wish)
    else:
        ended = _start(wish)
    if versions is not None and not (
        ended.said == version or (ended.said and wish.interactive and wish.second)
    ):
        versions.forget()
    for remark in ended.remarks:
        sys.stderr.write(f"opencode-connected: {remark} The log is {ended.log}\n")
    if ended.child is None:
        told = ended.told
        raise SystemExit(1 if told is None else 0 if told == signal.SIGTERM else 128 + told)
    end_as(1 if ended.problem and not ended.child.code else ended.child.code or 0)


def _start(wish: Wish) -> Ended:
    settings, selection, attached = wish.settings, wish.selection, wish.attach is not None
    address = listening_address(selection.addresses)
    password, made_up = password_for(
        LOOPBACK if attached else address, settings, wish.state, always=wish.second
    )
    name = instance_name(settings.instance_name, wish.directory)
    with held_place(wish.state, name, selection, wish.directory, wish.port, wish.attach) as place:
        facts = dict(selection.facts)
        if password is None and selection.reachable_by:
            facts["Password"] = (
                f"none, though it can be reached by {selection.reachable_by}; "
                "OPENCODE_SERVER_PASSWORD sets one, for the gateway too"
            )
        slot = place.slot
        early = begin(wish, slot.name, place.url, facts, slot.log, made_up)
        child, presence = _started(wish, place, address, password)
        plan = Plan(
            place=place,
            presence=presence,
            transports=selection.transports,
            places=selection.places,
            log=slot.log,
            comes_and_goes=child is None,
            exposed=child is not None and not is_loopback(address),
            interactive=wish.interactive,
        )
        slot.keep = slot.written
        supervisor = supervised(plan, child, early)
        if not supervisor.left:
            slot.keep = None if supervisor.swept else slot.left
    return how_it_went(supervisor, plan, child)


def _started(wish: Wish, place: Place, address: str, password: str | None) -> tuple[Child | None, Presence]:
    """Start OpenCode, if it does not run already; return it, and what tells whether it answers."""
    username = wish.settings.server_username
    if wish.attach is not None:
        return None, Presence(place.url, username=username, password=password, started_here=False)
    serve = ["serve", *(["--stdio"] if wish.second else [])] if wish.headless else []
    listen = ["--port", str(urlsplit(place.url).port), "--hostname", address]
    child = Child(
        [*wish.program, *serve, *listen, *wish.passed_on],
        environment_for(password, wish.selection.secrets, second=wish.second),
        headless=wish.headless,
        talks=wish.second,
        terminal=Terminal.if_any(),
    )
    if child.output is None:
        return child, Presence(place.url, username=username, password=password, started_here=True)
    from opencode_mcp.connect.stdio import ServePresence  # only with OpenCode 2.x

    # The name is the one that it takes: it knows of no variable for another.
    told = ServePresence(place.url, child.output, address, username="opencode", password=password)
    return child, told


def begin(
    wish: Wish, name: str, url: str, facts: Mapping[str, str], log: Path, made_up: Path | None = None
) -> Early:
    """Tell a person what begins, open the log, and hold the signals from now on.

    Raises:
        StartError: The log cannot be written.
    """
    sys.stderr.write(banner(name, url, facts, str(wish.directory), log, made_up))
    sys.stderr.flush()
    early = Early()
    try:
        start_logging(log, level=wish.settings.log_level, on_stderr=not wish.interactive)
    except OSError as error:
        raise StartError(f"The log {log} cannot be written: {error.strerror}.") from None
    logger.info("%s at %s %s", name, url, facts)
    if wish.program and not wish.version:
        logger.warning("%s does not say its version: it is taken for OpenCode 1.x.", wish.program[0])
    return early


def how_it_went(supervisor: Supervisor, plan: Plan, child: Child | None) -> Ended:
    """Put together what is to be told at the end."""
    problem = supervisor.problem
    return Ended(
        child=child,
        said=plan.presence.version,
        told=supervisor.told,
        problem=problem,
        remarks=[problem] if problem else supervisor.remarks,
        log=plan.log,
    )


def supervised(plan: Plan, child: Child | None, early: Early) -> Supervisor:
    """Stay until it is over."""

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


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise StartError(
            f"The working directory cannot be used: {error.strerror}. Change to another."
        ) from None
