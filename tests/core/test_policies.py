"""What plugins decide about instances, and what becomes of a plugin that fails at it."""

import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import httpx2
import pytest

from opencode_mcp import Action, Endpoint, Instance, hookimpl, opencode_auth
from opencode_mcp.fleet import policies as module
from opencode_mcp.fleet.policies import Policies
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings
from support.fleets import until
from support.held import held, hook_threads

pytestmark = pytest.mark.anyio

MEND = "If that is its own defect, update that package, or uninstall it."
ENDPOINT = Endpoint(id="1", name="laptop", url="http://127.0.0.1:4096")
VOUCHED = ENDPOINT.model_copy(update={"vouched": True})
INSTANCE = Instance(name="laptop", transport="listed", endpoint=ENDPOINT)
ACTION = Action(id="1", kind="read", instance=INSTANCE, caller="cli", began=datetime.now(UTC))


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
def time_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAVE_SECONDS", 30.0)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENCODE_SERVER_USERNAME", "OPENCODE_SERVER_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def policies(
    *plugins: object, password: str | None = None, username: str = "opencode"
) -> AsyncGenerator[Policies]:
    """Ask plugins that were registered as `plugin-0`, `plugin-1`, …: the last one is asked first."""
    loaded = Plugins()
    for number, plugin in enumerate(plugins):
        loaded.register(plugin, f"plugin-{number}")
    given = {"OPENCODE_SERVER_PASSWORD": password, "OPENCODE_SERVER_USERNAME": username}
    asked = Policies(loaded.hook, CoreSettings.model_validate(given))
    try:
        yield asked
    finally:
        await asked.close()


@pytest.fixture(autouse=True)
async def threads() -> AsyncGenerator[Callable[[], Sequence[str]]]:
    """Says which threads of hooks the test has; each must be able to end."""
    mine = hook_threads()
    yield mine
    await until(lambda: not mine(), show=mine)


def credentials(auth: httpx2.Auth | None) -> str | None:
    """Return what `auth` puts into a request."""
    if auth is None:
        return None
    request = next(auth.sync_auth_flow(httpx2.Request("GET", "http://127.0.0.1")))
    return request.headers.get("authorization")


