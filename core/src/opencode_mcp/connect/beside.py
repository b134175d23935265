"""OpenCode 2.x in the terminal, and its background service announced beside it."""

import logging

from opencode_mcp.connect.child import Child
from opencode_mcp.connect.launch import environment_for, is_loopback
from opencode_mcp.connect.leadership import Leadership
from opencode_mcp.connect.naming import machine_name
from opencode_mcp.connect.place import Place
from opencode_mcp.connect.plan import Plan
from opencode_mcp.connect.service import ServicePresence, ensure_service, find_service
from opencode_mcp.connect.start import begin, how_it_went, supervised
from opencode_mcp.connect.terminal import Terminal
from opencode_mcp.connect.wish import Ended, Wish
from opencode_mcp.errors import StartError, UnreachableError

logger = logging.getLogger(__name__)


def start_beside_service(wish: Wish) -> Ended:
    """Announce the background service of this user for as long as OpenCode has the terminal.

    The service is started if it does not run, and left running. If it cannot be started, OpenCode has the
    terminal all the same, and may tell more; the service is announced once it is there.

    Raises:
        StartError: Something is wrong that the user can put right; OpenCode was not started.
    """
    _check(wish)
    selection = wish.selection
    environment = environment_for(None, selection.secrets)
    problem = ensure_service(wish.program, wish.version, environment)
    presence = ServicePresence(wish.version, username="opencode")
    with Leadership(wish.state, machine_name(wish.settings.instance_name), selection) as lead:
        facts = dict(selection.facts)
        name, url = _look(wish, lead, facts)
        early = begin(wish, name, url, facts, lead.log)
        if problem:
            logger.error("%s", problem)
        child = Child(
            [*wish.program, *wish.passed_on], environment, headless=False, terminal=Terminal.if_any()
        )

        def take_place() -> Place | None:
            return lead.take(presence.file, presence.url)

        plan = Plan(
            place=lead.place,
            take_place=take_place,
            presence=presence,
            transports=selection.transports,
            places=selection.places,
            log=lead.log,
            comes_and_goes=True,
            exposed=False,
            interactive=True,
        )
        supervisor = supervised(plan, child, early)
        if lead.place is not None and not supervisor.left:
            slot = lead.place.slot
            slot.keep = None if supervisor.swept else slot.left
    return how_it_went(supervisor, plan, child)


def _check(wish: Wish) -> None:
    if wish.port is not None:
        raise StartError(
            f"--port needs --headless: the terminal interface of OpenCode {wish.version} opens no port, it "
            "uses the background service, which is what is announced. For a server of its own at that port: "
            f"opencode-connected --headless --port {wish.port}",
            2,
        )
    wider = [name for name, need in wish.selection.needs.items() if not is_loopback(need.listen)]
    if wider:
        raise StartError(
            f"{', '.join(wider)} cannot announce the background service of OpenCode {wish.version}, which "
            "listens on this machine only. For a server of its own that the network reaches: "
            "opencode-connected --headless",
            2,
        )


def _look(wish: Wish, lead: Leadership, facts: dict[str, str]) -> tuple[str, str]:
    """Take the lead if that is possible; return the name and the URL for the banner, and add to its facts."""
    name = machine_name(wish.settings.instance_name)
    try:
        service = find_service(wish.version)
    except UnreachableError as error:
        facts["Service"] = f"not there yet, announced once it is: {error}"
        return name, ""
    try:
        place = lead.take(service.path.name, service.url)
    except OSError as error:
        raise StartError(f"The state directory {wish.state} cannot be used: {error.strerror}.") from None
    if place is None:
        facts["Service"] = "announced by another opencode-connected; by this one once that has ended"
    facts["Password"] = (
        f"the service's own, in {service.path}; a gateway on another machine needs it as "
        "OPENCODE_SERVER_PASSWORD"
    )
    return (name if place is None else place.slot.name), service.url
