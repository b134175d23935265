"""The doctor on the way to an endpoint: each fault is told at the step where it is, with what to do."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from core.doctor_parts import broken, examined, install_listed, listed, only_endpoint, prepared_site, states
from opencode_mcp import Endpoint
from opencode_mcp.doctor import State
from opencode_mcp.doctor.judge import mended
from opencode_mcp.errors import LocalError
from opencode_mcp.testing import FakeOpenCode, Fault
from support.distributions import Site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATH = ["admitted", "route", "reachable", "authenticated", "api", "events", "round trip"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Site]:
    yield from prepared_site(tmp_path, monkeypatch)


@pytest.fixture
def listed_site(site: Site) -> Site:
    install_listed(site)
    return site


pytestmark.append(pytest.mark.usefixtures("listed_site"))


def passed(name: str) -> dict[str, str]:
    """The states of a path that breaks at `name`."""
    at = PATH.index(name)
    after = dict.fromkeys(PATH[at + 1 :], "skipped")
    return {**dict.fromkeys(PATH[:at], "ok"), name: "failed", **after}


async def test_a_healthy_one_passes_every_step_and_is_measured(monkeypatch: pytest.MonkeyPatch):
    async with FakeOpenCode("/srv/shop").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, hostname="laptop"))
        report = await examined()
    one = only_endpoint(report)
    assert states(one.steps) == dict.fromkeys(PATH, "ok")
    assert (report.state, one.state, one.version) == (State.OK, State.OK, "1.18.33")
    assert (one.name, one.id, one.url, one.hostname, one.vouched) == ("one", "one", fake.url, "laptop", True)
    assert all(step.milliseconds is not None and not step.fix for step in one.steps)
    assert one.first_event_ms is not None
    assert 0 < one.first_event_ms < 1000
    assert one.round_trip_ms is not None
    assert 0 < one.round_trip_ms < 1000
    assert "/srv/shop" in next(step.detail for step in one.steps if step.name == "api")
    assert fake.streams == 0
    pings = [request for request in fake.requests if request.path == "/global/health"]
    assert len(pings) == 6  # one to recognise it, and five to measure


async def test_an_opencode_of_the_next_generation_passes_too_and_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter2")
    async with FakeOpenCode(generation=2, password="hunter2").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined())
    assert states(one.steps) == dict.fromkeys(PATH, "ok")
    assert one.version == fake.version
    assert "the API of 2.x" in next(step.detail for step in one.steps if step.name == "api")


async def test_a_closed_port_is_told_with_a_command_to_look(monkeypatch: pytest.MonkeyPatch):
    async with FakeOpenCode().serve() as fake:
        url = fake.url
    monkeypatch.setenv("LISTED_ENDPOINTS", listed(url))
    report = await examined()
    one = only_endpoint(report)
    assert report.state is State.FAILED
    assert states(one.steps) == passed("reachable")
    step = broken(one.steps)
    assert step.detail == "Nothing accepts connections at its address."
    assert "opencode-connected" in step.fix
    assert step.fix.endswith(f"curl -m 5 {url}/global/health")


@pytest.mark.parametrize(
    ("fault", "step", "detail"),
    [
        (Fault.HANG, "reachable", "did not answer in time"),
        (Fault.DRIP, "reachable", "did not answer in time"),
        (Fault.RESET, "reachable", "connection to it broke"),
        (Fault.UNAUTHORIZED, "authenticated", "wants a password: set OPENCODE_SERVER_PASSWORD"),
        (Fault.GARBAGE, "api", "JSON that cannot be read"),
        (Fault.HTML, "api", "something else than JSON"),
        (Fault.REDIRECT, "api", "redirect (302)"),
        (Fault.HUGE, "api", "more than 65536 bytes"),
        (Fault.SERVER_ERROR, "api", "scripted"),
    ],
)
async def test_a_fault_is_told_at_its_step_with_what_to_do(
    fault: Fault, step: str, detail: str, monkeypatch: pytest.MonkeyPatch
):
    async with FakeOpenCode().serve() as fake:
        fake.fault = fault
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined())
    assert states(one.steps) == passed(step) | ({"authenticated": "skipped"} if step == "api" else {})
    assert detail in broken(one.steps).detail
    assert broken(one.steps).fix
    assert (one.first_event_ms, one.round_trip_ms) == (None, None)


@pytest.mark.parametrize("fault", [Fault.HTML, Fault.HANG, Fault.SERVER_ERROR])
async def test_one_that_answers_and_whose_sessions_cannot_be_read_breaks_at_the_api(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
):
    async with FakeOpenCode().serve() as fake:
        fake.fault, fake.fault_path = fault, "/session"
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined())
    assert states(one.steps) == passed("api")
    assert one.version == "1.18.33"


@pytest.mark.parametrize(
    ("fault", "detail", "fix"),
    [
        (Fault.STREAM_SILENT, "says nothing for 1 s.", "proxy_buffering off"),
        (Fault.STREAM_CUT, "ends at once.", "proxy_read_timeout"),
    ],
)
async def test_a_stream_that_is_of_no_use_is_a_warning_since_it_is_polled(
    fault: Fault, detail: str, fix: str, monkeypatch: pytest.MonkeyPatch
):
    async with FakeOpenCode().serve() as fake:
        fake.fault = fault
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        report = await examined()
    one = only_endpoint(report)
    assert (report.state, one.state) == (State.WARNING, State.WARNING)
    step = broken(one.steps, State.WARNING)
    assert step.name == "events"
    assert detail in step.detail
    assert "it is asked every 2 s instead" in step.detail
    assert fix in step.fix
    assert one.first_event_ms is None
    assert one.round_trip_ms is not None


async def test_an_event_that_is_too_large_is_a_warning_with_what_helps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("opencode_mcp.opencode.http.MAX_EVENT", 10)
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined())
    step = broken(one.steps, State.WARNING)
    assert step.name == "events"
    assert "more than 10 bytes, too much to be read. So it is asked every 2 s instead" in step.detail
    assert step.fix.endswith("go on in a new session.")


@pytest.mark.parametrize(
    ("told", "fix"),
    [("Raise the limit on open files (`ulimit -n`).", "ulimit -n 4096"), ("Network is down.", "is up")],
)
def test_what_is_wrong_with_this_machine_has_a_mend_whatever_it_is(told: str, fix: str):
    endpoint = Endpoint(id="one", name="one", url="http://127.0.0.1:9")
    assert fix in mended(LocalError(f"This machine cannot connect: {told}"), endpoint, None, "")


async def test_a_stream_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    async with FakeOpenCode().serve() as fake:
        fake.fault, fake.fault_path = Fault.HTML, "/global/event"
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined())
    assert states(one.steps) == passed("events")
    assert "something else than events" in broken(one.steps).detail


# Passwords.


async def test_the_right_password_is_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter2")
    async with FakeOpenCode(password="hunter2").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined())
    assert one.state is State.OK
    assert [step.detail for step in one.steps if step.name == "authenticated"] == [
        "It asks for a password, and accepts ours."
    ]


async def test_a_wrong_password_is_told_as_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter3")
    async with FakeOpenCode(password="hunter2").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined())
    assert states(one.steps) == passed("authenticated")
    assert "refuses our user name and password" in broken(one.steps).detail
    assert broken(one.steps).fix.endswith(": export OPENCODE_SERVER_PASSWORD='...'")


async def test_who_is_not_vouched_for_never_gets_the_password(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter2")
    async with FakeOpenCode(password="hunter2").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, vouched=False))
        one = only_endpoint(await examined())
    assert states(one.steps) == passed("authenticated")
    assert "does not vouch for it, so OPENCODE_SERVER_PASSWORD is not sent there" in broken(one.steps).detail
    assert broken(one.steps).fix == "Say that it is yours."
    assert fake.requests
    assert not [request for request in fake.requests if "authorization" in request.headers]


async def test_a_plugins_credentials_are_used(site: Site, monkeypatch: pytest.MonkeyPatch):
    source = """
    from opencode_mcp import hookimpl, opencode_auth

    @hookimpl
    def opencode_mcp_instance_auth(endpoint):
        return opencode_auth("hunter2")
    """
    site.install("dist", plugins={"keys": "keys"}, modules={"keys": source})
    async with FakeOpenCode(password="hunter2").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, vouched=False))
        report = await examined()
    assert only_endpoint(report).state is State.OK
    assert [step.detail for step in report.steps if step.name == "hooks"] == ["in force: keys"]


KNOWN = """
def connect(self, endpoint):
    return self.through(endpoint)

