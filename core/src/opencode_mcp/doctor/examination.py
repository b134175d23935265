"""Examines each transport in a thread of its own, and gives up what does not return."""

import threading
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from opencode_mcp.doctor.environment import environment
from opencode_mcp.doctor.judge import Judge
from opencode_mcp.doctor.patience import Patience
from opencode_mcp.doctor.redact import Redactor
from opencode_mcp.doctor.report import Report, Setting, State, TransportReport, worst
from opencode_mcp.doctor.settings import listed
from opencode_mcp.doctor.transport import TransportExamination
from opencode_mcp.doctor.walk import Progress, Stopped, Walk
from opencode_mcp.fleet.policies import MEND, Policies
from opencode_mcp.plugins import PLUGINS_GROUP, Plugins
from opencode_mcp.settings import CoreSettings, Settings, read_settings, secret_variables

_AT_ONCE = 16
_LOOK_AGAIN_SECONDS = 0.1
_STEPS = ("settings", "hooks")


def examine(
    transports: Sequence[str] | None = None,
    *,
    patience: Patience | None = None,
    told: Callable[[str], None] | None = None,
) -> Report:
    """Walk the path of a request through each transport, to each endpoint, and write down what is found.

    It blocks, for a bounded time, whatever the code of plugins does.

    Args:
        transports: Which; None for those that `TRANSPORT` selects.
        patience: How long each step may take.
        told: Called now and then with what is going on, in a few words.

    Returns:
        The report, with secrets and the home directory taken out.
    """
    patience = patience or Patience()
    redact = Redactor()
    walk = Walk(_STEPS, Progress(), Judge("opencode-mcp-core", "opencode_mcp"))
    core: Sequence[Setting] = ()
    found: Sequence[TransportReport] = ()

    def declare(model: type[Settings]) -> None:
        redact.declare(secret_variables(model))

    declare(CoreSettings)
    try:
        with walk.step("settings"):
            core = listed(CoreSettings, None)
            settings = read_settings(CoreSettings)
            core = listed(CoreSettings, settings)
        with walk.step("hooks"):
            policies = _policies(walk, settings)
        names = list(dict.fromkeys(settings.transport if transports is None else transports))
        at_once = max(1, _AT_ONCE // max(1, len(names)))
        examinations = [
            TransportExamination(name, settings, policies, patience=patience, at_once=at_once, secret=declare)
            for name in names
        ]
        _run(examinations, told or (lambda _: None))
        for plugin, how in policies.failures:
            walk.also("hooks", f"Plugin {plugin}: its hook {how}.", state=State.FAILED, fix=MEND)
        found = [one.report() for one in examinations]
    except Stopped:
        pass
    steps = walk.steps()
    return redact(
        Report(
            state=worst([*(step.state for step in steps), *(one.state for one in found)]),
            environment=environment(),
            steps=steps,
            settings=core,
            transports=found,
        )
    )


def _policies(walk: Walk, settings: CoreSettings) -> Policies:
    plugins = Plugins()
    problems = plugins.load_instance_hooks()
    if problems:
        walk.end(
            " ".join(f"{error.told} Its hooks are not in force." for error in problems),
            state=State.FAILED,
            fix="A policy that is not in force lets everybody join: mend or uninstall what is named. "
            + "; ".join(dict.fromkeys(error.mend for error in problems)),
        )
    else:
        names = sorted(entry.name for entry in entry_points(group=PLUGINS_GROUP))
        walk.end(f"in force: {', '.join(names)}" if names else "no plugin has any")
    return Policies(plugins.hook, settings)


def _run(examinations: Sequence[TransportExamination], told: Callable[[str], None]) -> None:
    """Run all at the same time, until each has ended or shows no progress any more."""
    running = {
        one: threading.Thread(target=one.run, name=f"examines {one.name}", daemon=True)
        for one in examinations
    }
    for thread in running.values():
        thread.start()
    while running:
        for one, thread in list(running.items()):
            thread.join(_LOOK_AGAIN_SECONDS)
            if not thread.is_alive() or one.give_up_if_due():
                del running[one]
        told(", ".join(one.doing for one in running))
