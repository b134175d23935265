"""The doctor on the way through a transport: what is broken is told at its step, and hangs nobody."""

import dataclasses
import logging
from collections.abc import Generator
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from core.doctor_parts import (
    QUICK,
    broken,
    examined,
    install_listed,
    listed,
    only_endpoint,
    only_transport,
    prepared_site,
    states,
)
from opencode_mcp import packages, plugins
from opencode_mcp.doctor import State, examine
from opencode_mcp.testing import FakeOpenCode
from support.distributions import Site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATH = ["installed", "imported", "contract", "settings", "opened", "found"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Site]:
    yield from prepared_site(tmp_path, monkeypatch)


def passed(name: str) -> dict[str, str]:
    """The states of a path that breaks at `name`."""
    at = PATH.index(name)
    after = dict.fromkeys(PATH[at + 1 :], "skipped")
    return {**dict.fromkeys(PATH[:at], "ok"), name: "failed", **after}


async def test_one_that_works_passes_every_step(site: Site, monkeypatch: pytest.MonkeyPatch):
    install_listed(site)
    async with FakeOpenCode().serve() as fake, FakeOpenCode().serve() as other:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, other))
        report = await examined()
    one = only_transport(report)
    assert states(one.steps) == dict.fromkeys(PATH, "ok")
    assert (one.name, one.distribution, one.version, one.state) == ("listed", "dist-listed", "1.0", State.OK)
    assert [step.detail for step in one.steps][:3] == [
        "dist-listed 1.0, entry point listed",
        "",
        "version 1",
    ]
    assert one.steps[-1].detail == "2 endpoints"
    assert [endpoint.name for endpoint in one.endpoints] == ["one", "two"]
    assert report.state is State.OK
    assert report.environment.packages["dist-listed"] == "1.0"


# From the package to the settings.


async def test_one_that_is_missing_is_told_with_those_installed_and_how_to_get_it(site: Site):
    one = only_transport(await examined("lisetd"))
    assert states(one.steps) == passed("installed")
    assert "'lisetd', which is not installed. Installed: local-relay, mdns, tailscale" in one.steps[0].detail
    assert one.steps[0].fix == "Correct TRANSPORT, or install the package that brings it."
    assert (one.distribution, one.version) == ("?", "?")


async def test_a_name_that_two_packages_bring_is_told_with_both(site: Site):
    install_listed(site)
    site.install("dist-other", transports={"listed": "listed"})
    one = only_transport(await examined())
    assert states(one.steps) == passed("installed")
    assert "dist-listed and dist-other both bring" in one.steps[0].detail
    assert "Uninstall all but one" in one.steps[0].fix


@pytest.mark.parametrize(
    ("source", "detail", "fix"),
    [
        ("raise ValueError('no luck')", "ValueError: no luck", "Install it afresh: "),
        (
            "import surely_missing.deep",
            "ModuleNotFoundError",
            "with the module 'surely_missing' that it needs: ",
        ),
        ("def", "SyntaxError", "Install it afresh: "),
        ("raise SystemExit(3)", "SystemExit: 3", "Install it afresh: "),
        ("import time\ntime.sleep(5)", "has not returned within 0.3 s", "Install it afresh: "),
    ],
)
async def test_one_that_cannot_be_imported_is_told_with_its_package_and_the_mend(
    site: Site, monkeypatch: pytest.MonkeyPatch, source: str, detail: str, fix: str
):
    monkeypatch.setattr(plugins, "_PATIENCE_SECONDS", 0.3)
    site.install("dist-bad", version="1.2.3", transports={"bad": "bad"}, modules={"bad": source})
    one = only_transport(await examined("bad"))
    assert states(one.steps) == passed("imported")
    step = broken(one.steps)
    assert "'bad' (from dist-bad 1.2.3, bad)" in step.detail
    assert detail in step.detail
    assert fix in step.fix
    assert step.fix.endswith(f": {packages.reinstall('dist-bad')}")


