"""Who may join: policies are asked away from the event loop, and whoever is new waits for what they say."""

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from opencode_mcp import Endpoint, Instance, hookimpl
from opencode_mcp.fleet import Fleet, policies
from opencode_mcp.fleet.admission import Admission
from opencode_mcp.fleet.policies import Policies
from opencode_mcp.fleet.watched import Key
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings
from support.fleets import Listed, endpoint, running_fleet, until
from support.held import Held, held, hook_threads

pytestmark = pytest.mark.anyio

LONG = 30.0


class Policy:
    """Admits those who are not on its list, once the test lets it answer."""

    def __init__(self) -> None:
        self.keeps_out: set[str] = set()
        self.asked: list[str] = []
        self.hook = Held()
        self.hook.release()

    @hookimpl
    def opencode_mcp_instance_admit(self, endpoint: Endpoint) -> bool:
        self.asked.append(endpoint.name)
        self.hook()
        return endpoint.name not in self.keeps_out


@pytest.fixture
async def policy() -> AsyncGenerator[Policy]:
    """A policy that is let go at the end, and whose thread has ended then."""
    threads = hook_threads()
    one = Policy()
    yield one
    one.hook.release()
    await until(lambda: not threads())


def at(port: int, name: str, **fields: object) -> Endpoint:
    return endpoint(f"http://127.0.0.1:{port}", name, **fields)


def urls(fleet: Fleet) -> Sequence[str]:
    return [one.endpoint.url for one in fleet.monitors]


def names(fleet: Fleet) -> Sequence[str]:
    return [one.name for one in fleet.monitors]


@asynccontextmanager
async def admission(
    *hooks: object, decided: Callable[[], None] = lambda: None
) -> AsyncGenerator[tuple[Admission, Policies]]:
    plugins = Plugins()
    for number, hook in enumerate(hooks):
        plugins.register(hook, f"plugin-{number}")
    asked = Policies(plugins.hook, CoreSettings())
    one = Admission(asked, decided)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        yield one, asked
        tasks.cancel_scope.cancel()
    await asked.close()


def keyed(*endpoints: Endpoint) -> dict[Key, Endpoint]:
    return {("listed", one.id): one for one in endpoints}


async def test_without_a_policy_whoever_is_published_is_in_at_once_and_no_thread_is_started():
    threads = hook_threads()
    async with admission() as (asked, _):
        one = at(1, "one")
        assert asked.admits(("listed", "one"), one) is True
        asked.consider(keyed(one))
        await asked.settled()
    listed = Listed()
    async with running_fleet(listed) as fleet:
        listed.publish(at(1, "one"))
        fleet._watched[0]._publish([at(1, "one")])
        assert names(fleet) == ["one"]
        assert threads() == []


async def test_whoever_is_new_waits_outside_until_the_policy_has_answered(policy: Policy):
    policy.hook = Held()
    listed = Listed()
    async with running_fleet(listed, hooks=[policy]) as fleet:
        listed.publish(at(1, "one"))
        await until(lambda: policy.asked == ["one"])
        assert names(fleet) == []
        policy.hook.release()
        await until(lambda: names(fleet) == ["one"])


async def test_whoever_is_kept_out_is_told_once_in_the_log(policy: Policy, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "opencode_mcp.fleet.hub")
    policy.keeps_out = {"stranger"}
    listed = Listed()
    async with running_fleet(listed, hooks=[policy]) as fleet:
        for number in range(3):
            listed.publish(at(1, "stranger"), at(2 + number, "friend"))
            await until(lambda url=f"http://127.0.0.1:{2 + number}": urls(fleet) == [url])
        told = [record.getMessage() for record in caplog.records]
        assert told == ["A plugin's policy keeps out stranger at http://127.0.0.1:1."]