def messages(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    return [record.getMessage() for record in caplog.records]


def reasons(asked: Policies) -> Sequence[str]:
    return [one.reason for one in asked.problems]


async def test_without_a_policy_everybody_joins_and_no_thread_is_started(
    threads: Callable[[], Sequence[str]],
):
    async with policies() as asked:
        assert await asked.admit(ENDPOINT)
        assert await asked.authenticate(ENDPOINT) is None
        asked.tell(None, INSTANCE)
        asked.audit(ACTION)
        await asked.watch()  # there is nobody to watch
        assert (asked.decides, asked.problems, threads()) == (False, [], [])


@pytest.mark.parametrize(
    ("answers", "joins"),
    [
        ([True], True),
        ([False], False),
        ([0], False),  # a policy that is careless with types must not let through
        ([1], True),
        ([None], True),
        ([None, False], False),
        ([False, None], False),
        ([True, False], False),  # the last one registered is asked first, and its answer stands
        ([False, True], True),
    ],
)
async def test_the_first_answer_decides_who_joins(answers: list[object], joins: bool):
    async with policies(*map(Admits, answers)) as asked:
        assert await asked.admit(ENDPOINT) is joins
        assert asked.decides


async def test_many_are_asked_about_at_once_and_each_has_its_own_answer():
    ports = range(1, 501)
    endpoints = [Endpoint(id=f"{port}", name="x", url=f"http://127.0.0.1:{port}") for port in ports]
    asked_twice = list[str]()

    class First:
        @hookimpl
        def opencode_mcp_instance_admit(self, endpoint: Endpoint) -> bool | None:
            return None if int(endpoint.id) % 3 == 0 else int(endpoint.id) % 3 == 1

    class Second:
        @hookimpl
        def opencode_mcp_instance_admit(self, endpoint: Endpoint) -> bool | None:
            asked_twice.append(endpoint.id)
            return None if int(endpoint.id) % 2 else False

    async with policies(Second(), First()) as asked:
        found, _ = await asked.admitted(endpoints)
        assert await asked.admitted([]) == ([], None)
    assert found == [port % 3 == 1 or port % 6 == 3 for port in ports]
    assert asked_twice == [f"{port}" for port in ports if port % 3 == 0]


@pytest.mark.parametrize("error", [ValueError("no idea"), SystemExit("no idea")])
async def test_a_policy_that_fails_keeps_out_and_is_logged_with_its_name(
    error: BaseException, caplog: pytest.LogCaptureFixture
):
    class Fails:
        @hookimpl
        def opencode_mcp_instance_admit(self) -> bool:
            raise error

    how = f"failed with {type(error).__name__}. {MEND}"
    async with policies(Admits(True), Fails()) as asked:
        assert not await asked.admit(ENDPOINT)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.getMessage() == f"Plugin plugin-1: its hook opencode_mcp_instance_admit {how}"
        assert "no idea" in caplog.text
        (problem,) = asked.problems
        assert problem.source == "plugin plugin-1"
        assert problem.reason == f"Its hook opencode_mcp_instance_admit {how}"


async def test_a_failure_deep_in_a_plugin_is_laid_to_that_plugin_alone(caplog: pytest.LogCaptureFixture):
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        raise ValueError("no idea")

    class Deep:
        @hookimpl
        def opencode_mcp_instance_admit(self) -> None:
            deep(5)

    async with policies(Deep(), Admits(None)) as asked:
        assert not await asked.admit(ENDPOINT)
        assert [one.source for one in asked.problems] == ["plugin plugin-0"]
    assert "Plugin plugin-0: its hook" in caplog.text


async def test_a_policy_that_hangs_keeps_out_and_its_answer_is_not_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "ADMIT_SECONDS", 0.1)
    with held() as hook:

        class Hangs:
            @hookimpl
            def opencode_mcp_instance_admit(self) -> None:
                hook()

        async with policies(Admits(True), Hangs()) as asked:
            assert not await asked.admit(ENDPOINT)
            assert await asked.admitted([ENDPOINT, ENDPOINT]) == (
                [None, None],
                None,
            )  # the first one hangs still
            told = "its hook opencode_mcp_instance_admit has not returned within 0.1 s."
            assert messages(caplog) == [
                f"Plugin plugin-1: {told} If that is its own defect, update that package, or uninstall it."
            ]
            assert len(asked.problems) == 1
            monkeypatch.setattr(module, "ADMIT_SECONDS", 30.0)
            hook.release()
            await until(lambda: not _busy(asked))
            assert await asked.admitted([ENDPOINT, ENDPOINT]) == ([True, True], None)
            assert asked.problems == []


def _busy(asked: Policies) -> bool:
    return any(thread.call for thread in (*asked._asked.values(), *asked._told.values()))


async def test_a_policy_that_answers_before_one_that_hangs_decides():
    with held() as hook:

        class Hangs:
            @hookimpl
            def opencode_mcp_instance_admit(self) -> None:
                hook()

        for verdict in (True, False):
            async with policies(Hangs(), Admits(verdict)) as asked:
                assert (await asked.admitted([ENDPOINT]))[0] == [verdict]


async def test_without_credentials_none_are_sent():
    async with policies() as asked:
        assert await asked.authenticate(VOUCHED) is None


async def test_the_password_of_the_settings_goes_to_vouched_endpoints_only():
    async with policies(password="hunter2") as asked:
        auth = await asked.authenticate(VOUCHED)
        assert credentials(auth) == credentials(httpx2.BasicAuth("opencode", "hunter2"))
        assert await asked.authenticate(ENDPOINT) is None


async def test_the_user_name_of_the_settings_goes_with_it():
    async with policies(password="hunter2", username="me") as asked:
        auth = await asked.authenticate(VOUCHED)
    assert credentials(auth) == credentials(httpx2.BasicAuth("me", "hunter2"))


