"""The live picture, on servers that work, die, come back and move."""

import contextlib
import errno
import sys
from typing import Any

import anyio
import httpx2
import pytest

from opencode_mcp import Instance, Route, Status, TransportError, hookimpl, opencode_auth
from opencode_mcp.errors import RequestError
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.model import Activity
from opencode_mcp.opencode.http import STRANGERS_EVENT
from opencode_mcp.testing import FakeOpenCode, Fault, Gate, Reply, ToolCall
from opencode_mcp.text import has_unsafe
from support.fleets import FAST, Listed, endpoint, only, running_fleet, status, until
from support.generations import Keyring, MakeFake

pytestmark = pytest.mark.anyio


async def test_an_announced_server_comes_online_with_what_is_known_of_it(make_fake: MakeFake):
    fake, listed = make_fake(directory="/srv/shop"), Listed()
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        fake.create_session("Older")
        fake.create_session("Fix the till")
        listed.publish(endpoint(fake, hostname="box", directory="/elsewhere"))
        await until(lambda: fleet.monitors and only(fleet).instance.activity)
        instance = only(fleet).instance
        assert instance.status is Status.ONLINE
        assert instance.version == make_fake.version
        assert instance.directory == "/srv/shop"  # the server knows better than the announcement
        assert instance.activity is Activity.IDLE
        assert instance.session is not None
        assert instance.session.title == "Fix the till"
        assert only(fleet).last_seen is not None


async def test_busy_and_idle_and_titles_follow_events_without_any_request(make_fake: MakeFake):
    fake, listed = make_fake(), Listed()
    async with fake.serve(), running_fleet(listed, pace=Pace(), server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).instance.activity)
        asked = len(fake.requests)
        session = fake.create_session("New task")
        await until(lambda: (only(fleet).instance.session or instance_without_session()).title == "New task")
        fake.set_busy(session)
        await until(lambda: only(fleet).instance.activity is Activity.BUSY)
        fake.set_busy(session, busy=False)
        await until(lambda: only(fleet).instance.activity is Activity.IDLE)
        assert len(fake.requests) == asked


def instance_without_session():
    class Untitled:
        title = ""

    return Untitled()


async def test_what_a_person_is_asked_for_is_shown_and_goes_when_answered(make_fake: MakeFake):
    fake, listed = make_fake(), Listed()
    fake.script(Reply(tools=[ToolCall(asks=True)], text="ok"))
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).instance.activity)
        session = fake.create_session("s")
        fake.prompt(session, "go")
        await until(lambda: only(fleet).instance.waiting_for)
        assert "echo hi" in only(fleet).instance.waiting_for
        await only(fleet).api.abort(session)
        await until(lambda: not only(fleet).instance.waiting_for)


@pytest.mark.slow
async def test_a_killed_server_is_offline_within_two_seconds_and_comes_back(make_fake: MakeFake):
    fake, listed = make_fake(), Listed()
    async with running_fleet(listed, pace=Pace(), server_password=make_fake.password) as fleet:
        async with fake.serve():
            listed.publish(endpoint(fake))
            await until(lambda: status(fleet) == "online")
            await fake.kill()
        await until(lambda: status(fleet) == "offline", seconds=2)
        assert only(fleet).instance.detail == "Nothing accepts connections at its address."
        assert only(fleet).last_seen is not None
        async with fake.serve(port=fake.port):
            only(fleet).nudge()
            await until(lambda: status(fleet) == "online", seconds=5)


async def test_one_failure_makes_it_unreachable_and_not_yet_offline(make_fake: MakeFake):
    fake, listed, seen = make_fake(), Listed(), list[str]()

    class Diary:
        @hookimpl
        def opencode_mcp_instance_changed(self, before: Instance | None, after: Instance | None):
            if after is not None:
                seen.append(after.status.value)

    async with running_fleet(listed, hooks=[Diary()], server_password=make_fake.password) as fleet:
        async with fake.serve():
            listed.publish(endpoint(fake))
            await until(lambda: fleet.monitors and only(fleet).streaming)
            fake.cut_streams()
            await until(lambda: "unreachable" in seen and status(fleet) == "online")
            assert "offline" not in seen
            await fake.kill()
        await until(lambda: status(fleet) == "offline" and "offline" in seen)
        assert seen.index("unreachable") < seen.index("offline")


