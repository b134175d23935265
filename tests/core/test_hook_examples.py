"""The examples of instance hooks, loaded as installed ones are, in a fleet that runs."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import sys
import tomllib
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio.to_thread
import keyring
import keyring.backend
import keyring.errors
import pytest
from dbus_fast.aio import MessageBus
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from opencode_mcp import Action, Activity, Endpoint, Instance, Session, Status
from opencode_mcp.conversation import Conversation
from opencode_mcp.fleet import Fleet
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings
from opencode_mcp.testing import FakeOpenCode, Reply, ToolCall
from support.command import Command
from support.desktop import Desktop, Shown, desktop
from support.distributions import Site
from support.fleets import FAST, Listed, NoSettings, endpoint, only, status, until
from support.stdio_server import registered, serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    # desktop-notifier 6.2 names the default event loop policy as it is imported
    pytest.mark.filterwarnings("ignore:.*DefaultEventLoopPolicy.*:DeprecationWarning"),
]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "hooks"
PROJECT = tomllib.loads((EXAMPLES / "pyproject.toml").read_text("utf-8"))["project"]
HOOKS: dict[str, str] = PROJECT["entry-points"]["opencode_mcp.plugins"]
LAPTOP = Instance(name="laptop", transport="listed", endpoint=endpoint("http://127.0.0.1:9"))
VARIABLES = ("ALLOWED_HOSTS", "AUDIT_LOG", "AUDIT_LOG_TEXT", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Site]:
    """A place to install the examples in, which this process looks into; what it imported is forgotten."""
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(EXAMPLES / "src")
    monkeypatch.syspath_prepend(site.path)
    for name in (*VARIABLES, "OPENCODE_SERVER_USERNAME", "OPENCODE_SERVER_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    yield site
    if notify := sys.modules.get(HOOKS["notify"]):
        notify.desktop.loop.close()
    for name in [
        name for name in sys.modules if name.startswith(("opencode_mcp_example_hooks", "proxy_of_docs"))
    ]:
        del sys.modules[name]


def install(site: Site, *names: str) -> None:
    """Install some of the examples, as entry points of their distribution."""
    site.install(PROJECT["name"], version=PROJECT["version"], plugins={name: HOOKS[name] for name in names})


def module_of(name: str) -> ModuleType:
    return sys.modules[HOOKS[name]]


@contextlib.asynccontextmanager
async def fleet_of(listed: Listed) -> AsyncGenerator[Fleet]:
    """Run a fleet with the hooks that are installed."""
    plugins = Plugins()
    plugins.load_instance_hooks()
    fleet = Fleet([(listed.plugin, NoSettings())], plugins.hook, CoreSettings(), FAST)
    async with fleet.running():
        yield fleet


def eventually(condition: Callable[[], Any]) -> until:
    """Wait until a condition holds, however busy the machine is."""
    return until(condition, seconds=30)


def names(fleet: Fleet) -> list[str]:
    return [one.name for one in fleet.monitors]


def test_each_example_is_an_entry_point_of_a_package_that_is_never_published():
    modules = {path.stem for path in EXAMPLES.glob("src/*/*.py")} - {"__init__"}
    assert {value.rpartition(".")[2] for value in HOOKS.values()} == modules
    assert "Private :: Do Not Upload" in PROJECT["classifiers"]


def test_each_example_is_short():
    for path in EXAMPLES.glob("src/*/*.py"):
        assert len(path.read_text("utf-8").splitlines()) < 60, path.name


async def test_all_examples_are_in_force_together_and_without_configuration_hold_nobody_up(
    site: Site, caplog: pytest.LogCaptureFixture
):
    install(site, *HOOKS)
    keyring.set_keyring(InMemory())
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake))
        await eventually(lambda: fleet.monitors and only(fleet).instance.activity)
        assert (await Conversation(fleet).send("laptop", "hello", seconds=30)).state == "done"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# hosts


@pytest.mark.parametrize(
    ("allowed", "vouched", "joins"),
    [
        ("127.0.0.1", False, True),
        (" 10.0.0.5, 127.0.0.1 ", False, True),
        ("10.0.0.5", False, False),
        ("laptop", True, True),
        ("LAPTOP", True, True),
        ("laptop", False, False),  # anybody may call himself that
        (",", True, False),
        (None, False, True),
        ("", False, True),
    ],
)
async def test_hosts_admits_only_who_is_on_the_list(
    site: Site, monkeypatch: pytest.MonkeyPatch, allowed: str | None, vouched: bool, joins: bool
):
    install(site, "hosts")
    if allowed is not None:
        monkeypatch.setenv("ALLOWED_HOSTS", allowed)
    listed = Listed()
    asked = endpoint("http://127.0.0.1:9", "asked", hostname="Laptop", vouched=vouched)
    async with fleet_of(listed) as fleet:
        listed.publish(asked)
        await fleet.discovered(10)
        assert names(fleet) == (["asked"] if joins else [])


async def test_hosts_leaves_whom_it_does_not_refuse_to_other_plugins(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    install(site, "hosts")
    monkeypatch.setenv("ALLOWED_HOSTS", "127.0.0.1")
    Plugins().load_instance_hooks()
    admit: Callable[[Endpoint], bool | None] = module_of("hosts").opencode_mcp_instance_admit
    assert admit(endpoint("http://127.0.0.1:9")) is None


async def test_hosts_takes_no_nameless_host_for_one_that_is_listed(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    install(site, "hosts")
    monkeypatch.setenv("ALLOWED_HOSTS", "laptop,")
    listed = Listed()
    async with fleet_of(listed) as fleet:
        listed.publish(endpoint("http://127.0.0.1:9"))
        await fleet.discovered(10)
        assert names(fleet) == []


# keyring


class InMemory(keyring.backend.KeyringBackend):
    """A keyring that the test fills, and may lock."""

    priority = 1.0  # pyright: ignore[reportAssignmentType] - so do those of keyring itself

    def __init__(self, **passwords: str) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.asked: list[str] = []
        self._passwords: dict[tuple[str, str], str] = {}
        for host, password in passwords.items():
            self.set_password("opencode-mcp", host, password)

    def set_password(self, service: str, username: str, password: str) -> None:
        self._passwords[service, username] = password

    def get_password(self, service: str, username: str) -> str | None:
        self.asked.append(username)
        if self.error is not None:
            raise self.error
        return self._passwords.get((service, username))


@pytest.fixture(autouse=True)
def no_keyring_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring.core, "_keyring_backend", InMemory())


def passwords_sent_to(fake: FakeOpenCode) -> list[str]:
    return [one.headers["authorization"] for one in fake.requests if "authorization" in one.headers]


async def test_keyring_gives_each_host_its_own_password(site: Site):
    install(site, "keyring")
    keyring.set_keyring(InMemory(laptop="of the laptop", tower="of the tower"))
    laptop, tower, other = (
        FakeOpenCode(password="of the laptop"),
        FakeOpenCode(password="of the tower"),
        Listed(),
    )
    async with laptop.serve(), tower.serve(), fleet_of(other) as fleet:
        other.publish(
            endpoint(laptop, "a", hostname="laptop"),
            endpoint(tower, "b", hostname="tower"),
            endpoint("http://127.0.0.1:9", "c", hostname="elsewhere"),
        )
        await eventually(lambda: status(fleet, "a") == status(fleet, "b") == "online")
    assert len(set(passwords_sent_to(laptop))) == len(set(passwords_sent_to(tower))) == 1
    assert passwords_sent_to(laptop)[0] != passwords_sent_to(tower)[0]


async def test_keyring_takes_the_user_name_of_the_settings(site: Site, monkeypatch: pytest.MonkeyPatch):
    install(site, "keyring")
    monkeypatch.setenv("OPENCODE_SERVER_USERNAME", "me")
    keyring.set_keyring(InMemory(laptop="secret"))
    fake, listed = FakeOpenCode(username="me", password="secret"), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake, hostname="laptop"))
        await eventually(lambda: status(fleet) == "online")


async def test_keyring_gives_nothing_to_a_stranger_who_claims_the_name_of_a_host(site: Site):
    install(site, "keyring")
    keyring.set_keyring(InMemory(laptop="secret"))
    fake, listed = FakeOpenCode(password="secret"), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake, hostname="laptop", vouched=False))
        await eventually(lambda: status(fleet) == "needs credentials")
    assert passwords_sent_to(fake) == []


async def test_keyring_gives_a_stranger_the_password_that_is_kept_for_its_address(site: Site):
    install(site, "keyring")
    keyring.set_keyring(InMemory(**{"127.0.0.1": "secret"}))
    fake, listed = FakeOpenCode(password="secret"), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake, vouched=False))
        await eventually(lambda: status(fleet) == "online")


async def test_keyring_is_not_asked_for_a_host_without_a_name(site: Site):
    install(site, "keyring")
    asked = InMemory()
    keyring.set_keyring(asked)
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake))
        await eventually(lambda: status(fleet) == "online")
    assert set(asked.asked) == {"127.0.0.1"}


async def test_keyring_sends_no_password_to_who_does_not_ask_for_one(site: Site):
    install(site, "keyring")
    keyring.set_keyring(InMemory(laptop="secret"))
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake, hostname="laptop"))
        await eventually(lambda: status(fleet) == "online")
    assert passwords_sent_to(fake) == []


async def test_a_locked_keyring_is_told_once_with_the_plugin_and_holds_up_nobody_who_needs_no_password(
    site: Site, caplog: pytest.LogCaptureFixture
):
    install(site, "keyring")
    locked = InMemory(laptop="secret")
    locked.error = keyring.errors.KeyringLocked("unlock it")
    keyring.set_keyring(locked)
    guarded, free, listed = FakeOpenCode(password="secret"), FakeOpenCode(), Listed()
    async with guarded.serve(), free.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(guarded, "guarded", hostname="laptop"), endpoint(free, "free"))
        await eventually(lambda: status(fleet, "guarded") == "needs credentials")
        await eventually(lambda: status(fleet, "free") == "online")
        locked.error = None
        await eventually(lambda: status(fleet, "guarded") == "online")
    told = [one for one in caplog.records if "opencode_mcp_instance_auth" in one.getMessage()]
    assert len(told) == 1
    assert "keyring (from opencode-mcp-example-hooks" in told[0].getMessage()
    assert "unlock it" in caplog.text


class BehindProxy(FakeOpenCode):
    """Stands behind a proxy that wants a token."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if Request(scope).headers.get("authorization") == "Bearer t0ken":
            await super().__call__(scope, receive, send)
        else:
            await Response(status_code=401, headers={"www-authenticate": "Bearer"})(scope, receive, send)


