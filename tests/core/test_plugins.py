"""Installed plugins: which are imported, which are refused, and what is said of the broken ones."""

import json
import logging
import sys
import threading
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from opencode_mcp import CONTRACT_VERSION, Endpoint, packages
from opencode_mcp.errors import PluginError
from opencode_mcp.plugins import InstalledTransport, Plugins, installed_transports, missing_transports
from support.command import Command, Outcome
from support.distributions import Site
from support.held import Held, held

DESCRIBE = """
    from contextlib import asynccontextmanager

    from opencode_mcp import Settings, Transport, TransportPlugin, hookimpl

    def open_it(settings):
        raise NotImplementedError

    def describe(name, **more):
        given = {"name": name, "summary": "…", "settings": Settings, "open": open_it}
        return TransportPlugin(**{**given, **more})

"""
"""The beginning of a plugin's module; the rest is indented alike."""
HOOK = f"{DESCRIBE}    @hookimpl\n    def opencode_mcp_transports(): "
"""The same up to what its hook does."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Site]:
    """A place to install distributions in, which this process looks into; what it imported is forgotten."""
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(site.path)
    yield site
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(site.path):
            del sys.modules[name]


@pytest.fixture
def command(tmp_path: Path, site: Site) -> Command:
    return Command(tmp_path)


def refused(name: str) -> str:
    """Return the one line that is said of a transport that cannot be loaded."""
    with pytest.raises(PluginError) as error:
        Plugins().load_transports([name])
    assert "\n" not in str(error.value)
    return str(error.value)


def row(name: str, *selected: str) -> InstalledTransport:
    (found,) = [one for one in installed_transports(selected) if one.name == name]
    return found


def test_a_transport_is_loaded_by_the_name_of_its_entry_point(site: Site):
    site.install_transport("semaphore")
    (plugin,) = Plugins().load_transports(["semaphore"])
    assert (plugin.name, plugin.summary, plugin.contract) == ("semaphore", "Finds nothing", CONTRACT_VERSION)
    assert plugin.package == "opencode-mcp-semaphore 1.0"


def test_a_transport_does_not_say_itself_who_brings_it(site: Site):
    source = f"{HOOK}return [describe('semaphore', package='opencode-mcp-mdns 1.0')]"
    site.install("dist", transports={"semaphore": "semaphore"}, modules={"semaphore": source})
    (plugin,) = Plugins().load_transports(["semaphore"])
    assert plugin.package == "dist 1.0"


def test_several_are_loaded_in_the_order_asked_for(site: Site):
    for name in ("a", "b", "c"):
        site.install_transport(name)
    assert [one.name for one in Plugins().load_transports(["c", "a", "b"])] == ["c", "a", "b"]


def test_what_is_not_selected_is_not_imported(site: Site, tmp_path: Path):
    site.install_transport("wanted", marker=tmp_path / "wanted.imported")
    site.install_transport("unwanted", marker=tmp_path / "unwanted.imported")
    Plugins().load_transports(["wanted"])
    assert (tmp_path / "wanted.imported").exists()
    assert not (tmp_path / "unwanted.imported").exists()


def test_an_unknown_transport_is_told_with_those_installed_and_how_to_get_it(site: Site):
    site.install_transport("semaphore")
    assert refused("mdsn") == (
        "TRANSPORT asks for 'mdsn', which is not installed. "
        "Installed: local-relay, mdns, semaphore, tailscale. "
        "Correct TRANSPORT, or install the package that brings it."
    )


BROKEN = {
    "fails on import": ("raise ValueError('no\\n  luck')", "ValueError: no luck. "),
    "exits on import": ("raise SystemExit(3)", "SystemExit: 3. "),
    "is no Python": ("def", "SyntaxError: invalid syntax"),
    "needs a module": ("import surely_missing", "ModuleNotFoundError: No module named 'surely_missing'"),
    "has no hook": ("", "its hook opencode_mcp_transports describes no 'semaphore'"),
    "forgot hookimpl": (
        f"{DESCRIBE}    def opencode_mcp_transports(): return [describe('semaphore')]",
        "its hook opencode_mcp_transports describes no 'semaphore'",
    ),
    "describes another": (
        f"{HOOK}return [describe('flag')]",
        "its hook opencode_mcp_transports describes no 'semaphore'",
    ),
    "hook raises": (
        f"{HOOK}raise KeyError('x')",
        "KeyError: 'x'",
    ),
    "hook exits": (
        f"{HOOK}raise SystemExit",
        "SystemExit. ",
    ),
    "returns nothing": (
        f"{HOOK}pass",
        "TypeError: 'NoneType' object is not iterable",
    ),
    "returns a number": (
        f"{HOOK}return 7",
        "TypeError: 'int' object is not iterable",
    ),
    "returns garbage": (
        f"{HOOK}return ['semaphore', None]",
        "its hook returned something else than TransportPlugin",
    ),
    "has no settings": (
        f"{HOOK}return [describe('semaphore', settings=0)]",
        "its settings are no subclass of opencode_mcp.Settings",
    ),
    "has other settings": (
        f"{HOOK}return [describe('semaphore', settings=int)]",
        "its settings are no subclass of opencode_mcp.Settings",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_transport_is_told_with_its_distribution_the_cause_and_the_mend(site: Site, how: str):
    source, reason = BROKEN[how]
    site.install(
        "opencode-mcp-semaphore",
        version="1.2.3",
        transports={"semaphore": "semaphore"},
        modules={"semaphore": source},
    )
    told = refused("semaphore")
    assert told.startswith(
        f"Plugin 'semaphore' (from opencode-mcp-semaphore 1.2.3, semaphore) is broken: {reason}"
    )
    assert "Install it afresh" in told
    assert told.endswith(f": {packages.reinstall('opencode-mcp-semaphore')}")
    assert row("semaphore").problem == told


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Generator[Held]:
    """Where a plugin hangs that says `held_up.here()`; it is given up soon if it said `held_up.soon()`."""
    module = ModuleType("held_up")
    monkeypatch.setitem(sys.modules, "held_up", module)
    with held() as one:
        vars(module).update(here=one, soon=lambda: monkeypatch.setattr(PATIENCE, 0.1))
        yield one
    for thread in threading.enumerate():
        if thread.name == "loads a plugin":
            thread.join(30)
            assert not thread.is_alive()


PATIENCE = "opencode_mcp.plugins._PATIENCE_SECONDS"


@pytest.mark.parametrize(
    ("patience", "source"),
    [
        (0.1, "import held_up\nheld_up.here()"),
        (30.0, f"{HOOK}held_up.here()\n    import held_up\n    held_up.soon()"),
    ],
    ids=["import", "hook"],
)
def test_a_transport_that_hangs_is_given_up_and_told_like_any_broken_one(
    site: Site, hook: Held, monkeypatch: pytest.MonkeyPatch, patience: float, source: str
):
    monkeypatch.setattr(PATIENCE, patience)
    site.install("dist", transports={"semaphore": "semaphore"}, modules={"semaphore": source})
    assert refused("semaphore") == (
        "Plugin 'semaphore' (from dist 1.0, semaphore) is broken: TimeoutError: it has not returned within "
        f"0.1 s. Install it afresh: {packages.reinstall('dist')}"
    )


def test_a_policy_that_hangs_on_import_is_left_out_and_the_others_are_in_force(
    site: Site, hook: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(
        "opencode_mcp.plugins._PATIENCE_SECONDS", 1.0
    )  # the good one has to be imported in it
    site.install("bad-dist", plugins={"bad": "bad"}, modules={"bad": "import held_up\nheld_up.here()"})
    site.install("dist", plugins={"policy": "policy"}, modules={"policy": ADMITS_NOBODY})
    plugins = Plugins()
    (problem,) = plugins.load_instance_hooks()
    assert hook.entered
    assert plugins.hook.opencode_mcp_instance_admit(endpoint=None) is False
    assert str(problem).startswith(
        "Plugin 'bad' (from bad-dist 1.0, bad) is broken: TimeoutError: it has not"
    )
    assert [one.getMessage() for one in caplog.records] == [
        f"{problem.told} Its hooks are not in force. {problem.mend}"
    ]


@pytest.mark.parametrize(
    "source",
    ["raise TimeoutError('no luck')", f"{HOOK}raise TimeoutError('no luck')"],
    ids=["import", "hook"],
)
def test_a_time_out_of_a_plugins_own_is_told_in_its_own_words(site: Site, source: str):
    site.install("dist", transports={"semaphore": "semaphore"}, modules={"semaphore": source})
    assert "is broken: TimeoutError: no luck. Install it afresh" in refused("semaphore")


def test_a_missing_dependency_is_named_and_a_missing_part_of_the_plugin_itself_is_not(site: Site):
    for name, missing in {"a": "a_dependency.deep", "b": "b.deep"}.items():
        site.install(f"dist-{name}", transports={name: name}, modules={name: f"import {missing}"})
    install = "Install it afresh, with the module 'a_dependency' that it needs: "
    assert refused("a").endswith(f"{install}{packages.reinstall('dist-a')}")
    assert refused("b").endswith(f"Install it afresh: {packages.reinstall('dist-b')}")


@pytest.mark.parametrize("value", ["nowhere", "semaphore:nothing", "semaphore:Hooks.nothing"])
def test_an_entry_point_that_leads_nowhere_is_a_broken_plugin(site: Site, value: str):
    site.install("dist", transports={"semaphore": value}, modules={"semaphore": "class Hooks: pass"})
    assert f"(from dist 1.0, {value}) is broken: " in refused("semaphore")


@pytest.mark.parametrize("value", ["None", "7", "[]", "{}", "object()", "type"])
def test_an_entry_point_that_is_no_plugin_is_a_broken_one(site: Site, value: str):
    site.install("dist", transports={"semaphore": "semaphore:it"}, modules={"semaphore": f"it = {value}"})
    assert "its hook opencode_mcp_transports describes no 'semaphore'" in refused("semaphore")


def test_a_plugin_may_be_an_object_even_one_that_cannot_be_hashed(site: Site):
    source = f"""{DESCRIBE}
    from dataclasses import dataclass

    @dataclass
    class Hooks:
        name: str

        @hookimpl
        def opencode_mcp_transports(self):
            return [describe(self.name)]

    hooks = Hooks("semaphore")
    """
    site.install("dist", transports={"semaphore": "semaphore:hooks"}, modules={"semaphore": source})
    assert [one.name for one in Plugins().load_transports(["semaphore"])] == ["semaphore"]


def test_a_transport_made_for_another_contract_is_told_with_both_versions_and_the_mend(site: Site):
    source = f"""{DESCRIBE}
    @hookimpl
    def opencode_mcp_transports():
        return [describe("semaphore", contract={CONTRACT_VERSION + 1}, settings="of another sort")]
    """
    site.install("dist", transports={"semaphore": "semaphore"}, modules={"semaphore": source})
    assert refused("semaphore") == (
        "Transport 'semaphore' (from dist 1.0, semaphore) was made for contract version "
        f"{CONTRACT_VERSION + 1}, this opencode-mcp has version {CONTRACT_VERSION}. "
        f"Update both: {packages.update('opencode-mcp-core', 'dist')}"
    )


def test_a_transport_is_described_by_its_own_plugin_only(site: Site):
    greedy = f"{HOOK}return [describe('flag'), describe('semaphore', summary='stolen'), describe('lamp')]"
    site.install("greedy", transports={"flag": "greedy"}, modules={"greedy": greedy})
    site.install_transport("semaphore")
    plugins = Plugins().load_transports(["flag", "semaphore"])
    assert [one.summary for one in plugins] == ["…", "Finds nothing"]
    site.install("empty", transports={"lamp": "empty"}, modules={"empty": ""})
    with pytest.raises(PluginError, match="describes no 'lamp'"):
        Plugins().load_transports(["flag", "lamp"])


def test_a_misspelt_hook_is_refused(site: Site):
    source = f"{DESCRIBE}    @hookimpl\n    def opencode_mcp_transprots(): return [describe('semaphore')]"
    site.install("dist", transports={"semaphore": "semaphore"}, modules={"semaphore": source})
    told = refused("semaphore")
    assert told.startswith("Plugin 'semaphore (from dist 1.0)' does not fit the hooks of opencode-mcp: ")
    assert "unknown hook 'opencode_mcp_transprots'" in told
    assert told.endswith(". Update the package that brings it, or uninstall it.")


def test_a_name_that_two_distributions_bring_is_refused_naming_both(site: Site):
    for distribution, module in {"dist-b": "first", "dist-a": "second"}.items():
        source = f"{HOOK}return [describe('semaphore')]"
        site.install(distribution, transports={"semaphore": module}, modules={module: source})
    told = refused("semaphore")
    assert "'semaphore', which dist-a and dist-b both bring. Uninstall all but one of them." in told
    rows = [one for one in installed_transports(["semaphore"]) if one.name == "semaphore"]
    assert {one.distribution for one in rows} == {"dist-a", "dist-b"}
    assert {one.problem for one in rows} == {told}


TWO_AND_A_POLICY = f"""{DESCRIBE}
    @hookimpl
    def opencode_mcp_transports():
        return [describe("flag"), describe("lamp")]

    @hookimpl
    def opencode_mcp_instance_admit(endpoint):
        return False