async def test_whoever_has_changed_is_asked_about_anew_and_stays_as_it_was_meanwhile(policy: Policy):
    heard = list[tuple[str, str]]()

    class Diary:
        @hookimpl
        def opencode_mcp_instance_changed(self, before: Instance | None, after: Instance | None) -> None:
            if before is None or after is None:
                heard.append((before.endpoint.url if before else "", after.endpoint.url if after else ""))

    listed = Listed()
    async with running_fleet(listed, hooks=[policy, Diary()]) as fleet:
        listed.publish(at(1, "one"), at(5, "other"))
        await until(lambda: names(fleet) == ["one", "other"])
        await fleet._admission.settled()
        policy.hook = Held()
        listed.publish(at(2, "one"), at(5, "other"))
        await until(lambda: policy.hook.entered)
        (one, _) = fleet.monitors
        assert one.endpoint.url.endswith(":1")
        policy.hook.release()
        await until(lambda: one.endpoint.url.endswith(":2"))
        assert fleet.monitors[0] is one
    assert sorted(heard) == [("", "http://127.0.0.1:1"), ("", "http://127.0.0.1:5")]


async def test_whoever_has_changed_and_is_refused_goes(policy: Policy):
    listed = Listed()
    async with running_fleet(listed, hooks=[policy]) as fleet:
        listed.publish(at(1, "one"))
        await until(lambda: names(fleet) == ["one"])
        policy.keeps_out = {"two"}
        listed.publish(at(1, "one").model_copy(update={"name": "two"}))
        await until(lambda: names(fleet) == [])


async def test_one_on_whom_a_policy_hangs_keeps_nobody_else_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policies, "ADMIT_SECONDS", 0.5)
    monkeypatch.setattr("opencode_mcp.fleet.admission._ASKED_AGAIN_SECONDS", 0.02)
    free = threading.Event()

    class Tarpit:
        @hookimpl
        def opencode_mcp_instance_admit(self, endpoint: Endpoint) -> bool:
            if endpoint.id == "tarpit":
                free.wait(2)
            return True

    listed = Listed()
    async with running_fleet(listed, hooks=[Tarpit()]) as fleet:
        listed.publish(at(1, "a"), at(2, "tarpit"), at(3, "b"), at(4, "c"))
        await until(lambda: names(fleet) == ["a", "b", "c"], LONG)
        free.set()
        await until(lambda: names(fleet) == ["a", "b", "c", "tarpit"], LONG)


async def test_a_policy_may_change_its_mind_with_the_next_publication_of_anybody(policy: Policy):
    one, other = Listed("one"), Listed("other")
    async with running_fleet(one, other, hooks=[policy]) as fleet:
        one.publish(at(1, "a"), at(2, "b"))
        other.publish(at(3, "c"))
        await until(lambda: names(fleet) == ["a", "b", "c"])
        policy.keeps_out = {"a", "c"}
        one.publish(at(1, "a"), at(2, "b"))
        await until(lambda: names(fleet) == ["b"])
        policy.keeps_out = {"b"}
        other.publish(at(3, "c"))
        await until(lambda: names(fleet) == ["a", "c"])