async def test_the_documented_token_for_a_proxy_goes_to_that_proxy_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    page = (EXAMPLES.parents[1] / "docs" / "hooks.md").read_text("utf-8")
    (source,) = re.findall(
        r'^``` \{ \.python title="proxy\.py" \}\n(.*?)^```$', page, re.DOTALL | re.MULTILINE
    )
    monkeypatch.setenv("PROXY_TOKEN", "t0ken")
    proxy, other, listed = BehindProxy(), FakeOpenCode(password="secret"), Listed()
    async with proxy.serve(), other.serve():
        source = source.replace("https://opencode.example.org", proxy.url)
        site.install("proxy-dist", plugins={"proxy": "proxy_of_docs"}, modules={"proxy_of_docs": source})
        async with fleet_of(listed) as fleet:
            listed.publish(endpoint(proxy, "proxy"), endpoint(other, "other"))
            await eventually(lambda: status(fleet, "proxy") == "online")
            await eventually(lambda: status(fleet, "other") == "needs credentials")
    assert passwords_sent_to(other) == []


# notify


@contextlib.asynccontextmanager
async def at_a_desktop(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Desktop]:
    install(site, "notify")
    async with desktop() as here:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", here.address)
        try:
            yield here
        finally:
            await anyio.to_thread.run_sync(put_away, module_of("notify").desktop)