@asynccontextmanager
async def through(self, endpoint):
    yield Route(base_url=endpoint.url, GIVEN)
"""


@pytest.mark.parametrize("vouched", [True, False])
async def test_what_its_transport_knows_of_it_counts_before_the_settings(
    site: Site, monkeypatch: pytest.MonkeyPatch, vouched: bool
):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter3")
    known = KNOWN.replace("GIVEN", "auth=opencode_auth('hunter2'), pid=4711, version='2.1.2'")
    install_listed(site, known, name="known")
    async with FakeOpenCode(generation=2, password="hunter2", pid=4711).serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, vouched=vouched))
        one = only_endpoint(await examined("known"))
    assert states(one.steps) == dict.fromkeys(PATH, "ok")
    details = {step.name: step.detail for step in one.steps}
    assert details["authenticated"] == "It asks for a password, and accepts what its transport knows."
    assert details["api"] == "OpenCode 2.1.2, the API of 2.x."


@pytest.mark.parametrize("vouched", [True, False])
async def test_refused_credentials_of_its_transport_are_told_as_such(
    site: Site, monkeypatch: pytest.MonkeyPatch, vouched: bool
):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter2")
    install_listed(site, KNOWN.replace("GIVEN", "auth=opencode_auth('hunter3')"), name="known")
    async with FakeOpenCode(generation=2, password="hunter2").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, vouched=vouched))
        one = only_endpoint(await examined("known"))
    assert states(one.steps) == passed("authenticated")
    step = broken(one.steps)
    assert step.detail == "It refuses the user name and password that its transport knows."
    assert "OPENCODE_SERVER_PASSWORD is not what counts there" in step.fix


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a port is")
async def test_a_port_that_another_user_has_is_told_with_what_its_transport_says_to_do(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter2")
    monkeypatch.setattr("opencode_mcp.opencode.strangers.peer_user", lambda connection: 4712)
    install_listed(site, KNOWN.replace("GIVEN", "users={4711}, mend='Ask them.'"), name="known")
    async with FakeOpenCode(password="hunter2").serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined("known"))
    assert states(one.steps) == passed("authenticated")
    step = broken(one.steps)
    port = fake.url.rpartition(":")[2]
    assert step.detail == f"Another user of this machine (uid 4712) has port {port}, and gets no password."
    assert step.fix == "Ask them."


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ("pid=4712", "Process 4711 with OpenCode 2.1.2 answers there, not 4712 with any version."),
        ("pid=4711, version='2.1.3'", "answers there, not 4711 with 2.1.3."),
    ],
)
async def test_another_process_than_its_transport_knows_of_breaks_at_the_api(
    site: Site, monkeypatch: pytest.MonkeyPatch, given: str, detail: str
):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter2")
    install_listed(site, KNOWN.replace("GIVEN", given), name="known")
    async with FakeOpenCode(generation=2, password="hunter2", pid=4711).serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined("known"))
    assert states(one.steps) == passed("api") | {"authenticated": "skipped"}
    assert detail in broken(one.steps).detail
    assert "is out of date" in broken(one.steps).fix
    assert broken(one.steps).fix.endswith(f"curl -m 5 {fake.url}/api/info")


async def test_a_process_that_is_gone_is_told_as_something_its_transport_should_not_know(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    async with FakeOpenCode().serve() as fake:
        url = fake.url
    install_listed(site, KNOWN.replace("GIVEN", "pid=4711"), name="known")
    monkeypatch.setenv("LISTED_ENDPOINTS", listed(url))
    one = only_endpoint(await examined("known"))
    assert states(one.steps) == passed("reachable")
    assert "what its transport knows of it is out of date" in broken(one.steps).fix
    assert "opencode-connected" not in broken(one.steps).fix


# Policies.

POLICY = """
from opencode_mcp import hookimpl