@pytest.mark.slow
async def test_a_server_that_falls_silent_is_noticed_and_its_return_too(make_fake: MakeFake):
    fake, listed = make_fake(heartbeat_seconds=0.1), Listed()
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "online")
        fake.fault = Fault.HANG
        await until(lambda: status(fleet) == "offline", seconds=8)
        assert only(fleet).instance.detail == "It did not answer in time."
        fake.fault = None
        await until(lambda: status(fleet) == "online")


async def test_a_quiet_but_living_server_stays_online(make_fake: MakeFake):
    fake, listed = make_fake(heartbeat_seconds=60), Listed()
    quick = Pace(probe=0.5, silence=0.05, mute=60, silence_of_2=0.05, mute_of_2=60)
    health = make_fake.either("/global/health", "/api/health" if make_fake.preview else "/api/info")
    async with fake.serve(), running_fleet(listed, pace=quick, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "online")
        asked = len(fake.requests)
        await until(lambda: sum(one.path == health for one in list(fake.requests)[asked:]) >= 3)
        assert status(fleet) == "online"


async def test_what_a_stream_misses_in_its_first_moments_is_learnt_by_the_snapshot():
    fake, listed = FakeOpenCode(deaf_seconds=0.2), Listed()
    async with fake.serve(), running_fleet(listed, pace=Pace()) as fleet:
        session = fake.create_session("s")
        listed.publish(endpoint(fake))
        await until(lambda: fake.streams)
        fake.set_busy(session)  # the stream is open, and says nothing of it
        await until(lambda: fleet.monitors and only(fleet).instance.activity is Activity.BUSY)


@pytest.mark.slow
async def test_what_changed_while_the_stream_was_cut_is_learnt_afterwards(make_fake: MakeFake):
    fake, listed = make_fake(), Listed()
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        session = fake.create_session("s")
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).instance.activity is Activity.IDLE)
        fake.fault = Fault.STREAM_CUT
        fake.set_busy(session)
        fake.fault = None
        await until(lambda: only(fleet).instance.activity is Activity.BUSY)


async def test_a_server_whose_stream_says_nothing_is_polled(make_fake: MakeFake):
    fake, listed = make_fake(), Listed()
    fake.fault = Fault.STREAM_SILENT
    async with fake.serve(), running_fleet(listed, server_password=make_fake.password) as fleet:
        session = fake.create_session("s")
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).instance.activity is Activity.IDLE)
        assert not only(fleet).streaming
        fake.set_busy(session)
        await until(lambda: only(fleet).instance.activity is Activity.BUSY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault.HANG,
        Fault.DRIP,
        Fault.HUGE,
        Fault.REDIRECT,
        Fault.GARBAGE,
        Fault.HTML,
        Fault.RESET,
        Fault.SERVER_ERROR,
    ],
)
async def test_a_faulty_server_is_bounded_never_online_and_holds_up_nobody(fault: Fault):
    bad, good, listed = FakeOpenCode(), FakeOpenCode(), Listed()
    bad.fault = fault
    async with bad.serve(), good.serve(), running_fleet(listed) as fleet:
        listed.publish(endpoint(bad, "bad"), endpoint(good, "good"))
        await until(lambda: status(fleet, "good") == "online", seconds=1)
        await until(lambda: status(fleet, "bad") == "offline", seconds=5)
        detail = next(one.instance.detail for one in fleet.monitors if one.name == "bad")
        assert detail
        paths = {one.path for one in bad.requests}
        assert paths <= {"/global/health", "/api/info", "/api/health"}


async def test_a_redirect_is_not_followed(make_fake: MakeFake):
    bad, elsewhere, listed = make_fake(), make_fake(), Listed()
    async with (
        bad.serve(),
        elsewhere.serve(),
        running_fleet(listed, server_password=make_fake.password) as fleet,
    ):
        bad.fault, bad.redirect_to = Fault.REDIRECT, f"{elsewhere.url}/global/health"
        listed.publish(endpoint(bad))
        await until(lambda: status(fleet) == "offline")
        assert "redirect" in only(fleet).instance.detail
        assert not elsewhere.requests


async def test_the_first_look_never_waits_for_a_server_that_hangs(make_fake: MakeFake):
    bad, listed = make_fake(), Listed()
    bad.fault = Fault.HANG
    async with bad.serve(), running_fleet(listed, pace=Pace(), server_password=make_fake.password) as fleet:
        listed.publish(endpoint(bad))
        await until(lambda: bad.requests)
        await fleet.first_look(0.05)
        assert status(fleet) == "connecting"