def put_away(shows: Any) -> None:
    """Close what `notify` keeps to the end of its process: its connection and its loop."""
    bus: MessageBus = shows._notifier._backend.bus

    async def leave() -> None:
        bus.disconnect()
        await bus.wait_for_disconnect()

    shows.loop.run(leave())
    shows.loop.close()


async def test_notify_shows_that_an_agent_has_finished(site: Site, monkeypatch: pytest.MonkeyPatch):
    fake, listed = FakeOpenCode(), Listed()
    async with at_a_desktop(site, monkeypatch) as here, fake.serve(), fleet_of(listed) as fleet:
        session = fake.create_session("Fix <b>the</b> till & more\x1b[31m\u202e")
        listed.publish(endpoint(fake, "laptop <1>"))
        await eventually(lambda: fleet.monitors and only(fleet).instance.activity)
        for turn in (1, 2):
            fake.set_busy(session)
            await eventually(lambda: only(fleet).instance.activity == "busy")
            fake.set_busy(session, busy=False)
            await eventually(lambda: len(here.shown) == turn)  # noqa: B023
    assert here.shown == [Shown("opencode-mcp", "laptop (1) has finished", "Fix (b)the(/b) till + more")] * 2


async def test_notify_shows_what_an_agent_waits_for(site: Site, monkeypatch: pytest.MonkeyPatch):
    fake, listed = FakeOpenCode(), Listed()
    fake.script(Reply(tools=[ToolCall(asks=True)], text="ok"))
    async with at_a_desktop(site, monkeypatch) as here, fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake))
        await eventually(lambda: fleet.monitors and only(fleet).instance.activity)
        fake.prompt(fake.create_session("s"), "go")
        await eventually(lambda: here.shown)
    assert here.shown[0].title == "laptop waits for you"
    assert "echo hi" in here.shown[0].text