"""


def test_one_module_may_bring_several_transports_and_a_policy(site: Site, caplog: pytest.LogCaptureFixture):
    site.install(
        "dist",
        transports={"flag": "signals", "lamp": "signals"},
        plugins={"policy": "signals"},
        modules={"signals": TWO_AND_A_POLICY},
    )
    plugins = Plugins()
    assert [one.name for one in plugins.load_transports(["lamp", "flag"])] == ["lamp", "flag"]
    plugins.load_instance_hooks()
    assert plugins.hook.opencode_mcp_instance_admit(endpoint=None) is False
    assert caplog.text == ""


ADMITS_NOBODY = """
    from opencode_mcp import hookimpl

    @hookimpl
    def opencode_mcp_instance_admit(endpoint):
        return False
"""


@pytest.mark.parametrize("name", ["a-broken", "z-broken"])
def test_a_broken_policy_is_logged_and_left_out_and_the_others_are_in_force(
    site: Site, caplog: pytest.LogCaptureFixture, name: str
):
    site.install("dist", plugins={"policy": "policy"}, modules={"policy": ADMITS_NOBODY})
    site.install("bad-dist", plugins={name: "bad"}, modules={"bad": "import surely_missing"})
    plugins = Plugins()
    (problem,) = plugins.load_instance_hooks()
    assert plugins.hook.opencode_mcp_instance_admit(endpoint=None) is False
    (record,) = caplog.records
    assert record.getMessage() == f"{problem.told} Its hooks are not in force. {problem.mend}"
    assert record.levelno == logging.ERROR
    assert record.exc_info is None
    assert record.getMessage().startswith(
        f"Plugin '{name}' (from bad-dist 1.0, bad) is broken: ModuleNotFoundError: "
    )


def test_two_policies_of_one_name_are_both_in_force(site: Site, caplog: pytest.LogCaptureFixture):
    counts = """
    from opencode_mcp import hookimpl

    told = []

    @hookimpl
    def opencode_mcp_instance_changed(after):
        told.append(after)
    """
    for name in ("one", "two"):
        site.install(f"dist-{name}", plugins={"policy": name}, modules={name: counts})
    plugins = Plugins()
    plugins.load_instance_hooks()
    plugins.hook.opencode_mcp_instance_changed(before=None, after="x")
    assert [sys.modules[name].told for name in ("one", "two")] == [["x"], ["x"]]
    assert caplog.text == ""


def test_a_policy_that_fails_is_known_by_its_distribution(site: Site):
    site.install("dist", plugins={"policy": "policy"}, modules={"policy": ADMITS_NOBODY})
    plugins = Plugins()
    plugins.load_instance_hooks()
    (found,) = plugins.hook.opencode_mcp_instance_admit.get_hookimpls()
    assert found.plugin_name == "policy (from dist 1.0)"


def test_all_installed_are_listed_by_name_with_the_state_they_are_in(site: Site):
    site.install_transport("semaphore")
    site.install("dist-broken", version="0.9", transports={"a-broken": "nowhere"})
    rows = installed_transports(["semaphore", "missing"])
    assert [one.name for one in rows] == ["a-broken", "local-relay", "mdns", "semaphore", "tailscale"]
    assert row("semaphore", "semaphore") == InstalledTransport(
        name="semaphore",
        distribution="opencode-mcp-semaphore",
        version="1.0",
        selected=True,
        summary="Finds nothing",
    )
    broken = row("a-broken")
    assert (broken.distribution, broken.version, broken.selected) == ("dist-broken", "0.9", False)
    assert (broken.summary, "is broken: ModuleNotFoundError" in broken.problem) == ("", True)


def test_looking_at_a_transport_for_the_list_puts_no_policy_of_it_in_force(site: Site):
    site.install("dist", transports={"flag": "signals"}, modules={"signals": TWO_AND_A_POLICY})
    installed_transports([])
    plugins = Plugins()
    plugins.load_instance_hooks()
    endpoint = Endpoint(id="1", name="x", url="http://127.0.0.1")
    assert plugins.hook.opencode_mcp_instance_admit(endpoint=endpoint) is None


# The same as a person meets it.


def assert_refused(ended: Outcome, *parts: str) -> None:
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("opencode-mcp: ")
    assert ended.err.count("\n") == 1
    for part in parts:
        assert part in ended.err


@pytest.mark.slow
def test_the_command_refuses_an_unknown_transport_in_one_line(command: Command):
    ended = command("instances", TRANSPORT="mdsn")
    assert_refused(
        ended, "TRANSPORT asks for 'mdsn'", "Installed: local-relay, mdns, tailscale.", "Correct TRANSPORT"
    )


@pytest.mark.slow
def test_the_server_refuses_a_broken_transport_in_one_line(command: Command, site: Site):
    site.install("dist", transports={"semaphore": "bad"}, modules={"bad": "raise SystemExit('bye\\nbye')"})
    for arguments in ([], ["instances"]):
        ended = command(*arguments, TRANSPORT="local-relay,semaphore", PYTHONPATH=str(site.path))
        assert_refused(ended, "'semaphore' (from dist 1.0, bad) is broken: SystemExit: bye bye.")


@pytest.mark.slow
def test_the_command_tells_a_bad_variable_of_a_plugin_like_its_own(command: Command, site: Site):
    source = f"""{DESCRIBE}
    from opencode_mcp import variable

    class Speed(Settings):
        speed: int = variable("SEMAPHORE_SPEED", 5, takes="flags a minute", about="…")

    @hookimpl
    def opencode_mcp_transports():
        return [describe("semaphore", settings=Speed)]
    """
    site.install("dist", transports={"semaphore": "semaphore"}, modules={"semaphore": source})
    ended = command("instances", TRANSPORT="semaphore", SEMAPHORE_SPEED="fast", PYTHONPATH=str(site.path))
    assert_refused(ended, "SEMAPHORE_SPEED='fast' cannot be used: it takes flags a minute.")


@pytest.mark.slow
def test_a_broken_transport_that_is_not_selected_harms_nobody(command: Command, site: Site, tmp_path: Path):
    marker = tmp_path / "imported"
    source = f"open({str(marker)!r}, 'w').close()\nraise SystemExit(9)"
    site.install("dist", transports={"semaphore": "bad"}, modules={"bad": source})
    ended = command("instances", "--json", PYTHONPATH=str(site.path))
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["instances"] == []
    assert not marker.exists()


@pytest.mark.slow
def test_a_broken_policy_is_told_on_stderr_and_the_command_works(command: Command, site: Site):
    site.install("dist", plugins={"policy": "bad"}, modules={"bad": "1/0"})
    ended = command("instances", PYTHONPATH=str(site.path))
    assert ended.code == 0
    assert "Plugin 'policy' (from dist 1.0, bad) is broken: ZeroDivisionError" in ended.err
    assert "Its hooks are not in force." in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_transports_lists_the_good_and_the_broken_and_what_is_missing(command: Command, site: Site):
    site.install_transport("semaphore")
    site.install("dist", version="0.9", transports={"broken": "nowhere"})
    selected = "semaphore, missing,broken"
    ended = command("transports", TRANSPORT=selected, PYTHONPATH=str(site.path))
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0][:3] == ["transport", "selected", "package"]
    assert lines[1][:5] == ["broken", "yes", "dist", "0.9", "broken:"]
    assert lines[2][:3] == ["local-relay", "opencode-mcp-local-relay", version("opencode-mcp-local-relay")]
    assert lines[3][:3] == ["mdns", "opencode-mcp-mdns", version("opencode-mcp-mdns")]
    assert lines[4] == ["semaphore", "yes", "opencode-mcp-semaphore", "1.0", "Finds", "nothing"]
    assert lines[5][:3] == ["tailscale", "opencode-mcp-tailscale", version("opencode-mcp-tailscale")]
    installed = "broken, local-relay, mdns, semaphore, tailscale"
    mend = "Correct TRANSPORT, or install the package that brings it."
    assert ended.out.splitlines()[6:] == [
        f"TRANSPORT asks for 'missing', which is not installed. Installed: {installed}. {mend}"
    ]
    ended = command("transports", "--json", TRANSPORT=selected, PYTHONPATH=str(site.path))
    assert (ended.code, ended.err) == (0, "")
    rows = {one["name"]: one for one in json.loads(ended.out)}
    assert set(rows) == {"broken", "local-relay", "mdns", "missing", "semaphore", "tailscale"}
    assert (rows["missing"]["selected"], rows["missing"]["broken"]) == (True, True)
    assert rows["semaphore"] == {
        "name": "semaphore",
        "distribution": "opencode-mcp-semaphore",
        "version": "1.0",
        "selected": True,
        "summary": "Finds nothing",
        "problem": "",
        "broken": False,
    }
    assert rows["broken"]["broken"] is True
    assert "ModuleNotFoundError: No module named 'nowhere'" in rows["broken"]["problem"]
    assert rows["local-relay"]["selected"] is False


def test_a_selected_transport_that_is_not_installed_is_a_broken_row_of_its_own():
    (row,) = missing_transports(["local-relay", "nowhere"])
    assert (row.name, row.selected) == ("nowhere", True)
    assert row.problem == refused("nowhere")


def test_an_error_that_cannot_say_what_it_is_costs_that_plugin_only(
    site: Site, caplog: pytest.LogCaptureFixture
):
    silent = """
        class Silent(Exception):
            def __str__(self):
                raise ValueError("no words")

        raise Silent
        """
    site.install("dist", plugins={"silent": "silent"}, modules={"silent": silent})
    Plugins().load_instance_hooks()
    assert "Plugin 'silent' (from dist 1.0, silent) is broken: Silent: Silent" in caplog.text