@pytest.mark.parametrize("endpoint", [ENDPOINT, VOUCHED], ids=["stranger", "vouched"])
@pytest.mark.parametrize("own", [httpx2.BasicAuth("plugin", "its own"), opencode_auth("its own")])
async def test_a_plugins_credentials_win_and_go_wherever_it_says(
    endpoint: Endpoint, own: httpx2.Auth, caplog: pytest.LogCaptureFixture
):
    async with policies(Authenticates(own), password="hunter2") as asked:
        assert await asked.authenticate(endpoint) is own
    async with policies(Authenticates(own), Authenticates(None)) as asked:
        assert await asked.authenticate(endpoint) is own
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        (
            Authenticates(ValueError("no idea")),
            "Plugin plugin-0: its hook opencode_mcp_instance_auth failed with ValueError",
        ),
        (Authenticates(("me", "s3cret")), "gave tuple for credentials, not httpx2.Auth: it does not count"),
    ],
    ids=["raises", "returns garbage"],
)
async def test_a_plugin_that_gives_no_credentials_is_logged_and_those_of_the_settings_serve(
    plugin: Authenticates, told: str, caplog: pytest.LogCaptureFixture
):
    async with policies(plugin, password="hunter2") as asked:
        assert await asked.authenticate(ENDPOINT) is None
        assert len(caplog.records) == 1
        auth = await asked.authenticate(VOUCHED)
        assert credentials(auth) == credentials(httpx2.BasicAuth("opencode", "hunter2"))
        assert len(asked.problems) == 1
        assert "s3cret" not in str(asked.problems)
    assert len(caplog.records) == 1
    assert told in caplog.text
    assert "s3cret" not in caplog.text
    assert "hunter2" not in caplog.text


async def test_where_credentials_hang_the_next_plugin_is_asked_and_then_the_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "AUTH_SECONDS", 0.1)
    own = httpx2.BasicAuth("plugin", "its own")
    with held() as hook:

        class Hangs:
            @hookimpl
            def opencode_mcp_instance_auth(self) -> httpx2.Auth:
                monkeypatch.setattr(module, "AUTH_SECONDS", 30.0)  # for whoever is asked next
                hook()
                return httpx2.BasicAuth("too", "late")

        async with policies(Authenticates(own), Hangs(), password="hunter2") as asked:
            assert await asked.authenticate(VOUCHED) is own
        monkeypatch.setattr(module, "AUTH_SECONDS", 0.1)
        async with policies(Hangs(), password="hunter2") as asked:
            auth = await asked.authenticate(VOUCHED)
            assert credentials(auth) == credentials(httpx2.BasicAuth("opencode", "hunter2"))
            monkeypatch.setattr(module, "AUTH_SECONDS", 0.1)
            assert await asked.authenticate(ENDPOINT) is None
            told = "opencode_mcp_instance_auth has not returned within 0.1 s."
            assert reasons(asked) == [
                f"Its hook {told} If that is its own defect, update that package, or uninstall it."
            ]
            monkeypatch.setattr(module, "AUTH_SECONDS", 30.0)
            assert len(messages(caplog)) == 2  # one of each fleet
            hook.release()
            await until(lambda: not _busy(asked))
            auth = await asked.authenticate(ENDPOINT)
            assert credentials(auth) == credentials(httpx2.BasicAuth("too", "late"))
            assert asked.problems == []


async def test_plugins_are_told_of_changes():
    first, second = Watches(), Watches()
    async with policies(first, second) as asked:
        asked.tell(None, INSTANCE)
        asked.tell(INSTANCE, None)
    assert first.seen == second.seen == [(None, INSTANCE), (INSTANCE, None)]