@hookimpl
def opencode_mcp_instance_admit(endpoint):
    ANSWER
"""


async def test_one_that_a_policy_keeps_out_is_said_to_be_and_nobody_talks_to_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    site.install(
        "dist",
        plugins={"policy": "policy"},
        modules={"policy": POLICY.replace("ANSWER", "return endpoint.name != 'one'")},
    )
    async with FakeOpenCode().serve() as fake, FakeOpenCode().serve() as other:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake, other))
        report = await examined()
    kept_out, admitted = report.endpoints
    assert (report.state, kept_out.state, admitted.state) == (State.OK, State.SKIPPED, State.OK)
    assert set(states(kept_out.steps).values()) == {"skipped"}
    assert kept_out.steps[0].detail == (
        "The policy of plugin policy (from dist 1.0) keeps it out of the fleet."
    )
    assert "settings of that plugin" in kept_out.steps[0].fix
    assert not fake.requests


async def test_a_policy_that_fails_is_a_failure_with_its_plugins_name(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    policy = POLICY.replace("ANSWER", "raise KeyError('hunter2')")
    site.install("dist-policy", plugins={"policy": "policy"}, modules={"policy": policy})
    monkeypatch.setenv("LISTED_ENDPOINTS", listed("http://127.0.0.1:9"))
    report = await examined()
    assert report.state is State.FAILED
    told = broken(report.steps)
    hook = "opencode_mcp_instance_admit"
    assert (told.name, told.detail) == (
        "hooks",
        f"in force: policy. Plugin policy (from dist-policy 1.0): its hook {hook} failed with KeyError.",
    )
    assert told.fix == "If that is its own defect, update that package, or uninstall it."
    kept_out = only_endpoint(report)
    assert kept_out.state is State.FAILED
    step = broken(kept_out.steps)
    assert step.detail == (
        "The policy of plugin policy (from dist-policy 1.0) failed, and that keeps it out of the fleet."
    )
    assert step.fix == told.fix
    assert "hunter2" not in str(report)


async def test_all_hooks_that_fail_are_told_beside_those_in_force(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    for name in ("one", "two"):
        policy = POLICY.replace("ANSWER", "raise KeyError").replace("admit", "auth")
        site.install(f"dist-{name}", plugins={name: f"fails_{name}"}, modules={f"fails_{name}": policy})
    site.install("dist-bad", plugins={"bad": "bad"}, modules={"bad": "import surely_missing"})
    monkeypatch.setenv("LISTED_ENDPOINTS", listed("http://127.0.0.1:9"))
    report = await examined()
    (told,) = [step for step in report.steps if step.name == "hooks"]
    assert told.state is State.FAILED
    for plugin in ("'bad' (from dist-bad 1.0, bad)", "Plugin one", "Plugin two"):
        assert plugin in told.detail
    assert "lets everybody join" in told.fix
    assert told.milliseconds is not None


# Routes.


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("raise TransportError('The tunnel is down. Dig it again.')", "The tunnel is down."),
        ("raise KeyError('hunter2')", "Its code failed with KeyError in site/tunnelled.py:"),
        ("raise OSError(2, 'No tunnel', '/hunter2')", "failed with FileNotFoundError (No tunnel) in"),
        ("return 7", "Its code failed with TypeError in"),
    ],
)
async def test_a_route_that_cannot_be_opened_is_told_without_the_words_of_foreign_errors(
    body: str, detail: str, site: Site, monkeypatch: pytest.MonkeyPatch
):
    install_listed(site, f"def connect(self, endpoint):\n    {body}", name="tunnelled")
    monkeypatch.setenv("LISTED_ENDPOINTS", listed("http://127.0.0.1:9"))
    one = only_endpoint(await examined("tunnelled"))
    assert states(one.steps) == passed("route")
    assert detail in broken(one.steps).detail
    assert broken(one.steps).fix
    assert "hunter2" not in str(one)


HANGS_ON_THE_WAY_IN = """
@asynccontextmanager
async def connect(self, endpoint):
    await anyio.sleep_forever()
    yield