async def test_leaving_is_prompt_while_servers_hang(make_fake: MakeFake):
    bad, listed = make_fake(), Listed()
    bad.fault = Fault.HANG
    async with bad.serve():
        async with running_fleet(listed, pace=Pace(), server_password=make_fake.password):
            listed.publish(endpoint(bad))
            await until(lambda: bad.requests)
        # Reaching this line at all is the point: the suite's time-out catches a hang.
        await until(lambda: bad.streams == 0, seconds=1)


async def test_a_password_is_sent_when_asked_for_and_the_instance_is_online(make_fake: MakeFake):
    fake, listed = make_fake(password="s3cret"), Listed()
    async with fake.serve(), running_fleet(listed, server_password="s3cret") as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).instance.activity)
        assert "authorization" not in fake.requests[0].headers


async def test_no_password_is_sent_to_a_server_that_wants_none():
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), running_fleet(listed, server_password="s3cret") as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).instance.activity)
        assert not any("authorization" in one.headers for one in fake.requests)


@pytest.mark.parametrize(("password", "says"), [(None, "set OPENCODE_SERVER_PASSWORD"), ("wrong", "check ")])
async def test_without_the_right_password_it_needs_credentials_and_is_not_forgotten(
    password, says, make_fake: MakeFake
):
    fake, listed = make_fake(password="s3cret"), Listed()
    listed.forget_after_seconds = 0.01
    async with fake.serve(), running_fleet(listed, server_password=password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "needs credentials")
        assert says in only(fleet).instance.detail
        assert "OPENCODE_SERVER_PASSWORD" in only(fleet).instance.detail
        asked = len(fake.requests)
        await until(lambda: len(fake.requests) > asked + 4)
        assert not listed.forgotten


async def test_a_password_never_goes_to_an_endpoint_that_nobody_vouches_for(make_fake: MakeFake):
    fake, listed = make_fake(password="s3cret"), Listed()
    async with fake.serve(), running_fleet(listed, server_password="s3cret") as fleet:
        listed.publish(endpoint(fake, vouched=False))
        await until(lambda: status(fleet) == "needs credentials")
        assert not any("authorization" in one.headers for one in fake.requests)


async def test_a_withdrawn_endpoint_leaves():
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), running_fleet(listed) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "online")
        listed.publish()
        await until(lambda: not fleet.monitors)
        await until(lambda: fake.streams == 0)


async def test_a_server_that_moved_keeps_its_name_and_is_followed(make_fake: MakeFake):
    first, second, listed = make_fake(), make_fake(directory="/moved"), Listed()
    second.create_session("s")  # which says where, of 2.x
    async with (
        first.serve(),
        second.serve(),
        running_fleet(listed, server_password=make_fake.password) as fleet,
    ):
        listed.publish(endpoint(first, id="x"))
        await until(lambda: status(fleet) == "online")
        listed.publish(endpoint(second, id="x"))
        await until(lambda: only(fleet).instance.directory == "/moved" and status(fleet) == "online")
        await until(lambda: first.streams == 0)


async def test_one_name_twice_makes_two_instances_and_one_server_twice_makes_one():
    first, second, listed = FakeOpenCode(), FakeOpenCode(), Listed()
    async with (
        first.serve(),
        second.serve(),
        running_fleet(listed) as fleet,
    ):
        listed.publish(
            endpoint(first, "web", id="a"), endpoint(second, "web", id="b"), endpoint(first, "web", id="c")
        )
        await until(lambda: len(fleet.monitors) == 2)
        assert {one.name: one.endpoint.id for one in fleet.monitors} == {"web": "a", "web-2": "b"}
        listed.publish(endpoint(second, "web", id="b"), endpoint(first, "web", id="a"))
        listed.publish(endpoint(second, "web", id="b"))
        await until(lambda: len(fleet.monitors) == 1)
        assert only(fleet).name == "web-2"


