"""What the look-out lists as machines come, go and change, and as tailscaled and others go wrong."""

import contextlib
import dataclasses
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from opencode_mcp import Endpoint, TransportError
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_tailscale import Tailscale
from opencode_mcp_tailscale.asking import ask_index, ask_port
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.reach import Reach
from support.fake_tailscaled import FakeTailscaled, Peer, ServedWeb, Stream
from support.fake_tailscaled_wire import GoneError
from support.fleets import until
from tailscale import tailscale_parts as parts
from tailscale.tailscale_parts import INDEX, announce, answers, http, served, watching

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # all together

PORT = 4096


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts.bare(monkeypatch, tmp_path / "state")
    parts.hurried(monkeypatch)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / "s") as one:
        one.tun = False  # its loopback is ours
        yield one
        await until(lambda: not one.tunnels, show=lambda: f"{one.tunnels} connections are left")


@pytest.fixture
async def opencode() -> AsyncGenerator[FakeOpenCode]:
    fake = FakeOpenCode(directory="/srv/shop")
    async with fake.serve():
        yield fake


def instances(*known: str) -> dict[str, str]:
    """Instances that are announced; whether they answer does not matter to the look-out."""
    return dict.fromkeys(known, f"http://127.0.0.1:{parts.NOWHERE}")


def box(fake: FakeTailscaled, *known: str, **fields: Any) -> tuple[Peer, ServedWeb]:
    """A machine that announces instances."""
    peer = fake.add_peer("box", id="nbox", **fields)
    return peer, announce(fake, peer, instances(*known))


def announce_anew(web: ServedWeb, peer: Peer, *known: str) -> None:
    web.configs.replace(served(peer.name, instances(*known)), "", ())


# Finding


async def test_what_a_machine_announces_is_listed(fake: FakeTailscaled) -> None:
    box(fake, "k3", "k4")
    async with watching(fake) as watched:
        found = (await watched.lists("nbox/k3", "nbox/k4"))["nbox/k3"]
    assert found == Endpoint(
        id="nbox/k3",
        name="the k3",
        url="http://100.64.0.1:14096/i/k3",
        hostname="box",
        labels={"node": "box.tail1a2b.ts.net", "owner": "ann@example.com"},
        vouched=True,
    )


async def test_the_index_says_version_and_password(fake: FakeTailscaled) -> None:
    peer = fake.add_peer("box", id="nbox")
    told = [parts.entry("k3", version="1.18", auth="basic"), parts.entry("k4", auth="none")]
    announce(fake, peer, instances("k3", "k4"), told=told)
    async with watching(fake) as watched:
        found = await watched.lists("nbox/k3", "nbox/k4")
    assert found["nbox/k3"].labels["version"] == "1.18"
    assert [one.labels["auth"] for one in found.values()] == ["basic", "none"]
    assert found["nbox/k3"].name == "box"  # for want of another one


