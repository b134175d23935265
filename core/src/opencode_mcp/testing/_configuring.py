"""Standard tests of what a plugin says of itself, of its settings, and of what importing it takes."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import anyio

from opencode_mcp.errors import OpenCodeMCPError, SettingsError
from opencode_mcp.settings import ConnectSettings, documented, secret_variables
from opencode_mcp.testing._claims import Claims
from opencode_mcp.testing._trial import Trial, describe, fail, require
from opencode_mcp.testing._under_test import environment_for_children
from opencode_mcp.transport import Announcer

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_SENTENCES = re.compile(r"[A-Z0-9`].*[.]", re.DOTALL)
_WRONG = ("-1", "neither a number nor a path", ",", "\x1b[31m", "~nobody-of-this-name/x", "'", "9" * 400)
"""Values of which most settings refuse some."""
_MOST_IMPORT_MS = 150
_TRIES = 6
_PROCESS_SECONDS = 60.0
_IMPORT = """
import sys, time, json
import opencode_mcp
from importlib.metadata import entry_points
[entry] = entry_points(group="opencode_mcp.transports", name=sys.argv[1])
known, began = set(sys.modules), time.process_time()
entry.load()
took = time.process_time() - began
packages = {one.partition(".")[0] for one in set(sys.modules) - known}
print()
print(json.dumps([1000 * took, sorted(packages)]))
"""


class ConfiguringTests(Claims):
    """The part of `TransportSuite` about a plugin's description, settings and import."""

    async def test_the_plugin_describes_itself(self, trial: Trial) -> None:
        """Its summary stands in `opencode-mcp transports`; what it can do is what the tests claim."""
        summary = trial.plugin.summary
        require(
            summary.strip() and summary.isprintable() and len(summary) <= 200,
            f"Its summary is {summary!r}: make it one line of up to 200 characters that says what it is for.",
        )
        async with trial.opened() as transport:
            able = isinstance(transport, Announcer)
        require(
            able == self.announces,
            "It has a method `announce`, which is not tested: let `announces` of the suite return True."
            if able
            else "`announces` of the suite is True, but the transport has no method `announce`.",
        )
        require(
            (trial.plugin.announcing is not None) == able,
            "It announces, but its TransportPlugin has no `announcing`: core asks it where OpenCode has to "
            "listen and what to tell people."
            if able
            else "Its TransportPlugin has `announcing`, but the transport has no method `announce`.",
        )

    async def test_every_setting_is_documented(self, trial: Trial) -> None:
        """Each has its variable, what it takes and what it is about: all tables are made of that."""
        for name, field in trial.plugin.settings.model_fields.items():
            told = documented(field)
            extra = field.json_schema_extra
            takes = str(
                cast("Mapping[str, object]", extra).get("takes", "") if isinstance(extra, dict) else ""
            )
            require(
                told.variable and takes,
                f"The setting `{name}` is not made with `opencode_mcp.variable`: nobody is told of it. Write "
                f'{name}: ... = variable("...", default, takes="...", about="...").',
            )
            require(
                _VARIABLE.fullmatch(told.variable),
                f"The variable {told.variable!r} of the setting `{name}` is none that every shell can set: "
                "use capital letters, digits and `_`.",
            )
            require(
                _SENTENCES.fullmatch(told.about.strip()),
                f"{told.variable} has about={told.about!r}: say in one or two sentences what it does.",
            )
            require(
                takes.strip() and not takes.strip().endswith("."),
                f"{told.variable} has takes={takes!r}: finish the sentence “it takes …” without full stop.",
            )
        own = {documented(field).variable for field in trial.plugin.settings.model_fields.values()}
        core = {documented(field).variable for field in ConnectSettings.model_fields.values()}
        require(
            not own & core,
            f"Core has {', '.join(sorted(own & core))} already: choose another name, such as one that "
            "begins with the transport's.",
        )

    async def test_settings_are_read_from_the_environment(self, trial: Trial) -> None:
        """What the environment says is what the settings are; what it does not say has its default."""
        model = trial.plugin.settings
        given = {**trial.under_test.environment, **trial.under_test.announcing}
        names = {documented(field).variable: name for name, field in model.model_fields.items()}
        try:
            settings = await trial.under_test.read_settings(**given)
        except SettingsError as error:
            fail(f"The environment of the fixture `transport` cannot be used: {error}")
        unread = [one for one in given if one in names and names[one] not in settings.model_fields_set]
        require(not unread, f"{', '.join(unread)} is set in the environment, but not read from it.")
        for variable, name in names.items():
            if variable in given or not variable:
                continue
            default = documented(model.model_fields[name]).default
            if not default or variable in secret_variables(model):
                continue
            try:
                read = await trial.under_test.read_settings(**{variable: default})
            except SettingsError as error:
                fail(
                    f"The documentation says that the default of {variable} is {default!r}, but setting it "
                    f"to that is refused: {error}"
                )
            require(
                name in read.model_fields_set and getattr(read, name) == getattr(settings, name),
                f"{variable} was set to its default, {default!r}, and is read as {getattr(read, name)!r}. "
                "Let what a variable is set to and its default mean the same.",
            )

    async def test_a_wrong_value_is_refused_by_the_name_of_its_variable(self, trial: Trial) -> None:
        """What cannot be used is a SettingsError that names the variable, before anything is opened."""
        for variable in filter(None, _variables(trial)):
            for value in _WRONG:
                given = {variable: value}
                try:
                    await trial.under_test.read_settings(**given)
                except SettingsError as error:
                    require(
                        variable in str(error),
                        f"{variable}={value!r} is refused with a message that does not name the variable: "
                        f"{error} Let a validator of the settings raise ValueError, and nothing else.",
                    )
                    continue
                try:
                    async with trial.opened(**given):
                        pass
                except OpenCodeMCPError:
                    continue
                except Exception as error:
                    fail(
                        f"{variable}={value!r} is taken by the settings, and then opening the transport "
                        f"raises {describe(error)} Let a type or a validator of the settings refuse it, so "
                        "that people are told which variable to mend."
                    )

    async def test_importing_it_takes_under_150_ms(self, trial: Trial) -> None:
        """Everything waits for it: `opencode-mcp`, and `opencode-connected` before OpenCode starts."""
        _ = trial.plugin
        best = await _imported(trial.under_test.name)
        for _ in range(_TRIES):
            if best.ms < _MOST_IMPORT_MS:
                return
            best = min(best, await _imported(trial.under_test.name))
        fail(
            f"Importing it takes {best.ms:.0f} ms of CPU after `import opencode_mcp`; {_MOST_IMPORT_MS} ms "
            f"is the most. It imports {', '.join(best.packages[:20])}. Import what is heavy in the function "
            "that needs it; `python -X importtime -c 'import ...'` tells what is."
        )


def _variables(trial: Trial) -> list[str]:
    return [documented(field).variable for field in trial.plugin.settings.model_fields.values()]


class _Import(NamedTuple):
    """What importing a transport took, in CPU time, and the packages that came with it."""

    ms: float
    packages: Sequence[str]


async def _imported(name: str) -> _Import:
    """Import a transport in a fresh process, after `opencode_mcp`."""
    with anyio.fail_after(_PROCESS_SECONDS):
        process = await anyio.run_process(
            [sys.executable, "-c", _IMPORT, name], env=environment_for_children(), check=False
        )
    if process.returncode:
        fail(f"Importing it in a process of its own fails: {process.stderr.decode(errors='replace')[-2000:]}")
    took, packages = json.loads(process.stdout.splitlines()[-1])
    return _Import(took, packages)