@pytest.mark.slow
async def test_a_transport_that_fails_keeps_its_last_set_and_says_so_until_it_is_mended():
    fake, good, bad = FakeOpenCode(), Listed("good"), Listed("bad")
    async with fake.serve(), running_fleet(good, bad) as fleet:
        good.publish(endpoint(fake, "one"))
        bad.publish(endpoint("http://127.0.0.1:1", "two"))
        await until(lambda: len(fleet.monitors) == 2 and status(fleet, "one") == "online")
        bad.fail(TransportError("The directory is gone."))
        await until(lambda: [one.reason for one in fleet.problems] == ["The directory is gone."])
        assert len(fleet.monitors) == 2
        bad.fail(None)
        await until(lambda: not fleet.problems)
        assert status(fleet, "one") == "online"


async def test_a_transport_that_fails_from_the_start_does_not_delay_the_first_look():
    fake, good, bad = FakeOpenCode(), Listed("good"), Listed("bad")
    bad.fail(RuntimeError("what now"))
    async with fake.serve(), running_fleet(good, bad) as fleet:
        good.publish(endpoint(fake))
        await fleet.first_look(3)
        await until(lambda: status(fleet) == "online")
        assert "RuntimeError" in fleet.problems[0].reason


async def test_a_transport_that_publishes_far_too_much_is_cut_off_and_reported(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("opencode_mcp.fleet.publication.MOST", 3)
    listed = Listed()
    many = [endpoint(f"http://127.0.0.1:{1 + number}", f"n{number}") for number in range(5)]
    async with running_fleet(listed) as fleet:
        listed.publish(*many)
        await until(lambda: fleet.problems and "5 endpoints" in fleet.problems[0].reason)
        assert [one.name for one in fleet.monitors] == ["n0", "n1", "n2"]


@pytest.mark.slow
async def test_forget_is_called_only_after_failing_for_the_whole_time(make_fake: MakeFake):
    fake, listed = make_fake(), Listed()
    listed.forget_after_seconds = 0.6
    async with running_fleet(listed, server_password=make_fake.password) as fleet:
        async with fake.serve():
            listed.publish(endpoint(fake))
            await until(lambda: status(fleet) == "online")
            await fake.kill()
        await until(lambda: status(fleet) == "offline")
        assert not listed.forgotten
        async with fake.serve(port=fake.port):
            await until(lambda: status(fleet) == "online")
            assert not listed.forgotten
            await fake.kill()
        await until(lambda: listed.forgotten)
        assert listed.forgotten[0].id == "laptop"


@pytest.mark.slow
async def test_a_connect_that_raises_or_hangs_is_a_failure_of_that_instance_only():
    fake = FakeOpenCode()

    class Odd(Listed):
        def connect(self, endpoint):
            if endpoint.name == "fine":
                return super().connect(endpoint)

            @contextlib.asynccontextmanager
            async def odd():
                if endpoint.name == "raises":
                    raise ZeroDivisionError
                await anyio.sleep_forever()
                yield Route(base_url="")

            return odd()

    listed = Odd()
    async with fake.serve(), running_fleet(listed) as fleet:
        listed.publish(
            endpoint("http://127.0.0.1:1", "raises"),
            endpoint("http://127.0.0.1:2", "hangs"),
            endpoint(fake, "fine"),
        )
        await until(lambda: status(fleet, "fine") == "online")
        await until(lambda: status(fleet, "raises") == "offline")
        await until(lambda: status(fleet, "hangs") != "connecting", seconds=5)
        by_name = {one.name: one.instance.detail for one in fleet.monitors}
        assert "ZeroDivisionError" in by_name["raises"]
        assert "in time" in by_name["hangs"]


async def test_plugins_are_told_who_joined_changed_and_left():
    fake, listed, heard = FakeOpenCode(), Listed(), list[tuple[str | None, str | None]]()

    class Diary:
        @hookimpl
        def opencode_mcp_instance_changed(self, before: Instance | None, after: Instance | None):
            heard.append((before and before.status.value, after and after.status.value))

    async with (
        fake.serve(),
        running_fleet(listed, hooks=[Diary()]) as fleet,
    ):
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "online")
        listed.publish()
        await until(lambda: heard and heard[-1][1] is None)
        assert heard[0] == (None, "connecting")
        assert ("connecting", "online") in heard
        assert heard[-1] == ("online", None)


async def test_a_policy_keeps_an_endpoint_out():
    fake, listed = FakeOpenCode(), Listed()

    class Policy:
        @hookimpl
        def opencode_mcp_instance_admit(self, endpoint):
            return endpoint.name != "stranger"

    async with (
        fake.serve(),
        running_fleet(listed, hooks=[Policy()]) as fleet,
    ):
        listed.publish(endpoint("http://127.0.0.1:1", "stranger"), endpoint(fake, "friend"))
        await until(lambda: status(fleet, "friend") == "online")
        assert [one.name for one in fleet.monitors] == ["friend"]