"""
HANGS_ON_THE_WAY_OUT = """
@asynccontextmanager
async def connect(self, endpoint):
    try:
        yield Route(base_url=endpoint.url)
    finally:
        await anyio.sleep_forever()
"""


async def test_a_route_that_never_opens_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch):
    install_listed(site, HANGS_ON_THE_WAY_IN, name="stuck")
    monkeypatch.setenv("LISTED_ENDPOINTS", listed("http://127.0.0.1:9"))
    one = only_endpoint(await examined("stuck"))
    assert states(one.steps) == passed("route")
    assert broken(one.steps).detail == "Its transport has found no route within 1 s."
    assert "dist-stuck" in broken(one.steps).fix


async def test_a_route_that_does_not_close_is_a_warning(site: Site, monkeypatch: pytest.MonkeyPatch):
    install_listed(site, HANGS_ON_THE_WAY_OUT, name="stuck")
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(fake))
        one = only_endpoint(await examined("stuck"))
    assert states(one.steps) == {**dict.fromkeys(PATH, "ok"), "route closed": "warning"}
    assert broken(one.steps, State.WARNING).detail == "Its transport has not closed the route within 1 s."


STRAY = """
async def stray(self):
    task = asyncio.ensure_future(anyio.sleep_forever())
    task.cancel()
    await task