@pytest.mark.parametrize(
    ("given", "detail", "fix"),
    [
        ("'contract': 2", "contract version 2, this opencode-mcp has version 1", "Update both: "),
        ("'settings': int", "its settings are no subclass of opencode_mcp.Settings", "Install it afresh: "),
        ("'name': 'other'", "describes no 'listed'", "Install it afresh: "),
    ],
)
async def test_one_that_does_not_fit_breaks_at_the_contract(site: Site, given: str, detail: str, fix: str):
    install_listed(site, given=given)
    one = only_transport(await examined())
    assert states(one.steps) == passed("contract")
    assert detail in broken(one.steps).detail
    assert fix in broken(one.steps).fix


async def test_a_bad_setting_is_told_with_what_it_takes_and_how_to_do_without(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    install_listed(site)
    monkeypatch.setenv("LISTED_MANY", "several")
    monkeypatch.setenv("LISTED_TOKEN", "hunter2")  # too short
    one = only_transport(await examined())
    assert states(one.steps) == passed("settings")
    step = broken(one.steps)
    assert "LISTED_MANY='several' cannot be used: it takes a whole number." in step.detail
    assert "LISTED_TOKEN cannot be used" in step.detail
    assert step.fix.endswith("unset LISTED_MANY LISTED_TOKEN")
    assert "hunter2" not in str(one)
    assert {row.variable: row.value for row in one.settings}["LISTED_MANY"] == "several"


async def test_settings_are_listed_with_what_is_in_force_and_secrets_only_as_set(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    install_listed(site)
    monkeypatch.setenv("LISTED_MANY", "7")
    monkeypatch.setenv("LISTED_TOKEN", "long enough")
    one = only_transport(await examined())
    rows = [(row.variable, row.value, row.given, row.secret) for row in one.settings]
    assert rows == [
        ("LISTED_ENDPOINTS", "[]", False, False),
        ("LISTED_MANY", "7", True, False),
        ("LISTED_TOKEN", "set", True, True),
        ("LISTED_PASSWORD", "not set", False, True),
    ]


# Opening and looking.

STRAY = "raise anyio.get_cancelled_exc_class()"
"""What is let out by code that waits for a task which it has cancelled."""


@pytest.mark.parametrize(
    ("opened", "detail"),
    [
        ("raise TransportError('No lamp. Buy one.')\n    yield", "No lamp."),
        ("raise KeyError('hunter2')\n    yield", "Its code failed with KeyError in site/listed.py:"),
        ("await anyio.sleep_forever()\n    yield", "It has not opened within 1 s."),
        ("yield 7", "It is no opencode_mcp.Transport."),
        (f"{STRAY}\n    yield", "Its code let out a cancellation that nobody asked for, in site/listed.py:"),
    ],
)
async def test_one_that_cannot_be_opened_is_told_at_that_step(site: Site, opened: str, detail: str):
    more = f"@asynccontextmanager\nasync def badly_opened(settings):\n    {opened}\n\nopened = badly_opened"
    install_listed(site, more=more)
    one = only_transport(await examined())
    assert states(one.steps) == passed("opened")
    assert detail in broken(one.steps).detail
    assert broken(one.steps).fix
    assert "hunter2" not in str(one)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("async def discover(self): raise TransportError('No flags. Raise one.')", "No flags."),
        ("async def discover(self): raise KeyError('hunter2')", "failed with KeyError in site/listed.py:"),
        ("async def discover(self): raise SystemExit(3)", "Its code failed with SystemExit in"),
        ("async def discover(self): return None", "Its code failed with TypeError in"),
        ("async def discover(self): await anyio.sleep_forever()", "has not said what it finds within 1 s"),
        ("async def watch(self, publish): await anyio.sleep_forever()", "has not said what it finds within"),
        ("async def watch(self, publish): pass", "Its watch ended without an error."),
        ("async def discover(self): " + STRAY, "a cancellation that nobody asked for, in site/listed.py:"),
        ("async def watch(self, publish): publish([]); raise TransportError('Gone. Come.')", "Gone."),
    ],
)
async def test_one_that_cannot_look_is_told_at_that_step(site: Site, body: str, detail: str):
    install_listed(site, body)
    one = only_transport(await examined())
    assert states(one.steps) == passed("found")
    assert detail in broken(one.steps).detail
    assert broken(one.steps).fix
    assert "hunter2" not in str(one)