@pytest.mark.slow
async def test_a_turn_in_a_project_elsewhere_on_the_same_server_makes_it_busy(make_fake: MakeFake):
    fake, listed, gate = make_fake(directory="/srv/a"), Listed(), Gate()
    fake.script(Reply(chunks=["x"], gate=gate))
    async with fake.serve(), running_fleet(listed, pace=FAST, server_password=make_fake.password) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).instance.activity)
        other = fake.create_session("other", directory="/srv/b")
        fake.prompt(other, "go")
        await until(lambda: only(fleet).instance.activity is Activity.BUSY)
        fake.cut_streams()  # the fresh snapshot must ask for that project as well
        await until(lambda: fake.streams == 1 and only(fleet).instance.activity is Activity.BUSY)
        gate.open()
        await until(lambda: only(fleet).instance.activity is Activity.IDLE)


async def test_a_password_that_an_unvouched_server_wants_is_explained(make_fake: MakeFake):
    fake, listed = make_fake(password="s3cret"), Listed()
    async with fake.serve(), running_fleet(listed, server_password="s3cret") as fleet:
        listed.publish(endpoint(fake, vouched=False))
        await until(lambda: status(fleet) == "needs credentials")
        assert "does not vouch" in only(fleet).instance.detail


@pytest.mark.parametrize("vouched", [True, False])
async def test_a_refusal_of_what_the_transport_knows_is_not_blamed_on_the_settings(
    vouched: bool, make_fake: MakeFake
):
    class Knows(Listed):
        def connect(self, endpoint):
            @contextlib.asynccontextmanager
            async def route():
                yield Route(base_url=endpoint.url, auth=opencode_auth("wrong"))

            return route()

    fake, listed = make_fake(password="right"), Knows()
    async with fake.serve(), running_fleet(listed, server_password="right") as fleet:
        listed.publish(endpoint(fake, vouched=vouched))
        await until(lambda: status(fleet) == "needs credentials")
        detail = only(fleet).instance.detail
        assert detail == "It refuses the user name and password that its transport knows."


async def test_a_password_of_the_settings_that_is_refused_is_blamed_on_them(make_fake: MakeFake):
    fake, listed = make_fake(password="right"), Listed()
    async with fake.serve(), running_fleet(listed, server_password="wrong") as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "needs credentials")
        assert "check OPENCODE_SERVER_USERNAME" in only(fleet).instance.detail


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a port is")
async def test_a_password_is_kept_from_another_user_who_has_the_port_and_nothing_is_forgotten(
    make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
):
    class Careful(Listed):
        def connect(self, endpoint):
            @contextlib.asynccontextmanager
            async def route():
                yield Route(base_url=endpoint.url, users={4711}, mend="Ask them.")

            return route()

    fake, listed = make_fake(password="right"), Careful()
    listed.forget_after_seconds = 0.01
    monkeypatch.setattr("opencode_mcp.opencode.strangers.peer_user", lambda connection: 4712)
    async with fake.serve(), running_fleet(listed, server_password="right") as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "needs credentials")
        assert "(uid 4712)" in only(fleet).instance.detail
        assert only(fleet).instance.detail.endswith(" Ask them.")
        monkeypatch.setattr("opencode_mcp.opencode.strangers.peer_user", lambda connection: 4711)
        await until(lambda: status(fleet) == "online")
        assert listed.forgotten == []


async def test_a_plugins_password_is_sent_where_nobody_vouches_and_only_when_it_is_asked_for(
    make_fake: MakeFake,
):
    fake, open_one, listed = make_fake(password="s3cret"), FakeOpenCode(), Listed()
    async with (
        fake.serve(),
        open_one.serve(),
        running_fleet(listed, hooks=[Keyring()]) as fleet,
    ):
        listed.publish(endpoint(fake, vouched=False), endpoint(open_one, "open", vouched=False))
        await until(lambda: status(fleet) == status(fleet, "open") == "online")
        assert "authorization" not in fake.requests[0].headers
        assert not any("authorization" in one.headers for one in open_one.requests)