async def test_plugins_are_told_of_actions_in_the_order_with_the_changes():
    seen = list[object]()

    class Notes:
        @hookimpl
        def opencode_mcp_instance_changed(self, after: Instance | None) -> None:
            seen.append(after)

        @hookimpl
        def opencode_mcp_instance_audit(self, action: Action) -> None:
            seen.append(action)

    async with policies(Notes()) as asked:
        asked.tell(None, INSTANCE)
        asked.audit(ACTION)
        asked.tell(INSTANCE, None)
    assert seen == [INSTANCE, ACTION, None]


@pytest.mark.parametrize("order", [list, lambda plugins: plugins[::-1]], ids=["before", "after"])
async def test_a_plugin_that_fails_when_told_is_logged_and_stops_nobody(
    order: Callable[[list[object]], list[object]], caplog: pytest.LogCaptureFixture
):
    watches, stumbles = Watches(), Stumbles()
    plugins = order([watches, stumbles])
    async with policies(*plugins) as asked:
        asked.tell(None, INSTANCE)
    told = (
        "its hook opencode_mcp_instance_changed failed with OSError. If that is its own defect, update that "
        "package, or uninstall it."
    )
    assert messages(caplog) == [f"Plugin plugin-{plugins.index(stumbles)}: {told}"]
    assert "the disk is full" in caplog.text
    assert watches.seen == [(None, INSTANCE)]


async def test_a_hook_under_another_name_is_reported_by_the_name_of_the_hook(
    caplog: pytest.LogCaptureFixture,
):
    class Renamed:
        @hookimpl(specname="opencode_mcp_instance_changed")
        def note_a_change(self, after: Instance | None) -> None:
            raise OSError("the disk is full")

    async with policies(Renamed()) as asked:
        asked.tell(None, INSTANCE)
        await until(lambda: asked.problems)
        assert reasons(asked)[0].startswith("Its hook opencode_mcp_instance_changed failed with OSError.")
    assert "Plugin plugin-0: its hook opencode_mcp_instance_changed failed" in caplog.text


async def test_a_plugin_may_ask_to_be_called_first_or_last():
    class Last:
        @hookimpl(trylast=True)
        def opencode_mcp_instance_admit(self) -> bool:
            return True

    class First:
        @hookimpl(tryfirst=True)
        def opencode_mcp_instance_admit(self) -> bool:
            return False

    async with policies(First(), Last()) as asked:
        assert not await asked.admit(ENDPOINT)


async def test_a_problem_is_shown_until_the_hook_works_again():
    admits = Admits(ValueError("no idea"))
    async with policies(admits) as asked:
        await asked.admit(ENDPOINT)
        assert len(asked.problems) == 1
        admits.answer = True
        assert await asked.admit(ENDPOINT)
        assert asked.problems == []


async def test_a_failure_that_comes_again_is_logged_once_an_hour(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    admits, stumbles = Admits(ValueError("no idea")), Stumbles()
    async with policies(admits, stumbles) as asked:
        for _ in range(5):
            await asked.admit(ENDPOINT)
            admits.answer = True
            await asked.admit(ENDPOINT)  # that it works in between makes no difference
            admits.answer = ValueError("no idea")
            asked.tell(None, INSTANCE)
        await asked.close()
        assert len(messages(caplog)) == len(set(messages(caplog))) == 2
        admits.answer = KeyError("something else")
        await asked.admit(ENDPOINT)
        assert len(messages(caplog)) == 3
        monkeypatch.setattr(module, "_LOGGED_AGAIN_SECONDS", -1.0)
        await asked.admit(ENDPOINT)
        assert messages(caplog)[3:] == messages(caplog)[2:3]


@pytest.mark.parametrize("hanging", ["changed", "audit"])
async def test_a_hook_that_hangs_when_told_is_reported_and_no_other_one(
    hanging: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "_TOLD_SECONDS", 30.0)
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.01)
    watches = Watches()
    with held() as hook:

        class Hangs:
            @hookimpl
            def opencode_mcp_instance_changed(self) -> None:
                if hanging == "changed":
                    hook()

            @hookimpl
            def opencode_mcp_instance_audit(self) -> None:
                if hanging == "audit":
                    hook()

        async with policies(Hangs(), watches) as asked, anyio.create_task_group() as tasks:
            tasks.start_soon(asked.watch)
            asked.tell(None, INSTANCE)
            asked.audit(ACTION)
            await until(lambda: hook.entered and watches.seen)  # another plugin is told all the same
            monkeypatch.setattr(module, "_TOLD_SECONDS", 0.05)
            await until(lambda: asked.problems)
            told = f"opencode_mcp_instance_{hanging} has not returned within 0.05 s."
            assert reasons(asked) == [
                f"Its hook {told} If that is its own defect, update that package, or uninstall it."
            ]
            assert len(messages(caplog)) == 1
            monkeypatch.setattr(module, "_TOLD_SECONDS", 30.0)
            hook.release()
            await until(lambda: not _busy(asked) and not asked.problems)
            tasks.cancel_scope.cancel()