async def test_notify_shows_that_an_instance_went_offline_and_only_if_it_was_ever_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    fake, listed = FakeOpenCode(), Listed()
    async with at_a_desktop(site, monkeypatch) as here, fleet_of(listed) as fleet:
        async with fake.serve():
            listed.publish(endpoint("http://127.0.0.1:9", "never"), endpoint(fake))
            await eventually(lambda: (status(fleet), status(fleet, "never")) == ("online", "offline"))
            await fake.kill()
        await eventually(lambda: here.shown)
    assert here.shown == [
        Shown("opencode-mcp", "laptop is offline", "Nothing accepts connections at its address.")
    ]


async def test_notify_shows_nothing_that_steers_or_hides_however_an_instance_calls_itself(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    hostile = "\x1b[31mred\n\u202edren " + "x" * 1_000
    busy = dataclasses.replace(
        LAPTOP, name=hostile, activity=Activity.BUSY, session=Session(id="1", title=hostile)
    )
    async with at_a_desktop(site, monkeypatch) as here:
        Plugins().load_instance_hooks()
        changed = module_of("notify").opencode_mcp_instance_changed
        idle = dataclasses.replace(busy, activity=Activity.IDLE)
        await anyio.to_thread.run_sync(changed, busy, idle)
    ((_, title, text),) = here.shown
    assert title.startswith("red dren xxx")
    assert text.startswith("red dren xxx")
    assert max(len(title), len(text)) <= 200


WAITS = dataclasses.replace(LAPTOP, waiting_for="to run a command")
GONE = dataclasses.replace(LAPTOP, status=Status.OFFLINE, detail="It is away.", last_seen=datetime.now(UTC))


@pytest.mark.parametrize(
    ("before", "after", "title"),
    [
        (LAPTOP, WAITS, "laptop waits for you"),
        (WAITS, dataclasses.replace(WAITS, waiting_for="to edit a file"), "laptop waits for you"),
        (WAITS, dataclasses.replace(WAITS, version="2"), None),
        (WAITS, LAPTOP, None),
        (None, WAITS, None),
        (WAITS, None, None),
        (LAPTOP, GONE, "laptop is offline"),
        (GONE, dataclasses.replace(GONE, detail="It is far away."), None),
        (None, GONE, None),
    ],
)
def test_notify_shows_each_thing_once(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    before: Instance | None,
    after: Instance | None,
    title: str | None,
):
    install(site, "notify")
    Plugins().load_instance_hooks()
    shown: list[str] = []
    monkeypatch.setattr(module_of("notify").desktop, "show", lambda title, text: shown.append(title))
    module_of("notify").opencode_mcp_instance_changed(before, after)
    assert shown == ([] if title is None else [title])


async def change(fleet: Fleet, fake: FakeOpenCode, session: str, times: int) -> None:
    """Let an agent finish so often, and wait until all plugins were told."""
    for _ in range(times):
        fake.set_busy(session)
        await eventually(lambda: only(fleet).instance.activity == "busy")
        fake.set_busy(session, busy=False)
        await eventually(lambda: only(fleet).instance.activity == "idle")


@pytest.mark.parametrize("address", [None, "unix:path=/nonexistent"], ids=["no D-Bus", "dead D-Bus"])
async def test_notify_says_once_that_there_is_no_desktop(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str | None
):
    install(site, "notify")
    if address is not None:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve():
        session = fake.create_session("s")
        async with fleet_of(listed) as fleet:
            listed.publish(endpoint(fake))
            await eventually(lambda: fleet.monitors and only(fleet).instance.activity)
            await change(fleet, fake, session, 3)
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in told] == [HOOKS["notify"]]
    assert told[0].getMessage().startswith("There are no desktop notifications: ")