async def test_one_that_finds_nothing_warns_with_its_invitation(site: Site):
    install_listed(site)
    report = await examined()
    step = broken(only_transport(report).steps, State.WARNING)
    assert (step.name, step.fix) == ("found", "Put one on the list.")
    assert step.detail.startswith("Nothing, in 0.")
    assert report.state is State.WARNING


async def test_what_it_left_out_is_told_with_reasons(site: Site):
    install_listed(
        site, "def rejected(self): return [Rejection(source='/a\\x1b[2J', reason='It is\\nno lamp.')]"
    )
    one = only_transport(await examined())
    assert [(left.source, left.reason) for left in one.rejected] == [("/a", "It is no lamp.")]
    assert [(step.state, step.detail) for step in one.steps if step.name == "left out"] == [
        (State.WARNING, "1 of what it came across")
    ]


async def test_one_that_cannot_say_what_it_left_out_is_broken_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    install_listed(site, "def rejected(self): raise KeyError('hunter2')")
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        report = await examined()
    assert broken(only_transport(report).steps).name == "left out"
    assert only_endpoint(report).state is State.OK


@pytest.mark.parametrize(
    ("found", "flaw", "count"),
    [
        ("[one, one]", "several endpoints with the same id", 1),
        ("[one, one.model_copy(update={'id': 'two'})]", "addresses twice (http://127.0.0.1:9)", 2),
        ("[one, 'garbage', None]", "something else than sound endpoints", 1),
        ("[one, one.model_copy(update={'id': 'x\\x1b[2J'})]", "something else than sound endpoints", 1),
        ("[one, Endpoint.model_construct(id='two', url='\\x1b[2J')]", "else than sound endpoints", 1),
    ],
)
async def test_what_does_not_count_of_a_publication_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, found: str, flaw: str, count: int
):
    install_listed(site, f"async def discover(self):\n    [one] = await self.listed()\n    return {found}")
    monkeypatch.setenv("LISTED_ENDPOINTS", listed("http://127.0.0.1:9"))
    one = only_transport(await examined())
    assert [flaw in step.detail for step in one.steps if step.name == "flaws"] == [True]
    assert len(one.endpoints) == count


async def test_one_that_publishes_a_million_is_cut_off(site: Site):
    body = """
async def discover(self):
    one = Endpoint(id="one", name="one", url="http://127.0.0.1:9")
    return [one] * 1_000_000
"""
    install_listed(site, body)
    one = only_transport(await examined())
    assert "only the first 5000 count" in next(step.detail for step in one.steps if step.name == "flaws")
    assert len(one.endpoints) == 1


async def test_one_that_watches_by_itself_is_given_time_until_nothing_changes(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    body = """
async def watch(self, publish):
    found = await self.discover()
    publish([])
    await anyio.sleep(0.01)
    publish(found[:1])
    await anyio.sleep(0.01)
    publish(found)
    await anyio.sleep_forever()
"""
    install_listed(site, body)
    async with FakeOpenCode().serve() as fake, FakeOpenCode().serve() as other:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, other))
        report = await examined()
    assert [one.name for one in report.endpoints] == ["one", "two"]
    assert report.state is State.OK


async def test_a_watch_that_ends_while_endpoints_are_examined_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    body = """
async def watch(self, publish):
    self.asked, self.over = anyio.Event(), anyio.Event()
    publish(await self.discover())
    await self.asked.wait()
    self.over.set()
    raise TransportError("The line went dead. Dial again.")

@asynccontextmanager
async def connect(self, endpoint):
    self.asked.set()
    await self.over.wait()
    yield Route(base_url=endpoint.url)
"""
    install_listed(site, body)
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        report = await examined()
    step = broken(only_transport(report).steps)
    assert (step.name, step.detail, step.fix) == ("watching", "The line went dead.", "Dial again.")
    assert only_endpoint(report).state is State.OK


@pytest.mark.parametrize(
    ("closing", "detail"),
    [
        ("await anyio.sleep_forever()", "It has not closed within 1 s."),
        ("raise KeyError('hunter2')", "Its code failed with KeyError in site/listed.py:"),
    ],
)
async def test_one_that_does_not_close_is_a_warning(
    site: Site, monkeypatch: pytest.MonkeyPatch, closing: str, detail: str
):
    more = f"""
@asynccontextmanager
async def badly_closed(settings):
    try:
        yield Listed(settings)
    finally:
        {closing}

opened = badly_closed
"""
    install_listed(site, more=more)
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        report = await examined()
    assert only_endpoint(report).state is State.OK
    step = broken(only_transport(report).steps, State.WARNING)
    assert step.name == "closed"
    assert detail in step.detail


