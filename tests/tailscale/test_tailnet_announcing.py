"""Announcing on a real tailnet: what `test_announcement` says of a fake tailscaled is true of a real one."""

import contextlib
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import anyio
import httpx2
import pytest

from opencode_mcp import Endpoint, TransportError
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_tailscale import Tailscale
from opencode_mcp_tailscale.index import PATH
from opencode_mcp_tailscale.localapi import ConflictError, LocalApi
from support.fleets import until
from support.tailnet import Node, Tailnet, tailnet
from tailscale.announcing_parts import (
    MARK,
    PORT,
    Row,
    announced,
    desk_at,
    get,
    holder_name,
    holders,
    index,
    processes,
    settings,
    until_index,
)

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATIENCE = 15.0
A = "a.tail.test"
BACKGROUND: Row = {
    "TCP": {"2222": {"TCPForward": "127.0.0.1:22"}, "8080": {"HTTP": True}},
    "Web": {
        f"{A}:8080": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:3000"}, "/t": {"Text": "a <b> & c"}}}
    },
}


@pytest.fixture
async def net() -> AsyncIterator[Tailnet]:
    async with tailnet() as one:
        yield one


@pytest.fixture
async def a(net: Tailnet) -> Node:
    """The machine that announces."""
    return await net.add("a")


@pytest.fixture
async def b(net: Tailnet, a: Node) -> Node:
    """Another one of the same user."""
    return await net.add("b")


@contextlib.asynccontextmanager
async def local_api(node: Node) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(uds=str(node.socket))
    base = "http://local-tailscaled.sock/localapi/v0/"
    async with httpx2.AsyncClient(transport=transport, base_url=base, timeout=10, trust_env=False) as client:
        yield client


async def serve_config(node: Node) -> Row:
    async with LocalApi(settings(node.socket)) as api:
        return (await api.serve_config())[0]


async def serve(node: Node, config: Row) -> None:
    """Replace what a node serves, whatever it was."""
    async with local_api(node) as client:
        assert (await client.post("serve-config", json=config)).status_code == 200


async def set_prefs(node: Node, **prefs: Any) -> None:
    masked = {**prefs, **{f"{name}Set": True for name in prefs}}
    async with local_api(node) as client:
        assert (await client.patch("prefs", json=masked)).status_code == 200


async def until_peers(api: LocalApi, *names: str) -> None:
    """Wait until these are the peers that a node knows."""
    found: set[str] = set()
    with anyio.move_on_after(PATIENCE):
        while (found := {one.short_name for one in (await api.status()).peers}) != set(names):
            await anyio.sleep(0.02)
        return
    raise AssertionError(f"{found} instead of {names}")


async def answers(gateway: "Gateway", endpoint: Endpoint) -> bool:
    """Whether an instance can be reached by way of the gateway."""
    async with (
        gateway.transport.connect(endpoint) as route,
        httpx2.AsyncClient(
            transport=route.transport, base_url=route.base_url, headers=route.headers, timeout=PATIENCE
        ) as client,
    ):
        return (await client.get(f"{route.base_url}/global/health")).json()["healthy"]


async def until_config(node: Node, *names: str) -> Row:
    """Wait until the announcers of these names, and no others, are in the serve config; return it."""
    found: Row = {}
    with anyio.move_on_after(PATIENCE):
        while announced(found := await serve_config(node)) != set(names):
            await anyio.sleep(0.02)
        return found
    raise AssertionError(f"{announced(found)} instead of {names}")