async def test_notify_gives_up_when_the_desktop_goes_away(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    fake, listed = FakeOpenCode(), Listed()
    async with at_a_desktop(site, monkeypatch) as here, fake.serve():
        session = fake.create_session("s")
        async with fleet_of(listed) as fleet:
            listed.publish(endpoint(fake))
            await eventually(lambda: fleet.monitors and only(fleet).instance.activity)
            await change(fleet, fake, session, 1)
            await eventually(lambda: here.shown)
            await here.close()
            await change(fleet, fake, session, 3)
    assert len(here.shown) == 1
    ours = [record for record in caplog.records if record.name == HOOKS["notify"]]
    assert [record.getMessage() for record in ours] == [
        "There are no desktop notifications: ConnectionError: the desktop took no notification"
    ]
    failures = [record for record in caplog.records if record.getMessage() == "Notification failed"]
    assert len(failures) == 1  # desktop-notifier's own words, not once per change


# audit_log

TEXT = "hello\nto\u2028{} \U0001f600"
"""A message that would be several lines, were it written as it is."""


def entries(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("ascii").splitlines()]


@pytest.fixture
def log(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(site, "audit_log")
    monkeypatch.setenv("AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    return tmp_path / "audit.jsonl"


async def test_audit_log_has_a_line_as_each_action_begins_and_one_when_it_is_over(log: Path):
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake))
        await eventually(lambda: fleet.monitors and only(fleet).instance.activity)
        talk = Conversation(fleet)
        sent = await talk.send("laptop", TEXT, seconds=30)
        await talk.read("laptop")
        fake.script(Reply(never_finishes=True))
        await talk.send("laptop", "go on", seconds=0)
        await eventually(lambda: fake.busy)
        await talk.abort("laptop")
    lines = entries(log)
    assert [(line["action"], line["outcome"]) for line in lines] == [
        ("send", "begins"),
        ("send", "done"),
        ("read", "begins"),
        ("read", "done"),
        ("send", "begins"),
        ("send", "running"),
        ("abort", "begins"),
        ("abort", "aborted"),
    ]
    for begun, over in zip(lines[::2], lines[1::2], strict=True):
        assert begun["id"] == over["id"]
        assert begun["time"] <= over["time"]
    assert len({line["id"] for line in lines}) == 4
    assert {line["instance"] for line in lines} == {"laptop"}
    assert {line["url"] for line in lines} == {fake.url}
    assert lines[1]["session"] == sent.session_id
    assert (lines[0]["characters"], lines[0]["sha256"]) == (
        len(TEXT),
        hashlib.sha256(TEXT.encode()).hexdigest(),
    )
    assert "hello" not in log.read_text("ascii")
    assert {line["action"] for line in lines if "sha256" in line} == {"send"}
    assert log.stat().st_mode & 0o777 == 0o600


async def test_audit_log_has_the_messages_if_it_is_told_to(log: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AUDIT_LOG_TEXT", "1")
    log.write_text('{"from": "before"}\n')
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake))
        await Conversation(fleet).send("laptop", TEXT, seconds=30)
    before, *lines = entries(log)
    assert before == {"from": "before"}
    assert [line["text"] for line in lines] == [TEXT] * 2


def test_audit_log_takes_a_message_that_is_no_text(log: Path):
    Plugins().load_instance_hooks()
    told = Action(id="1", kind="send", instance=LAPTOP, caller="a", began=datetime.now(UTC), text="\ud800")
    module_of("audit_log").opencode_mcp_instance_audit(told)
    (line,) = entries(log)
    assert line["characters"] == 1


async def test_audit_log_that_cannot_be_written_is_told_once_and_stops_nothing(
    log: Path, caplog: pytest.LogCaptureFixture
):
    log.mkdir()
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), fleet_of(listed) as fleet:
        listed.publish(endpoint(fake))
        assert (await Conversation(fleet).send("laptop", "hello", seconds=30)).state == "done"
    told = [one for one in caplog.records if "opencode_mcp_instance_audit" in one.getMessage()]
    assert len(told) == 1
    assert "audit_log (from opencode-mcp-example-hooks" in told[0].getMessage()


async def test_audit_log_says_who_asked(log: Path, site: Site, tmp_path: Path):
    command = Command(tmp_path)
    variables = {
        "AUDIT_LOG": str(log),
        "PYTHONPATH": f"{site.path}:{EXAMPLES / 'src'}",
    }
    async with registered(command, FakeOpenCode()):
        ended = await command.meanwhile("send", "laptop", "hello", stdin=b"", **variables)
        assert (ended.code, ended.err) == (0, "")
        assert [line["caller"] for line in entries(log)] == ["cli", "cli"]
        async with serving(command, **variables) as wire:
            await wire.initialize()
            await wire.tool("send", instance="laptop", message="hello")
            await wire.close_stdin()
            assert await wire.exit_code() == 0
    lines = entries(log)
    assert [(line["caller"], line["outcome"]) for line in lines[2:]] == [
        ("a test 1", "begins"),
        ("a test 1", "done"),
    ]