async def test_a_plugins_password_is_not_sent_to_what_asks_for_it_in_another_way_than_opencode():
    sent = list[httpx2.Request]()

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(401, headers={"www-authenticate": 'Basic realm="Router"'})

    class Proxied(Listed):
        def connect(self, endpoint):
            @contextlib.asynccontextmanager
            async def route():
                yield Route(base_url=endpoint.url, transport=httpx2.MockTransport(answer))

            return route()

    listed = Proxied()
    async with running_fleet(listed, hooks=[Keyring()]) as fleet:
        listed.publish(endpoint("http://127.0.0.1:1"))
        await until(lambda: status(fleet) == "needs credentials" and len(sent) > 2)
        assert not any("authorization" in request.headers for request in sent)


async def test_a_route_with_tasks_of_its_own_hides_no_reason(make_fake: MakeFake):
    """Such a route, a tunnel for example, wraps what goes wrong inside it into an exception group."""
    fake = make_fake(password="s3cret")

    class Tunnel(Listed):
        def connect(self, endpoint):
            @contextlib.asynccontextmanager
            async def tunnel():
                async with anyio.create_task_group() as tasks, super(Tunnel, self).connect(endpoint) as route:
                    tasks.start_soon(anyio.sleep_forever)
                    yield route
                    tasks.cancel_scope.cancel()

            return tunnel()

    listed = Tunnel()
    listed.forget_after_seconds = 0.01
    async with fake.serve(), running_fleet(listed) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: status(fleet) == "needs credentials")
        assert only(fleet).instance.detail == "It wants a password: set OPENCODE_SERVER_PASSWORD."
        assert not listed.forgotten


async def test_a_transport_error_inside_a_group_is_told_in_its_own_words():
    class Grouped(Listed):
        async def watch(self, publish):
            async with anyio.create_task_group():
                raise TransportError("The cable is out.")

    async with running_fleet(Grouped()) as fleet:
        await until(lambda: [one.reason for one in fleet.problems] == ["The cable is out."])


async def test_what_a_transport_says_is_made_safe_and_a_failure_to_say_it_hides_nobody():
    fake, good, bad, evil = FakeOpenCode(), Listed("good"), Listed("bad"), Listed("evil")

    def raises():
        raise KeyError("rejected")

    bad.rejected = raises
    evil.invitation = "\x1b[31mred\u202e" + "x" * 5000
    evil.fail(TransportError("\x1b[31mred\u202e" + "x" * 5000))
    async with fake.serve(), running_fleet(good, bad, evil) as fleet:
        good.publish(endpoint(fake))
        await until(lambda: status(fleet) == "online" and len(fleet.problems) == 2)
        reasons = {one.source: one.reason for one in fleet.problems}
        assert reasons["transport bad"] == "It cannot say what it left out: KeyError."
        assert reasons["transport evil"].startswith("red xx")
        assert len(reasons["transport evil"]) <= 500
        assert not any(has_unsafe(text) for text in [*reasons.values(), *fleet.invitations])


async def test_a_broken_project_elsewhere_on_a_server_does_not_hide_its_own():
    fake, listed = FakeOpenCode(), Listed()
    async with fake.serve(), running_fleet(listed) as fleet:
        listed.publish(endpoint(fake))
        await until(lambda: fleet.monitors and only(fleet).stocked)
        fake.create_session("other", directory="/gone")
        await until(lambda: only(fleet).directories)

        api: Any = only(fleet).api
        ask = api._http.get

        async def get(path, params=None, **options):
            if (params or {}).get("directory") == "/gone":
                raise RequestError("ENOENT", 500)
            return await ask(path, params, **options)

        api._http.get = get
        assert (await api.snapshot(["/gone"])).directory == "/srv/project"


@pytest.mark.parametrize(
    ("status_code", "headers", "wanted"),
    [
        (401, {"www-authenticate": 'Basic realm="Proxy"'}, "needs credentials"),
        (403, {}, "needs credentials"),
        (404, {}, "offline"),
        (503, {}, "offline"),
    ],
)
async def test_a_server_that_answers_is_not_forgotten_whatever_it_answers(status_code, headers, wanted):
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status_code, headers=headers)

    class Proxied(Listed):
        def connect(self, endpoint):
            @contextlib.asynccontextmanager
            async def route():
                yield Route(base_url=endpoint.url, transport=httpx2.MockTransport(answer))

            return route()

    listed = Proxied()
    listed.forget_after_seconds = 0.01
    async with running_fleet(listed, server_password="s3cret") as fleet:
        listed.publish(endpoint("http://127.0.0.1:1"))
        await until(lambda: status(fleet) == wanted)
        attempts = only(fleet)._health._attempts
        await until(lambda: only(fleet)._health._attempts > attempts + 3)
        assert not listed.forgotten