# What cannot be interrupted.


NEVER_CANCELLED = """
async def discover(self):
    with anyio.CancelScope(shield=True):
        while RELEASED.empty():
            await anyio.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("body", "seconds"),
    [("async def discover(self): RELEASED.get()", 3), (NEVER_CANCELLED, 8)],
    ids=["blocks the event loop", "ignores being cancelled"],
)
async def test_one_that_does_not_return_is_given_up_and_the_others_are_examined(
    site: Site, monkeypatch: pytest.MonkeyPatch, body: str, seconds: int
):
    install_listed(site)
    install_listed(site, body, name="stuck")
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        report = await examined("stuck", "listed")
    stuck, well = report.transports
    assert states(stuck.steps) == passed("found") | ({"closed": "warning"} if seconds == 8 else {})
    told = stuck.steps[-1]
    assert f"For {seconds} s code of dist-stuck has not returned" in told.detail
    assert "leave it out of TRANSPORT" in told.fix
    assert well.state is State.OK


async def test_a_setting_whose_code_hangs_is_given_up_at_that_step(site: Site):
    more = """
from pydantic import model_validator

class Stuck(ListedSettings):
    @model_validator(mode="after")
    def _wait(self):
        RELEASED.get()
        return self

ListedSettings = Stuck
"""
    install_listed(site, more=more)
    one = only_transport(await examined())
    assert states(one.steps) == passed("settings")


async def test_endpoints_that_were_examined_keep_their_results_when_another_one_blocks(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    body = """
@asynccontextmanager
async def connect(self, endpoint):
    if endpoint.name == "two":
        while not getattr(self, "through", False):
            await anyio.sleep(0.01)
        RELEASED.get()
    yield Route(base_url=endpoint.url)
    self.through = True
"""
    install_listed(site, body)
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, f"{fake.url}/x"))
        report = await examined(patience=dataclasses.replace(QUICK, route=20.0, stalled=30.0))
    one, two = report.endpoints
    assert one.state is State.OK
    assert broken(two.steps).name == "route"
    assert "dist-listed has not returned" in broken(two.steps).detail


async def test_what_goes_on_is_told_meanwhile(site: Site):
    install_listed(site, "async def discover(self): await anyio.sleep_forever()")
    told: list[str] = []
    with anyio.fail_after(30):
        await anyio.to_thread.run_sync(partial(examine, ["listed"], patience=QUICK, told=told.append))
    assert "listed: looks" in told


# What concerns all.


def test_no_transports_at_all_are_examined_as_well():
    report = examine([])
    assert (report.state, report.transports) == (State.OK, [])


async def test_bad_settings_of_core_stop_everything_and_are_told(monkeypatch: pytest.MonkeyPatch, site: Site):
    monkeypatch.setenv("SEND_TIMEOUT_MS", "soon")
    report = await examined()
    step = broken(report.steps)
    assert (report.state, step.name) == (State.FAILED, "settings")
    assert step.detail.startswith("SEND_TIMEOUT_MS='soon' cannot be used: it takes a whole number")
    assert step.fix.endswith("unset SEND_TIMEOUT_MS")
    assert report.transports == []


async def test_a_broken_plugin_with_hooks_is_told_and_the_transports_are_examined(
    site: Site, caplog: pytest.LogCaptureFixture
):
    install_listed(site)
    site.install("dist-bad", plugins={"policy": "policy"}, modules={"policy": "import surely_missing"})
    with caplog.at_level(logging.CRITICAL):
        report = await examined()
    step = broken(report.steps)
    assert step.name == "hooks"
    assert "Plugin 'policy' (from dist-bad 1.0, policy) is broken" in step.detail
    assert "lets everybody join" in step.fix
    assert step.fix.endswith(f": {packages.reinstall('dist-bad')}")
    assert only_transport(report).state is State.WARNING