async def test_a_plugin_is_told_of_every_change_in_order_under_load():
    watches, slow = Watches(), list[str]()

    class Slow:
        @hookimpl
        def opencode_mcp_instance_changed(self, after: Instance) -> None:
            threading.Event().wait(0.0001)
            slow.append(after.name)

    instances = [Instance(name=f"{number}", transport="x", endpoint=ENDPOINT) for number in range(500)]
    async with policies(watches, Slow()) as asked:
        for one in instances:
            asked.tell(None, one)
        await until(lambda: len(slow) == 500, seconds=30)
        assert asked.problems == []
    assert slow == [one.name for one in instances]
    assert watches.seen == [(None, one) for one in instances]


async def test_a_plugin_that_is_too_far_behind_is_reported_and_hears_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("opencode_mcp.fleet.hook_thread._MOST_WAITING", 10)
    heard = list[Instance | None]()
    with held() as hook:

        class Lags:
            @hookimpl
            def opencode_mcp_instance_changed(self, after: Instance | None) -> None:
                hook()
                heard.append(after)

        async with policies(Lags()) as asked:
            asked.tell(None, INSTANCE)
            await until(lambda: hook.entered)
            for _ in range(100):
                asked.tell(None, INSTANCE)
            told = "opencode_mcp_instance_changed is so far behind that it is not told everything."
            assert reasons(asked) == [
                f"Its hook {told} If that is its own defect, update that package, or uninstall it."
            ]
            assert len(messages(caplog)) == 1
            hook.release()
    assert len(heard) == 11


async def test_the_end_waits_a_moment_for_what_was_not_told_yet():
    heard = list[Instance | None]()
    with held() as hook:

        class Slow:
            @hookimpl
            def opencode_mcp_instance_changed(self, after: Instance | None) -> None:
                hook()
                heard.append(after)

        async with policies(Slow()) as asked, anyio.create_task_group() as tasks:
            for _ in range(3):
                asked.tell(None, INSTANCE)
            await until(lambda: hook.entered)
            tasks.start_soon(asked.close)
            await anyio.wait_all_tasks_blocked()
            assert heard == []
            hook.release()
        assert heard == [INSTANCE] * 3


async def test_the_end_does_not_wait_for_a_hook_that_hangs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LEAVE_SECONDS", 0.05)
    watches = Watches()
    with held() as hook:

        class Hangs:
            @hookimpl
            def opencode_mcp_instance_changed(self) -> None:
                hook()

        with anyio.fail_after(30), anyio.CancelScope() as scope:
            async with policies(Hangs(), watches) as asked:
                for _ in range(3):
                    asked.tell(None, INSTANCE)
                await until(lambda: len(watches.seen) == 3)
                scope.cancel()  # as the process is told to end
    assert watches.seen == [(None, INSTANCE)] * 3


async def test_after_the_end_it_may_begin_anew():
    watches = Watches()
    async with policies(Admits(False), watches) as asked:
        for _ in range(2):
            assert not await asked.admit(ENDPOINT)
            asked.tell(None, INSTANCE)
            await asked.close()
    assert watches.seen == [(None, INSTANCE)] * 2