class Gateway:
    """The transport on another node, and what it has published last."""

    def __init__(self, api: LocalApi, node: Node, **given: Any) -> None:
        self.transport = Tailscale(settings(node.socket, **given), api)
        self.endpoints: Sequence[Endpoint] = ()
        self.published = 0

    async def run(self) -> None:
        await self.transport.watch(self._publish)

    async def until(self, *names: str, seconds: float = PATIENCE) -> None:
        await until(lambda: self.names == set(names), seconds, lambda: self.names)

    @property
    def names(self) -> set[str]:
        return {one.name for one in self.endpoints}

    def _publish(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self.published += 1

    def sees_online(self, node: Node) -> bool:
        """Whether the look-out takes a node to be online."""
        assert self.transport._lookout is not None
        peer = self.transport._lookout._peers.get(node.id)
        return peer is not None and peer.candidate.machine.online


@contextlib.asynccontextmanager
async def gateway_on(node: Node, rescan_seconds: float = 30.0, **given: Any) -> AsyncGenerator[Gateway]:
    async with LocalApi(settings(node.socket)) as api, anyio.create_task_group() as group:
        one = Gateway(api, node, **given)
        one.transport.rescan_seconds = rescan_seconds
        group.start_soon(one.run)
        yield one
        group.cancel_scope.cancel()


async def test_what_is_announced_is_listed_on_another_machine_and_can_be_reached(a: Node, b: Node) -> None:
    async with FakeOpenCode().serve() as opencode, desk_at(a.socket) as desk, gateway_on(b, 0.5) as gateway:
        one = await desk.announce("shop", opencode.url)

        await gateway.until("shop", seconds=10)
        [listed] = gateway.endpoints
        assert await answers(gateway, listed)

        await one.leave()
        await gateway.until()
        assert not (await serve_config(a)).get("Foreground")


async def test_a_machine_that_joins_leaves_returns_and_is_removed_is_followed_by_the_bus_alone(
    net: Tailnet, b: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = 25.0  # well before the status is read anyway, each 60 s
    monkeypatch.setattr("opencode_mcp_tailscale.announcement._AWAY_SECONDS", 90.0)  # while c is away
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.GONE_SECONDS", 60.0)  # until c announces again
    c = await net.add("c")
    async with FakeOpenCode().serve() as opencode, desk_at(c.socket) as desk:
        await desk.announce("shop", opencode.url)
        await net.hide(c, True)
        async with LocalApi(settings(b.socket)) as api:
            await until_peers(api, "a")
        async with gateway_on(b, rescan_seconds=600) as gateway:
            await until(lambda: gateway.published, PATIENCE)
            assert gateway.names == set()

            await net.hide(c, False)
            await gateway.until("shop", seconds=soon)
            [joined] = gateway.endpoints
            assert await answers(gateway, joined)

            await net.stop(c)
            await until(lambda: not gateway.sees_online(c), soon)
            again = await net.start(c)
            assert again.id == c.id
            await until(lambda: gateway.sees_online(c), soon)
            await until_index(b.socket, "c.tail.test", "shop", seconds=soon)
            same = [(joined.id, joined.url)]
            await until(lambda: [(one.id, one.url) for one in gateway.endpoints] == same, soon)
            assert await answers(gateway, joined)

            await net.remove(c)
            await gateway.until(seconds=soon)


async def test_two_share_an_index_and_the_heir_is_there_in_time(a: Node, b: Node) -> None:
    async with desk_at(a.socket) as desk:
        first = await desk.announce("first")
        second = await desk.announce("second", "http://127.0.0.1:5000")
        await until_index(b.socket, A, "first", "second")
        assert holder_name(await serve_config(a)) == "first"
        found = [
            finding.ok for one in (first, second) for finding in await one.transport.inspect(one.endpoint)
        ]
        assert found == [True, True]

        await first.leave()

        await until_index(b.socket, A, "second", seconds=5)
        assert not second.ended.is_set()


async def test_several_that_start_at_the_same_time_all_come_in(a: Node, b: Node) -> None:
    names = [f"shop{number}" for number in range(6)]
    async with desk_at(a.socket) as desk:
        for one in [desk.start(name) for name in names]:
            await one.until_announced(10)
        await until_index(b.socket, A, *names)
        assert len(holders(await serve_config(a))) == 1


async def test_an_announcer_that_is_killed_is_gone_in_time(a: Node, b: Node) -> None:
    async with FakeOpenCode().serve() as opencode:
        with processes(a.socket, "shop", urls=[opencode.url]) as [one]:
            await one.until_announced()
            async with gateway_on(b) as gateway:
                await gateway.until("shop")

                one.kill()

                await gateway.until(seconds=15)
                assert not (await serve_config(a)).get("Foreground")


async def test_of_two_processes_the_other_one_takes_over_in_time(a: Node, b: Node) -> None:
    with processes(a.socket, "one", "two") as running:
        for one in running:
            await one.until_announced()
        await until_index(b.socket, A, "one", "two")
        holder = holder_name(await serve_config(a))
        [dying] = [one for one in running if one.name == holder]
        [heir] = [one for one in running if one is not dying]

        dying.kill()

        await until_index(b.socket, A, heir.name, seconds=5)


async def test_a_holder_that_hangs_hands_over_to_a_newcomer_and_comes_back(a: Node, b: Node) -> None:
    with processes(a.socket, "one") as [holder]:
        await holder.until_announced()
        holder.send(signal.SIGSTOP)
        with processes(a.socket, "two") as [newcomer]:
            await newcomer.until_announced()
            assert holder_name(await serve_config(a)) == "two"
            holder.send(signal.SIGCONT)

            await until_index(b.socket, A, "one", "two", seconds=PATIENCE)
            assert holder_name(await serve_config(a)) == "two"


async def test_what_the_user_serves_stays_before_during_and_after(a: Node, b: Node) -> None:
    theirs = {"TCP": {"9090": {"HTTP": True}}, "Web": {f"{A}:9090": {"Handlers": {"/x/": {"Text": "x"}}}}}
    async with LocalApi(settings(a.socket)) as api, api.watch() as bus, desk_at(a.socket) as desk:
        await serve(a, {**BACKGROUND, "Foreground": {bus.session: theirs}})
        before = await serve_config(a)
        assert before == {**BACKGROUND, "Foreground": {bus.session: theirs}}

        def rest(config: Row) -> Row:
            kept = {key: part for key, part in config["Foreground"].items() if MARK not in part["Web"]}
            return {**config, "Foreground": kept}

        first = await desk.announce("first")
        second = await desk.announce("second")
        assert rest(await until_config(a, "first", "second")) == before
        assert (
            await get(b.socket, A, "/", port=8080)
        ).status_code == 502  # served still, by nobody behind it
        await first.leave()
        await until_index(b.socket, A, "second")
        assert rest(await serve_config(a)) == before
        await second.leave()
        await until_config(a)
        assert await serve_config(a) == before


async def test_somebody_who_changes_the_config_all_the_time_loses_nothing_and_keeps_nobody_out(
    a: Node, b: Node
) -> None:
    async def change(scope: anyio.CancelScope) -> None:
        nonlocal last
        async with LocalApi(settings(a.socket)) as api:
            while not scope.cancel_called:
                config, tag = await api.serve_config()
                number = 3000 + (last - 2999) % 1000
                config["TCP"] = {**BACKGROUND["TCP"], str(number): {"TCPForward": "127.0.0.1:9"}}
                config["Web"] = BACKGROUND["Web"]
                with contextlib.suppress(ConflictError):
                    await api.set_serve_config(config, tag)
                    last = number
                await anyio.sleep(0.03)

    last = 2999
    stop = anyio.CancelScope()
    async with desk_at(a.socket) as desk, anyio.create_task_group() as group:
        group.start_soon(change, stop)
        for one in [desk.start(f"shop{number}") for number in range(4)]:
            await one.until_announced(PATIENCE)
        stop.cancel()
    assert last > 3003
    config = await until_config(a)
    assert config["TCP"] == {**BACKGROUND["TCP"], str(last): {"TCPForward": "127.0.0.1:9"}}
    assert config["Web"] == BACKGROUND["Web"]


async def test_a_change_against_another_config_than_the_present_one_is_refused(a: Node) -> None:
    async with LocalApi(settings(a.socket)) as api:
        _, tag = await api.serve_config()
        await api.set_serve_config(BACKGROUND, tag)
        for stale in (tag, ""):
            with pytest.raises(ConflictError):
                await api.set_serve_config({}, stale)
        assert (await api.serve_config())[0] == BACKGROUND


async def test_only_who_is_named_is_told(net: Tailnet, a: Node, b: Node) -> None:
    bobs = await net.add("c", login="bob@example.com")
    build = await net.add("d", tags=["tag:Build"])
    async with FakeOpenCode().serve() as opencode, desk_at(a.socket) as desk:
        await desk.announce("secret", opencode.url, allow_users=("Ann@Example.com", "tag:Build"))

        assert await index(b.socket, A) == {"secret"}
        assert (await get(b.socket, A, f"{PATH}/x")).status_code == 404
        assert await index(build.socket, A) == {"secret"}
        for method in ("GET", "HEAD", "POST"):
            forged = {"X-Forwarded-For": a.ips[0], "Tailscale-User-Login": "ann@example.com"}
            response = await get(bobs.socket, A, method=method, headers=forged)
            assert (response.status_code, response.text) == (405 if method == "POST" else 403, "")
        assert (await get(b.socket, A, method="HEAD")).status_code == 200
        async with gateway_on(b) as anns, gateway_on(bobs, users=("ann@example.com",)) as gateway:
            await anns.until("secret")
            wanted = "It does not tell you its instances: see TAILSCALE_ALLOW_USERS there."
            await until(
                lambda: wanted in [one.reason for one in gateway.transport.rejected()],
                PATIENCE,
                gateway.transport.rejected,
            )
            assert gateway.names == set()
        await desk.announce("open", opencode.url)
        await until_index(bobs.socket, A, "open")
        assert await index(b.socket, A) == {"secret", "open"}


async def test_a_machine_that_accepts_no_connections_announces_nothing(a: Node, b: Node) -> None:
    async with desk_at(a.socket) as desk:
        one = await desk.announce("shop")
        await set_prefs(a, ShieldsUp=True)

        assert "run `tailscale set --shields-up=false`" in await one.failure()
        assert "run `tailscale set --shields-up=false`" in await desk.start().failure()
        await until_config(a)
        await set_prefs(a, ShieldsUp=False)
        await desk.announce("shop")
        await until_index(b.socket, A, "shop")


async def test_a_machine_that_is_renamed_tells_its_index_under_the_new_name(
    net: Tailnet, a: Node, b: Node
) -> None:
    async with desk_at(a.socket) as desk:
        await desk.announce("shop")
        await until_index(b.socket, A, "shop")

        await net.rename(a, "bee")

        await until_index(b.socket, "bee.tail.test", "shop")
        assert f"{A}:{PORT}" not in str(await serve_config(a))


async def test_a_machine_whose_key_has_expired_or_that_is_stopped_says_so(net: Tailnet, a: Node) -> None:
    expired = "The key of this machine has expired: run `tailscale up --force-reauth`."
    async with desk_at(a.socket) as desk:
        one = await desk.announce("shop")
        await net.expire(a)
        assert await one.failure() == expired
        assert await desk.start().failure() == expired
        await net.expire(a, False)

        await set_prefs(a, WantRunning=False)
        assert "run `tailscale up`" in await desk.start().failure()
        await set_prefs(a, WantRunning=True)


async def test_a_daemon_that_restarts_has_it_again_soon(net: Tailnet, a: Node, b: Node) -> None:
    async with desk_at(a.socket) as desk:
        announcers = [await desk.announce("one"), await desk.announce("two")]
        await net.stop(a)
        with pytest.raises(TransportError, match="cannot be reached"):
            await desk.announce("shop")
        await net.start(a)

        await until_index(b.socket, A, "one", "two")
        assert not any(one.ended.is_set() for one in announcers)


async def test_if_the_user_resets_what_is_served_it_is_announced_again_and_at_last_that_is_said(
    a: Node,
) -> None:
    async with desk_at(a.socket) as desk:
        one = await desk.announce("one")
        resets = 0
        while not one.ended.is_set():
            await serve(a, {})
            resets += 1
            with anyio.fail_after(PATIENCE):
                while not one.ended.is_set() and announced(await serve_config(a)) != {"one"}:
                    await anyio.sleep(0.02)
        assert resets > 3

        assert "somebody reset what it serves" in await one.failure()
        await desk.announce("again")
        await until_config(a, "again")


async def test_a_port_that_the_user_uses_is_left_alone(a: Node) -> None:
    taken: Row = {
        "TCP": {str(PORT): {"HTTP": True}},
        "Web": {f"{A}:{PORT}": {"Handlers": {PATH: {"Text": "mine"}}}},
    }
    async with desk_at(a.socket) as desk:
        await serve(a, taken)
        assert "is used by another serve config" in await desk.start().failure()
        assert await serve_config(a) == taken


async def test_names_of_any_letters_arrive_as_they_are(a: Node, b: Node) -> None:
    names = ["🦊" * 200, "\"\\/<>&'" * 28, "{${HOST}}%00%2e"]
    async with desk_at(a.socket) as desk:
        for name in names:
            given = Endpoint(id=f"id of {name[0]}", name=name, url="http://127.0.0.1:4096")
            await desk.start_endpoint(given).until_announced()
        await until_index(b.socket, A, *names)


async def test_whenever_it_is_cancelled_nothing_is_left(a: Node) -> None:
    async with desk_at(a.socket) as desk:
        await (await desk.announce("shop")).leave()
        in_time = 0
        for milliseconds in range(500):
            one = desk.start("shop")
            with anyio.move_on_after(milliseconds / 1000):
                await one.ended.wait()
            in_time += one.announced.is_set()
            await one.leave()
            if in_time == 5:
                break
        assert in_time == 5
        assert not (await until_config(a)).get("Foreground")