async def test_while_a_policy_hangs_nobody_new_joins_and_whoever_is_in_stays(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    one, other = Listed("one"), Listed("other")
    async with running_fleet(one, other, hooks=[policy]) as fleet:
        one.publish(at(1, "a"))
        other.publish(at(2, "b"))
        await until(lambda: names(fleet) == ["a", "b"])
        await fleet._admission.settled()
        monitors = list(fleet.monitors)
        monkeypatch.setattr(policies, "ADMIT_SECONDS", 0.05)
        monkeypatch.setattr("opencode_mcp.fleet.admission._ASKED_AGAIN_SECONDS", 0.02)
        policy.hook = Held()
        one.publish(at(1, "a"), at(3, "new"))
        await until(lambda: fleet.problems)
        other.publish(at(2, "b"), at(4, "newer"))
        await until(lambda: ("other", "newer") in fleet._admission._endpoints and fleet._admission._hung)
        assert fleet.monitors == monitors
        assert "opencode_mcp_instance_admit has not returned within 0.05 s" in fleet.problems[0].reason
        other.publish()  # who leaves does not have to be admitted
        await until(lambda: names(fleet) == ["a"])
        other.publish(at(2, "b"), at(4, "newer"))
        monkeypatch.setattr(policies, "ADMIT_SECONDS", LONG)
        policy.hook.release()
        await until(lambda: names(fleet) == ["a", "b", "new", "newer"])  # without a further publication
        assert fleet.problems == []
        assert fleet.monitors[0] is monitors[0]


async def test_a_policy_that_raises_keeps_out_whoever_was_in(policy: Policy):
    listed = Listed()
    async with running_fleet(listed, hooks=[policy]) as fleet:
        listed.publish(at(1, "one"))
        await until(lambda: names(fleet) == ["one"])
        policy.keeps_out = None  # pyright: ignore[reportAttributeAccessIssue] - so it raises
        listed.publish(at(1, "one"))
        await until(lambda: names(fleet) == [])
        assert "failed with TypeError" in fleet.problems[0].reason


async def test_the_first_look_waits_for_the_verdict_and_not_longer_than_asked_to(policy: Policy):
    policy.hook = Held()
    listed = Listed()
    listed.endpoints = [at(1, "one")]
    async with running_fleet(listed, hooks=[policy]) as fleet:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fleet.discovered, LONG)
            await until(lambda: policy.hook.entered)
            await anyio.wait_all_tasks_blocked()
            assert not fleet._discovered
            policy.hook.release()
        assert names(fleet) == ["one"]
    policy.hook = Held()
    async with running_fleet(listed, hooks=[policy]) as fleet:
        await fleet.first_look(0.05)
        assert names(fleet) == []
        policy.hook.release()
        await until(lambda: names(fleet) == ["one"])


async def test_what_is_published_while_the_policy_answers_is_not_lost(policy: Policy):
    policy.hook = Held()
    decisions = list[Sequence[bool | None]]()
    one, two, three = at(1, "one"), at(2, "two"), at(3, "three")

    def decided() -> None:
        decisions.append([asked.admits(("listed", each.id), each) for each in (one, two, three)])

    async with admission(policy, decided=decided) as (asked, _):
        asked.consider(keyed(one))
        await until(lambda: policy.hook.entered)
        asked.consider(keyed(one, two))
        asked.consider(keyed(two, three))
        policy.hook.release()
        with anyio.fail_after(LONG):
            await asked.settled()
    assert decisions == [[True, None, None], [None, True, True]]
    assert policy.asked == ["one", "two", "three"]


async def test_whoever_waits_for_the_verdict_is_not_forgotten_when_more_is_published(policy: Policy):
    policy.hook = Held()
    settled = list[bool | None]()
    async with admission(policy) as (asked, _), anyio.create_task_group() as tasks:

        async def wait() -> None:
            await asked.settled()
            settled.append(asked.admits(("listed", "two"), at(2, "two")))

        asked.consider(keyed(at(1, "one")))
        await until(lambda: policy.hook.entered)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        asked.consider(keyed(at(2, "two")))
        policy.hook.release()
        await until(lambda: settled)
    assert settled == [True]


async def test_an_endpoint_that_comes_twice_is_admitted_once_for_each_transport(policy: Policy):
    """Two transports may use one id; a verdict belongs to what its own transport said."""
    one, other = Listed("one"), Listed("other")
    policy.keeps_out = {"b"}
    async with running_fleet(one, other, hooks=[policy]) as fleet:
        one.publish(at(1, "a", id="same"))
        other.publish(at(2, "b", id="same"))
        await until(lambda: set(policy.asked) == {"a", "b"} and names(fleet) == ["a"])
        await fleet._admission.settled()
        assert names(fleet) == ["a"]


async def test_leaving_is_prompt_while_a_policy_hangs():
    threads = hook_threads()
    with held() as hook:

        class Hangs:
            @hookimpl
            def opencode_mcp_instance_admit(self) -> None:
                hook()

        listed = Listed()
        with anyio.fail_after(LONG):
            async with running_fleet(listed, hooks=[Hangs()]):
                listed.publish(at(1, "one"))
                await until(lambda: hook.entered)
        assert len(threads()) == 1
    await until(lambda: not threads())