def connect(self, endpoint):
    return self.through(endpoint)

@asynccontextmanager
async def through(self, endpoint):
    WAY_IN
    yield Route(base_url=endpoint.url)
    WAY_OUT
"""


@pytest.mark.parametrize("way_in", [True, False])
@pytest.mark.parametrize("ending", ["await self.stray()", "raise SystemExit(3)"])
async def test_a_route_whose_code_ends_what_it_runs_in_ends_no_other_examination(
    site: Site, monkeypatch: pytest.MonkeyPatch, way_in: bool, ending: str
):
    ending = f"if endpoint.name != 'number-20': {ending}"
    body = STRAY.replace("WAY_IN", ending if way_in else "").replace("WAY_OUT", "" if way_in else ending)
    install_listed(site, body, more="import asyncio", name="stray")
    async with FakeOpenCode().serve() as fake:
        monkeypatch.setenv(
            "LISTED_ENDPOINTS", listed(*(f"{fake.url}/{number}" for number in range(19)), fake)
        )
        report = await examined("stray")
    (*others, last) = report.endpoints
    assert states(last.steps) == dict.fromkeys(PATH, "ok")
    name = "route" if way_in else "route closed"
    for one in others:
        told = next(step for step in one.steps if step.name == name)
        assert told.state is (State.FAILED if way_in else State.WARNING)
        assert "in site/stray.py:" in told.detail
    assert len(others) == 19


# Many.

COUNTS = """
open = most = 0

@asynccontextmanager
async def connect(self, endpoint):
    cls = type(self)
    cls.open += 1
    cls.most = max(cls.most, cls.open)
    try:
        yield Route(base_url=endpoint.url)
    finally:
        cls.open -= 1
"""


async def test_hanging_ones_are_examined_side_by_side_at_most_sixteen_at_a_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    install_listed(site, COUNTS, name="counting")
    monkeypatch.setenv("HEALTH_CHECK_TIMEOUT_MS", "300")
    async with FakeOpenCode().serve() as fake:
        fake.fault = Fault.HANG
        monkeypatch.setenv("LISTED_ENDPOINTS", listed(*(f"{fake.url}/{number}" for number in range(40))))
        report = await examined("counting")
    assert len(report.endpoints) == 40
    assert {broken(one.steps).name for one in report.endpoints} == {"reachable"}
    assert sys.modules["counting"].Listed.most == 16