async def test_a_machine_without_an_index_is_asked_at_the_ports(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    fake.add_peer("box", id="nbox", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", PORT] = ("127.0.0.1", opencode.port)
    async with watching(fake, ports=(PORT, 5000)) as watched:
        found = (await watched.lists(f"nbox:{PORT}"))[f"nbox:{PORT}"]
        assert (found.name, found.url) == ("box-shop", "http://100.64.0.7:4096")
        assert found.labels["auth"] == "none"
        assert {port for _, port in fake.dials} == {INDEX, PORT, 5000}


async def test_a_machine_with_an_index_is_not_asked_at_the_ports(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    peer, web = box(fake, "k3")
    fake.reach[peer.ips[0], PORT] = ("127.0.0.1", opencode.port)
    async with watching(fake, ports=(PORT,)) as watched:
        await watched.lists("nbox/k3")
        asked = web.asked
        await until(lambda: web.asked > asked + 2)
        assert sorted(watched.now) == ["nbox/k3"]
    assert {port for _, port in fake.dials} == {INDEX}


async def test_an_index_that_comes_later_replaces_what_was_found_at_a_port(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    peer = fake.add_peer("box", id="nbox")
    fake.reach[peer.ips[0], PORT] = ("127.0.0.1", opencode.port)
    async with watching(fake, ports=(PORT,)) as watched:
        await watched.lists(f"nbox:{PORT}")
        announce(fake, peer, instances("k3"))
        await watched.lists("nbox/k3")


async def test_what_a_port_answers_after_the_index_was_found_is_not_listed(fake: FakeTailscaled) -> None:
    peer = fake.add_peer("box", id="nbox")
    asked, go_on = anyio.Event(), anyio.Event()

    async def late(stream: Stream) -> None:
        with contextlib.suppress(GoneError):
            while True:
                await stream.until(b"\r\n\r\n")
                asked.set()
                await go_on.wait()
                await stream.send(http(200, b'{"version": "1.18.33"}', content_type="application/json"))

    fake.reach[peer.ips[0], PORT] = late
    async with watching(fake, ports=(PORT,)) as watched:
        with anyio.fail_after(5):
            await asked.wait()
        web = announce(fake, peer, instances("k3"))
        await watched.lists("nbox/k3")
        go_on.set()
        await until(lambda: not fake.tunnels)
        seen = web.asked
        await until(lambda: web.asked > seen + 2)
        assert sorted(watched.now) == ["nbox/k3"]


async def test_the_first_set_is_published_when_everybody_was_asked_even_if_it_is_empty(
    fake: FakeTailscaled,
) -> None:
    fake.add_peer("box")
    fake.add_peer("away", online=False)
    async with watching(fake) as watched:
        await until(lambda: watched.published)
        assert watched.published == [[]]
        assert (fake.me.ips[0], INDEX) not in fake.dials


async def test_one_look_returns_what_is_there(fake: FakeTailscaled) -> None:
    box(fake, "k3")
    chosen = parts.settings(fake)
    async with LocalApi(chosen) as api:
        assert [one.id for one in await Tailscale(chosen, api).discover()] == ["nbox/k3"]


async def test_one_look_is_over_once_those_who_drop_what_is_sent_were_asked(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.PATIENCE", (0.05, 0.05, 0.05))
    box(fake, "k3")
    dropper = fake.add_peer("drop", id="ndrop")
    for port in (INDEX, parts.NOWHERE):
        fake.reach[dropper.ips[0], port] = "hang"
    async with LocalApi(parts.settings(fake)) as api:
        with anyio.fail_after(4):  # and not after 8 s, when a look is given up
            found = await Tailscale(parts.settings(fake), api).discover()
    assert [one.id for one in found] == ["nbox/k3"]


async def test_an_instance_is_reached_through_tailscaled(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    peer = fake.add_peer("box", id="nbox")
    announce(fake, peer, {"k3": opencode.url})
    async with watching(fake) as watched:
        endpoint = (await watched.lists("nbox/k3"))["nbox/k3"]
        async with watched.transport.connect(endpoint) as route:
            assert route.transport is not None
            async with parts.client(route) as client:
                answer = await client.get("/global/health")
    assert answer.json()["version"] == "1.18.33"
    assert opencode.requests[-1].path == "/global/health"


async def test_what_is_not_listed_any_more_cannot_be_reached(fake: FakeTailscaled) -> None:
    peer, _ = box(fake, "k3")
    async with watching(fake) as watched:
        endpoint = (await watched.lists("nbox/k3"))["nbox/k3"]
        fake.remove_peer(peer.id)
        await watched.lists()
        await until(lambda: not fake.dialling and not fake.tunnels)
        dials, own = len(fake.dials), fake.asked["serve-config"]
        await until(lambda: fake.asked["serve-config"] > own + 2)
        assert len(fake.dials) == dials  # nobody asks it any more
        with pytest.raises(TransportError, match="the k3 is not on the tailnet any more"):
            async with watched.transport.connect(endpoint):
                pass


async def test_a_set_that_becomes_empty_before_everybody_was_asked_is_published(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.PATIENCE", (60.0,))
    monkeypatch.setattr("opencode_mcp_tailscale.lookout._FIRST_SECONDS", 60.0)
    dropper = fake.add_peer()
    fake.reach[dropper.ips[0], INDEX] = "hang"
    peer, _ = box(fake, "k3")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        fake.remove_peer(peer.id)
        await watched.lists()


# This machine


def here(fake: FakeTailscaled, url: str, known: str = "k3") -> None:
    """Announce an instance of this machine, as an announcer of this project does."""
    handlers = {"/": {"Text": f'{{"id": "{known}", "path": "/i/{known}/", "name": "mine"}}'}}
    handlers[f"/i/{known}/"] = {"Proxy": url}
    mark = {f"opencode-mcp.invalid:{INDEX}": {"Handlers": handlers}}
    fake.post_serve_config({"Foreground": {fake.sessions[0]: {"Web": mark}}})


@contextlib.asynccontextmanager
async def announcer(fake: FakeTailscaled) -> AsyncGenerator[None]:
    """Somebody with a session of tailscaled's."""
    async with LocalApi(parts.settings(fake)) as api, api.watch():
        yield


async def test_what_this_machine_announces_is_listed_on_loopback(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    async with announcer(fake):
        here(fake, opencode.url)
        async with watching(fake) as watched:
            found = (await watched.lists("ndeskCNTRL/k3"))["ndeskCNTRL/k3"]
            assert (found.url, found.name, found.vouched) == (opencode.url, "mine", True)
            async with watched.transport.connect(found) as route, parts.client(route) as asking:
                assert (await asking.get("/global/health")).status_code == 200
    assert fake.dials == []


async def test_what_somebody_else_serves_on_this_machine_is_not_vouched_for(
    fake: FakeTailscaled, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.own.listening_user", lambda _: os.geteuid() + 1)
    async with announcer(fake):
        here(fake, opencode.url)
        async with watching(fake, ports=(parts.NOWHERE, opencode.port)) as watched:
            assert [one.vouched for one in (await watched.lists("ndeskCNTRL/k3")).values()] == [False]


async def test_who_still_goes_by_what_was_listed_before_sends_nothing_to_whom_it_is_another_users_by_now(
    fake: FakeTailscaled, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.geteuid() + 1
    async with watching(fake, ports=(opencode.port,)) as watched:
        before = (await watched.lists(f"ndeskCNTRL:{opencode.port}")).popitem()[1]
        monkeypatch.setattr("opencode_mcp_tailscale.own.listening_user", lambda _: other)
        monkeypatch.setattr("opencode_mcp_tailscale.own.peer_user", lambda _: other)
        await until(lambda: not watched.published[-1][0].vouched)
        assert before.vouched
        async with watched.transport.connect(before) as route, parts.client(route) as asking:
            with pytest.raises(httpx2.ConnectError, match="Another user of this machine"):
                await asking.get("/secret", auth=("opencode", "secret"))
        now = watched.published[-1][0]
        async with watched.transport.connect(now) as route, parts.client(route) as asking:
            assert (await asking.get("/global/health")).status_code == 200  # without a password, as core does
    assert "/secret" not in [one.path for one in opencode.requests]


async def test_who_still_goes_by_what_was_listed_before_is_led_to_no_machine_that_is_not_vouched_for_by_now(
    fake: FakeTailscaled,
) -> None:
    box(fake, "k3", tags=("tag:a",))
    async with watching(fake, tags=("tag:a",), allow_shared=True) as watched:
        before = (await watched.lists("nbox/k3"))["nbox/k3"]
        fake.update_peer("nbox", tags=(), sharer="eve@example.org")
        await until(lambda: bool(watched.now) and not watched.now["nbox/k3"].vouched)
        assert before.vouched
        with pytest.raises(TransportError, match="do not vouch for"):
            async with watched.transport.connect(before):
                pass
        async with watched.transport.connect(watched.now["nbox/k3"]):
            pass


async def test_what_listens_at_a_port_of_this_machine_is_listed_too(
    fake: FakeTailscaled, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(fake, ports=(opencode.port,)) as watched:
        found = (await watched.lists(f"ndeskCNTRL:{opencode.port}")).popitem()[1]
        assert (found.url, found.name, found.vouched) == (opencode.url, "desk-shop", True)
        monkeypatch.setattr("opencode_mcp_tailscale.own.listening_user", lambda _: None)
        await until(lambda: not watched.published[-1][0].vouched)


async def test_what_this_machine_announces_and_has_at_a_port_is_listed_once(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    other = FakeOpenCode()
    async with other.serve(), announcer(fake), watching(fake, ports=(opencode.port, other.port)) as watched:
        await watched.lists(f"ndeskCNTRL:{opencode.port}", f"ndeskCNTRL:{other.port}")
        here(fake, opencode.url)
        await watched.lists("ndeskCNTRL/k3", f"ndeskCNTRL:{other.port}")


async def test_what_opencode_connected_announces_here_is_the_users_own(
    fake: FakeTailscaled, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.own.listening_user", lambda _: None)
    monkeypatch.setattr("opencode_mcp_tailscale.own.announced_here", lambda: {"x": opencode.url})
    async with watching(fake, ports=(opencode.port,)) as watched:
        found = await watched.lists(f"ndeskCNTRL:{opencode.port}")
    assert [one.vouched for one in found.values()] == [True]


async def test_an_instance_of_this_machine_that_ends_is_gone(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    async with watching(fake, ports=(opencode.port,)) as watched:
        await watched.lists(f"ndeskCNTRL:{opencode.port}")
        await opencode.kill()
        await watched.lists()


# Machines that come and go


@pytest.mark.parametrize("generation", ["netmap", "changes", "patches"])
async def test_machines_come_go_offline_return_and_leave(fake: FakeTailscaled, generation: Any) -> None:
    fake.generation = generation
    async with watching(fake) as watched:
        await until(lambda: watched.published)
        await until(lambda: fake.asked["status"] >= 2)
        peer, web = box(fake, "k3")
        await watched.lists("nbox/k3")
        fake.update_peer(peer.id, online=False)
        await until(lambda: fake.asked["status"] >= 4)
        announce_anew(web, peer, "k3", "k4")
        fake.update_peer(peer.id, online=True)
        await watched.lists("nbox/k3", "nbox/k4")
        fake.remove_peer(peer.id)
        await watched.lists()


async def test_what_is_on_a_machine_that_went_offline_stays_listed_and_nobody_asks_it(
    fake: FakeTailscaled,
) -> None:
    peer, web = box(fake, "k3")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        fake.update_peer(peer.id, online=False)
        read = fake.asked["status"]
        await until(lambda: fake.asked["status"] > read)
        await until(lambda: not fake.dialling and not fake.tunnels)
        asked, own = web.asked, fake.asked["serve-config"]
        await until(lambda: fake.asked["serve-config"] > own + 2)
        assert (web.asked, sorted(watched.now)) == (asked, ["nbox/k3"])


async def test_a_machine_that_comes_online_late_is_asked_then(fake: FakeTailscaled) -> None:
    peer, _ = box(fake, "k3", online=False)
    async with watching(fake) as watched:
        await watched.lists()
        fake.update_peer(peer.id, online=True)
        await watched.lists("nbox/k3")


async def test_every_line_of_the_bus_counts_not_only_the_first(fake: FakeTailscaled) -> None:
    async with watching(fake) as watched:
        await until(lambda: watched.published)
        for number in range(4):
            read = fake.asked["status"]
            peer = fake.add_peer(id=f"n{number}")
            announce(fake, peer, instances("k"))
            await until(lambda: f"n{number}/k" in watched.now)  # noqa: B023
            assert fake.asked["status"] > read


async def test_a_machine_that_changes_name_address_and_key_has_the_same_instances(
    fake: FakeTailscaled,
) -> None:
    peer, _ = box(fake, "k3", ips=("100.64.0.7",))
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        moved = dataclasses.replace(peer, name="tower.tail1a2b.ts.net", ips=("100.64.0.9",), node_id=999)
        announce(fake, moved, instances("k3"))
        del fake.reach["100.64.0.7", INDEX]
        key = {"PublicKey": "nodekey:other"}
        fake.update_peer(peer.id, name=moved.name, ips=moved.ips, node_id=moved.node_id, extra=key)
        await until(lambda: watched.now["nbox/k3"].url == "http://100.64.0.9:14096/i/k3")
        assert watched.now["nbox/k3"].hostname == "tower"
        assert all(len(one) == 1 for one in watched.published)
        web = announce(fake, moved, instances("k3"))
        await until(lambda: web.asked)  # by its new name, or it would not answer
        await watched.lists("nbox/k3")


async def test_a_machine_that_moved_is_asked_at_once(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds._INDEX_SECONDS", 60)
    peer, _ = box(fake, "k3", ips=("100.64.0.7",))
    async with watching(fake, rescan=60) as watched:
        await watched.lists("nbox/k3")
        moved = dataclasses.replace(peer, ips=("100.64.0.9",))
        announce(fake, moved, instances("k4"))
        fake.update_peer(peer.id, ips=moved.ips)
        await watched.lists("nbox/k4")


async def test_a_machine_that_was_away_is_asked_at_its_ports_at_once_when_it_is_back(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    peer = fake.add_peer("box", id="nbox", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", PORT] = fake.reach["100.64.0.9", PORT] = ("127.0.0.1", opencode.port)
    async with watching(fake, rescan=60, ports=(PORT,)) as watched:
        await watched.lists("nbox:4096")
        fake.update_peer(peer.id, ips=("100.64.0.9",))
        await until(lambda: ("100.64.0.9", PORT) in fake.dials)
        assert watched.now["nbox:4096"].url == "http://100.64.0.9:4096"


async def test_machines_that_drop_what_is_sent_keep_nobody_waiting(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.PATIENCE", (0.1, 0.4, 2.0))
    for _ in range(40):
        dropper = fake.add_peer()
        fake.reach[dropper.ips[0], INDEX] = "hang"
    box(fake, "k3")
    began = anyio.current_time()
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        assert anyio.current_time() - began < 2
    assert fake.most_dialling <= 32


# Instances that come and go


async def test_an_instance_that_its_machine_tells_no_more_of_is_gone_at_once(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.GONE_SECONDS", 60)
    peer, web = box(fake, "k3", "k4")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3", "nbox/k4")
        announce_anew(web, peer, "k4")
        await watched.lists("nbox/k4")


async def test_an_index_that_is_refused_for_a_moment_loses_nothing(fake: FakeTailscaled) -> None:
    peer, web = box(fake, "k3")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        dials = len(fake.dials)
        fake.reach[peer.ips[0], INDEX] = "refuse"
        await until(lambda: len(fake.dials) > dials + 1)
        fake.reach[peer.ips[0], INDEX] = web.at(INDEX)
        asked = web.asked
        await until(lambda: web.asked > asked + 2)
        assert all(len(one) == 1 for one in watched.published)


async def test_an_index_that_stays_refused_is_gone(fake: FakeTailscaled) -> None:
    peer, _ = box(fake, "k3")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        began = anyio.current_time()
        fake.reach[peer.ips[0], INDEX] = "refuse"
        await watched.lists()
        assert anyio.current_time() - began >= 0.2


async def test_what_falls_silent_stays_listed_and_is_asked_again(fake: FakeTailscaled) -> None:
    peer, web = box(fake, "k3")
    hangs = fake.reach[peer.ips[0], INDEX]
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        fake.reach[peer.ips[0], INDEX] = answers(b"")  # closes: that is no HTTP
        dials = len(fake.dials)
        await until(lambda: len(fake.dials) > dials)
        announce_anew(web, peer, "k4")
        fake.reach[peer.ips[0], INDEX] = hangs
        await watched.lists("nbox/k4")
        assert [] not in watched.published


async def test_what_is_forgotten_is_listed_again_once_it_answers(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    peer = fake.add_peer("box", id="nbox")
    web = announce(fake, peer, {"k3": f"http://127.0.0.1:{parts.NOWHERE}", "k4": opencode.url})
    async with watching(fake) as watched:
        endpoint = (await watched.lists("nbox/k3", "nbox/k4"))["nbox/k3"]
        await watched.transport.forget(endpoint)
        await watched.lists("nbox/k4")
        asked = web.asked
        await until(lambda: web.asked > asked + 3)
        assert sorted(watched.now) == ["nbox/k4"]  # the index tells of it still
        told = [parts.entry("k3"), parts.entry("k4", name="the k4")]
        web.configs.replace(served(peer.name, {"k3": opencode.url, "k4": opencode.url}, told), "", ())
        await watched.lists("nbox/k3", "nbox/k4")


async def test_what_is_forgotten_and_announced_anew_is_listed_again(fake: FakeTailscaled) -> None:
    peer, web = box(fake, "k3", "k4")
    async with watching(fake) as watched:
        endpoint = (await watched.lists("nbox/k3", "nbox/k4"))["nbox/k3"]
        await watched.transport.forget(endpoint)
        await watched.lists("nbox/k4")
        announce_anew(web, peer, "k4", "k5")
        await watched.lists("nbox/k4", "nbox/k5")
        announce_anew(web, peer, "k3", "k4")
        await watched.lists("nbox/k3", "nbox/k4")


async def test_what_was_forgotten_at_a_port_is_listed_again_once_it_answers(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    peer = fake.add_peer("box", id="nbox")
    fake.reach[peer.ips[0], PORT] = ("127.0.0.1", opencode.port)
    async with watching(fake, ports=(PORT,)) as watched:
        endpoint = (await watched.lists("nbox:4096"))["nbox:4096"]
        await opencode.kill()
        await watched.transport.forget(endpoint)
        await watched.lists()
        async with opencode.serve(opencode.port):
            await watched.lists("nbox:4096")


async def test_what_is_forgotten_while_its_machine_is_away_is_listed_again_when_both_are_back(
    fake: FakeTailscaled, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.PATIENCE", (0.1, 0.1, 0.1))
    peer = fake.add_peer("box", id="nbox")
    announce(fake, peer, {"k3": opencode.url})
    async with watching(fake) as watched:
        endpoint = (await watched.lists("nbox/k3"))["nbox/k3"]
        there = fake.reach[peer.ips[0], INDEX]
        fake.reach[peer.ips[0], INDEX] = fake.reach[peer.ips[1], INDEX] = "hang"
        read = fake.asked["status"]
        fake.update_peer(peer.id, online=False)
        await until(lambda: fake.asked["status"] > read)
        await watched.transport.forget(endpoint)
        await watched.lists()
        fake.reach[peer.ips[0], INDEX] = fake.reach[peer.ips[1], INDEX] = there
        fake.update_peer(peer.id, online=True)
        await watched.lists("nbox/k3")


# Whose machines


async def test_a_machine_shared_with_the_user_is_left_out(fake: FakeTailscaled) -> None:
    box(fake, "k3", user="eve@other.org", sharer="eve@other.org")
    async with watching(fake) as watched:
        await watched.lists()
        assert watched.reasons == (
            "1 machine of the tailnet: Left out: it is shared with you by others: see TAILSCALE_ALLOW_SHARED."
        )
    assert fake.dials == []


async def test_a_shared_machine_is_listed_on_demand_with_its_own_name_and_without_trust(
    fake: FakeTailscaled,
) -> None:
    peer = fake.add_peer("box.other.ts.net", id="nbox", user="eve@other.org", sharer="eve@other.org")
    web = ServedWeb(served(peer.name, instances("k3")), suffix="other.ts.net")
    fake.reach[peer.ips[0], INDEX] = web.at(INDEX)
    async with watching(fake, allow_shared=True) as watched:
        found = (await watched.lists("nbox/k3"))["nbox/k3"]
    assert found.name == "the k3@box.other.ts.net"
    assert found.labels["identity"] == "of eve@other.org"
    assert not found.vouched


async def test_a_shared_machine_of_a_user_who_is_named_is_trusted(fake: FakeTailscaled) -> None:
    box(fake, "k3", user="eve@other.org", sharer="eve@other.org")
    async with watching(fake, allow_shared=True, users=("Eve@other.org",)) as watched:
        found = (await watched.lists("nbox/k3"))["nbox/k3"]
    assert (found.vouched, found.name) == (True, "the k3")


async def test_a_machine_that_changes_hands_is_gone(fake: FakeTailscaled) -> None:
    peer, _ = box(fake, "k3")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        fake.update_peer(peer.id, user="eve@example.com")
        await watched.lists()
        await watched.says("it belongs to eve@example.com: see TAILSCALE_USERS")


# tailscaled itself


async def test_logged_out_at_the_start_says_where_to_log_in(fake: FakeTailscaled) -> None:
    fake.auth_url = "https://login.example.com/a/1"
    fake.state = "NeedsLogin"
    chosen = parts.settings(fake)
    async with LocalApi(chosen) as api:
        with pytest.raises(TransportError, match=r"log in at https://login\.example\.com/a/1\."):
            await Tailscale(chosen, api).watch(lambda _: None)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("NeedsLogin", "Tailscale is logged out: log in with `tailscale up`."),
        ("Stopped", "Tailscale is stopped: run `tailscale up`."),
        ("NeedsMachineAuth", "waits to be approved"),
    ],
)
async def test_a_tailscale_that_stops_later_keeps_what_was_found(
    fake: FakeTailscaled, state: str, said: str
) -> None:
    peer, web = box(fake, "k3")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        fake.state = state
        await watched.says(said)
        dials = len(fake.dials)
        read = fake.asked["status"]
        await until(lambda: fake.asked["status"] > read + 2)
        assert sorted(watched.now) == ["nbox/k3"]
        assert len(fake.dials) <= dials + 1  # nobody is asked meanwhile
        announce_anew(web, peer, "k4")
        fake.state = "Running"
        await watched.lists("nbox/k4")
        assert watched.reasons == ""


async def test_a_daemon_that_is_started_anew_keeps_what_was_found(fake: FakeTailscaled) -> None:
    peer, web = box(fake, "k3")
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        await fake.stop()
        await watched.says(f"tailscaled: tailscaled cannot be reached. Tried: {fake.socket} (not there)")
        assert sorted(watched.now) == ["nbox/k3"]
        announce_anew(web, peer, "k4")
        await fake.start()
        await watched.lists("nbox/k4")
        await until(lambda: watched.reasons == "")
        assert [] not in watched.published


async def test_the_problem_is_logged_once_and_so_is_its_end(
    fake: FakeTailscaled, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(fake) as watched:
        await until(lambda: watched.published and fake.watchers)
        fake.fail("status", 500, "out of order")
        fake.say(State=6)
        await watched.says("tailscaled answered status with HTTP status 500: out of order.")
        read = fake.asked["status"]
        await until(lambda: fake.asked["status"] > read + 2)
        fake.mend("status")
        await until(lambda: not watched.reasons)
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said == [
        "tailscaled answered status with HTTP status 500: out of order. What was found stays listed.",
        "Tailscale runs again.",
    ]


@pytest.mark.parametrize("how", ["fell_behind", "end", "abort", "garbage"])
async def test_a_bus_that_ends_is_opened_again_and_the_status_read(fake: FakeTailscaled, how: str) -> None:
    async with watching(fake) as watched:
        await until(lambda: watched.published)
        await until(lambda: fake.watchers)
        opened = fake.asked["watch-ipn-bus"]
        with fake.silently():
            box(fake, "k3")
        if how == "fell_behind":
            fake.fell_behind()
        elif how == "garbage":
            fake.garbage("watch-ipn-bus", b"[]\n", times=2)
            fake.drop_watchers()
        else:
            fake.drop_watchers(abort=how == "abort")
        await watched.lists("nbox/k3")
        await until(lambda: fake.watchers)
        assert fake.asked["watch-ipn-bus"] > opened


async def test_a_change_of_which_the_bus_says_nothing_is_noticed_in_time(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.lookout._STATUS_SECONDS", 0.2)
    async with watching(fake) as watched:
        await until(lambda: fake.asked["status"] >= 2)
        with fake.silently():
            box(fake, "k3")
        await watched.lists("nbox/k3")


async def test_many_lines_of_the_bus_cost_few_readings(fake: FakeTailscaled) -> None:
    async with watching(fake) as watched:
        await until(lambda: fake.asked["status"] >= 2 and fake.watchers)
        read = fake.asked["status"]
        for _ in range(100):
            fake.say(State=6)
        box(fake, "k3")
        await watched.lists("nbox/k3")
        assert fake.asked["status"] - read <= 4


async def test_without_permission_to_the_bus_the_status_is_read_all_the_same(fake: FakeTailscaled) -> None:
    fake.fail("watch-ipn-bus", 403, "denied")
    async with watching(fake) as watched:
        await until(lambda: watched.published)
        box(fake, "k3")
        await watched.lists("nbox/k3")


# Machines that mean harm

HOSTILE = {
    "a redirect": answers(http(302, location="http://127.0.0.1:1/")),
    "10 MB": answers(http(200, b"[" * 10_000_000)),
    "10 MB of headers": answers(b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 10_000_000),
    "no HTTP": answers(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
    "no bytes": answers(b""),
    "101": answers(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "100 without end": answers(b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000),
    "bytes that are no text": answers(http(200, b'{"v": 1, "instances": [{"id": "\xff\xfe"}]}')),
    "bad chunks": answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
    "less than it says": answers(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}"),
    "compressed": answers(http(200, b"\x1f\x8b\x08\x00" * 9, content_encoding="gzip")),
    "deep": answers(http(200, b'{"v": 1, "instances": ' + b"[" * 30_000)),
    "another version": answers(http(200, parts.index(version=2))),
    "a web page": answers(http(200, b"<html>", content_type="text/html")),
    "an error": answers(http(500, b"oops")),
}


async def test_machines_that_mean_harm_change_nothing_for_the_others(
    fake: FakeTailscaled, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (name, place) in enumerate(HOSTILE.items()):
        peer = fake.add_peer(f"evil{number}", host_name=name)
        fake.reach[peer.ips[0], INDEX] = fake.reach[peer.ips[0], PORT] = place
    box(fake, "k3")
    async with watching(fake, rescan=0.3, ports=(parts.NOWHERE, PORT)) as watched:
        await watched.lists("nbox/k3")
        evil = len(HOSTILE)
        await until(
            lambda: len({ip for ip, port in fake.dials if port == PORT}) >= evil,
            show=lambda: watched.reasons,
        )
        await until(lambda: len(watched.transport.rejected()) >= evil)
        assert sorted(watched.now) == ["nbox/k3"]
        reasons = watched.reasons
    assert (
        "evil0.tail1a2b.ts.net:14096/.well-known/opencode: It answers at the index port with HTTP status"
        in (reasons)
    )
    assert "Its index is larger than 64 kB." in reasons
    assert "What answers at the index port does not speak HTTP." in reasons
    assert "What it tells at the index port is no index." in reasons
    assert "It tells an index of version 2: update opencode-mcp, there or here." in reasons
    assert "could not be asked" not in caplog.text


@pytest.mark.slow
async def test_a_machine_that_answers_slowly_without_end_is_given_up(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.asking._ANSWER_SECONDS", 0.3)

    async def drip(stream: Stream) -> None:
        with contextlib.suppress(GoneError):
            for byte in http(200, b" " * 10_000):
                await stream.send(bytes([byte]))
                await anyio.sleep(0.02)

    slow = fake.add_peer("slow")
    deaf = fake.add_peer("deaf")
    fake.reach[slow.ips[0], INDEX] = drip
    fake.reach[deaf.ips[0], INDEX] = answers(hold=True)
    async with watching(fake) as watched:
        await watched.says("slow.tail1a2b.ts.net:14096/.well-known/opencode: It did not answer")
        await watched.says("deaf.tail1a2b.ts.net:14096/.well-known/opencode: It did not answer")


async def test_a_machine_that_does_not_tell_this_user_says_so(fake: FakeTailscaled) -> None:
    peer = fake.add_peer("box")
    fake.reach[peer.ips[0], INDEX] = answers(http(403))
    async with watching(fake) as watched:
        await watched.says("It does not tell you its instances: see TAILSCALE_ALLOW_USERS there.")


async def test_a_name_that_a_machine_tells_is_one_clean_line(fake: FakeTailscaled) -> None:
    peer = fake.add_peer("box", id="nbox")
    told = [parts.entry("k3", name="a\x1b[31m\n\u202eb" + "x" * 999), parts.entry("k4", name="\u2028 \t")]
    announce(fake, peer, instances("k3", "k4"), told=told)
    async with watching(fake) as watched:
        found = await watched.lists("nbox/k3", "nbox/k4")
    assert found["nbox/k3"].name.startswith("a bx")
    assert len(found["nbox/k3"].name) == 200
    assert found["nbox/k4"].name == "box"


@pytest.mark.slow
async def test_2000_machines_are_asked_within_seconds(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_SILENT": 60.0, "_INDEX": 5.0}.items():
        monkeypatch.setattr(f"opencode_mcp_tailscale.rounds.{name}_SECONDS", value)
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.PATIENCE", (0.1, 0.4, 2.0))
    monkeypatch.setattr("opencode_mcp_tailscale.rounds._INDEXES_EACH_SECOND", 5.0)
    monkeypatch.setattr("opencode_mcp_tailscale.rounds._QUESTIONS_EACH_SECOND", 25.0)
    with fake.at_once():
        for number in range(2000):
            peer = fake.add_peer(id=f"n{number}")
            if number % 40 == 0:
                announce(fake, peer, instances("k"))
            elif number % 4 == 1:
                fake.reach[peer.ips[0], INDEX] = "hang"
    with_one = [f"n{number}/k" for number in range(0, 2000, 40)]
    async with watching(fake, rescan=30) as watched:
        await watched.lists(*with_one, seconds=20)  # 2 or 3 on a machine that does nothing else
    assert fake.most_dialling <= 32


async def test_a_connection_over_which_nothing_was_sent_is_closed(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = fake.add_peer("box", ips=("100.64.0.7",))
    fake.reach[peer.ips[0], INDEX] = fake.reach[peer.ips[0], PORT] = answers(hold=True)

    async def never(*_: object, **__: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr("opencode_mcp_tailscale.asking.recognise", never)
    monkeypatch.setattr("opencode_mcp_tailscale.asking._index", never)
    async with LocalApi(parts.settings(fake)) as api:
        for ask, port in ((ask_index, INDEX), (ask_port, PORT)):
            async with anyio.create_task_group() as group:
                group.start_soon(ask, Reach(api), parts.candidate(), port, 2.0)
                await until(lambda: fake.tunnels)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            await until(lambda: not fake.tunnels)


async def test_a_look_out_that_is_cancelled_leaves_no_connection_open(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    async with AsyncExitStack() as stack:
        for number in range(20):
            peer = fake.add_peer()
            fake.reach[peer.ips[0], INDEX] = answers(hold=True) if number % 2 else "hang"
        async with parts.no_sockets_left():
            watched = await stack.enter_async_context(watching(fake))
            await until(lambda: fake.tunnels >= 5 and fake.watchers)
            del watched
            await stack.aclose()
            await until(lambda: not fake.tunnels and not fake.dialling and not fake.watchers)