async def test_our_own_shortage_is_not_held_against_the_instances():
    def no_descriptors(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("failed") from OSError(errno.EMFILE, "Too many open files")

    class Short(Listed):
        def connect(self, endpoint):
            @contextlib.asynccontextmanager
            async def route():
                yield Route(base_url=endpoint.url, transport=httpx2.MockTransport(no_descriptors))

            return route()

    listed = Short()
    listed.forget_after_seconds = 0.01
    async with running_fleet(listed) as fleet:
        listed.publish(endpoint("http://127.0.0.1:1"))
        await until(lambda: status(fleet) == "offline")
        assert "ulimit -n" in only(fleet).instance.detail
        assert not listed.forgotten


async def test_a_transport_with_an_attribute_of_the_wrong_type_stops_nobody():
    fake, listed = FakeOpenCode(), Listed()
    listed.forget_after_seconds = "600"  # pyright: ignore[reportAttributeAccessIssue] - the point of the test
    async with fake.serve(), running_fleet(listed) as fleet:
        listed.publish(endpoint("http://127.0.0.1:1", "bad"), endpoint(fake, "good"))
        await until(lambda: status(fleet, "good") == "online" and status(fleet, "bad") == "offline")


@pytest.mark.parametrize("vouched", [True, False])
async def test_a_stranger_that_sends_a_large_event_is_polled_and_stays_online(
    vouched: bool, make_fake: MakeFake
):
    fake, listed = make_fake(), Listed()
    async with fake.serve(), running_fleet(listed, hooks=[Keyring()]) as fleet:
        session = fake.create_session("s")
        listed.publish(endpoint(fake, vouched=vouched))
        await until(lambda: status(fleet) == "online" and only(fleet).streaming)
        fake.emit("session.diff", {"sessionID": session, "diff": ["x" * STRANGERS_EVENT]})
        if not vouched:
            await until(lambda: not only(fleet).streaming)
        fake.set_busy(session)
        await until(lambda: only(fleet).instance.activity is Activity.BUSY)
        assert only(fleet).streaming == vouched
        assert (status(fleet), only(fleet).instance.detail) == ("online", "")
        opened = [one.path for one in fake.requests if one.path.endswith("/event")]
        assert opened == [make_fake.either("/global/event", "/api/event")], "it was not away"
        assert fake.streams == int(vouched)


async def test_of_a_stranger_with_large_sessions_fewer_are_read(make_fake: MakeFake):
    fake, listed = make_fake(), Listed()
    async with fake.serve(), running_fleet(listed, hooks=[Keyring()]) as fleet:
        for number in range(50):
            fake.create_session(f"{number} {'x' * 20_000}")
        listed.publish(endpoint(fake, vouched=False))
        await until(lambda: status(fleet) == "online" and only(fleet).stocked)
        newest = only(fleet).instance.session
        assert newest is not None
        assert newest.title.startswith("49 ")
        assert [one.id for one in await only(fleet).api.sessions()] == list(fake.sessions)[:-6:-1]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("Set\x1b[31m LIST_SECRET.\n", "Set LIST_SECRET."),
        ("x" * 1000, "x" * 50),
        ("", "A plugin's auth hook can give one."),
        (None, "A plugin's auth hook can give one."),
    ],
    ids=["told", "long", "nothing", "raises"],
)
async def test_how_to_vouch_for_it_is_said_in_the_words_of_its_transport(told: str | None, shown: str):
    def tell(_: Listed) -> str:
        if told is None:
            raise KeyError("vouching")
        return told

    class Vouching(Listed): ...

    setattr(Vouching, "vouching", property(tell))  # noqa: B010 - an attribute in the contract
    fake, listed = FakeOpenCode(password="s3cret"), Vouching()
    async with fake.serve(), running_fleet(listed, server_password="s3cret") as fleet:
        listed.publish(endpoint(fake, vouched=False))
        await until(lambda: status(fleet) == "needs credentials")
        detail = only(fleet).instance.detail
        assert "so OPENCODE_SERVER_PASSWORD is not sent there. " + shown in detail
        assert len(detail) <= 301
        assert not has_unsafe(detail)
