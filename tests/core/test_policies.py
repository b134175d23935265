"""What plugins decide about instances, and what becomes of a plugin that fails at it."""

import logging
from collections.abc import Callable

import httpx2
import pytest

from opencode_mcp import Endpoint, Instance, hookimpl
from opencode_mcp.fleet.policies import Policies
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings

ENDPOINT = Endpoint(id="1", name="laptop", url="http://127.0.0.1:4096")
VOUCHED = ENDPOINT.model_copy(update={"vouched": True})
INSTANCE = Instance(name="laptop", transport="listed", endpoint=ENDPOINT)


class Admits:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    @hookimpl
    def opencode_mcp_instance_admit(self, endpoint: Endpoint) -> object:
        assert endpoint is ENDPOINT
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Authenticates:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    @hookimpl
    def opencode_mcp_instance_auth(self, endpoint: Endpoint) -> object:
        assert endpoint.url == ENDPOINT.url
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Watches:
    def __init__(self) -> None:
        self.seen: list[tuple[Instance | None, Instance | None]] = []

    @hookimpl
    def opencode_mcp_instance_changed(self, before: Instance | None, after: Instance | None) -> None:
        self.seen.append((before, after))


class Stumbles:
    @hookimpl
    def opencode_mcp_instance_changed(self) -> None:
        raise OSError("the disk is full")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENCODE_SERVER_USERNAME", "OPENCODE_SERVER_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def policies(*plugins: object, password: str | None = None) -> Policies:
    """Ask plugins that were registered as `plugin-0`, `plugin-1`, …: the last one is asked first."""
    loaded = Plugins()
    for number, plugin in enumerate(plugins):
        loaded.register(plugin, f"plugin-{number}")
    return Policies(loaded.hook, CoreSettings.model_validate({"OPENCODE_SERVER_PASSWORD": password}))


def credentials(auth: httpx2.Auth | None) -> str | None:
    """Return what `auth` puts into a request."""
    if auth is None:
        return None
    request = next(auth.sync_auth_flow(httpx2.Request("GET", "http://127.0.0.1")))
    return request.headers.get("authorization")


def test_without_a_policy_everybody_joins():
    assert policies().admit(ENDPOINT)


@pytest.mark.parametrize(
    ("answers", "joins"),
    [
        ([True], True),
        ([False], False),
        ([0], False),  # a policy that is careless with types must not let through
        ([None], True),
        ([None, False], False),
        ([False, None], False),
        ([True, False], False),  # the last one registered is asked first, and its answer stands
        ([False, True], True),
    ],
)
def test_the_first_answer_decides_who_joins(answers: list[object], joins: bool):
    assert policies(*map(Admits, answers)).admit(ENDPOINT) is joins


def test_a_policy_that_fails_keeps_out_and_is_logged_with_its_name(caplog: pytest.LogCaptureFixture):
    assert not policies(Admits(True), Admits(ValueError("no idea"))).admit(ENDPOINT)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "Plugin plugin-1: its hook opencode_mcp_instance_admit failed."
    assert "no idea" in caplog.text


def test_a_failure_deep_in_a_plugin_is_laid_to_that_plugin_alone(caplog: pytest.LogCaptureFixture):
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        raise ValueError("no idea")

    class Deep:
        @hookimpl
        def opencode_mcp_instance_admit(self) -> None:
            deep(5)

    assert not policies(Deep(), Admits(None)).admit(ENDPOINT)
    assert "Plugin plugin-0: its hook" in caplog.text


def test_without_credentials_none_are_sent():
    assert policies().authenticate(VOUCHED) is None


def test_the_password_of_the_settings_goes_to_vouched_endpoints_only():
    asked = policies(password="hunter2")
    assert credentials(asked.authenticate(VOUCHED)) == credentials(httpx2.BasicAuth("opencode", "hunter2"))
    assert asked.authenticate(ENDPOINT) is None


def test_the_user_name_of_the_settings_goes_with_it():
    settings = CoreSettings.model_validate(
        {"OPENCODE_SERVER_PASSWORD": "hunter2", "OPENCODE_SERVER_USERNAME": "me"}
    )
    auth = Policies(Plugins().hook, settings).authenticate(VOUCHED)
    assert credentials(auth) == credentials(httpx2.BasicAuth("me", "hunter2"))


@pytest.mark.parametrize("endpoint", [ENDPOINT, VOUCHED], ids=["stranger", "vouched"])
def test_a_plugins_credentials_win_and_go_wherever_it_says(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
):
    own = httpx2.BasicAuth("plugin", "its own")
    assert policies(Authenticates(own), password="hunter2").authenticate(endpoint) is own
    assert policies(Authenticates(own), Authenticates(None)).authenticate(endpoint) is own
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        (Authenticates(ValueError("no idea")), "Plugin plugin-0: its hook opencode_mcp_instance_auth failed"),
        (Authenticates(("me", "s3cret")), "gave tuple for credentials, not httpx2.Auth: it does not count"),
    ],
    ids=["raises", "returns garbage"],
)
def test_a_plugin_that_gives_no_credentials_is_logged_and_those_of_the_settings_serve(
    plugin: Authenticates, told: str, caplog: pytest.LogCaptureFixture
):
    asked = policies(plugin, password="hunter2")
    assert asked.authenticate(ENDPOINT) is None
    assert len(caplog.records) == 1
    assert credentials(asked.authenticate(VOUCHED)) == credentials(httpx2.BasicAuth("opencode", "hunter2"))
    assert told in caplog.text
    assert "s3cret" not in caplog.text
    assert "hunter2" not in caplog.text


def test_plugins_are_told_of_changes():
    first, second = Watches(), Watches()
    asked = policies(first, second)
    asked.tell(None, INSTANCE)
    asked.tell(INSTANCE, None)
    assert first.seen == second.seen == [(None, INSTANCE), (INSTANCE, None)]


@pytest.mark.parametrize("order", [list, lambda plugins: plugins[::-1]], ids=["before", "after"])
def test_a_plugin_that_fails_when_told_is_logged_and_stops_nobody(
    order: Callable[[list[object]], list[object]], caplog: pytest.LogCaptureFixture
):
    watches, stumbles = Watches(), Stumbles()
    plugins = order([watches, stumbles])
    policies(*plugins).tell(None, INSTANCE)
    assert f"Plugin plugin-{plugins.index(stumbles)}: its hook opencode_mcp_instance_changed" in caplog.text
    assert "the disk is full" in caplog.text
    assert watches.seen == [(None, INSTANCE)]
