"""Announcing beside a fake tailscaled: alone, with others, against others, and when it is in trouble."""

import contextlib
import copy
import itertools
import json
import os
import random
import signal
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from opencode_mcp import Endpoint, TransportError
from opencode_mcp_tailscale import (
    Tailscale,
    announcement,
    daemon,
    localapi,
    opencode_mcp_transports,
    sharing,
    telling,
)
from opencode_mcp_tailscale.announcement import entry_of
from opencode_mcp_tailscale.index import read_entry, written
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.serving import Member, part_of_holder
from support.answering import answering
from support.fake_tailscaled import FakeTailscaled, join
from support.fleets import until
from tailscale.announcing_parts import (
    MARK,
    PORT,
    Announcer,
    Desk,
    Row,
    announced,
    desk_at,
    endpoint,
    get,
    holder_name,
    holders,
    index,
    listed,
    processes,
    settings,
    until_index,
)

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # all together

NAME = "desk.tail1a2b.ts.net"
PATIENCE = 20.0
"""For what takes real processes seconds, on a busy machine; what is promised in 5 s is asked for in 5 s."""


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / "s", name="desk") as one:
        one.tun = False  # this host has none of its addresses
        yield one


@pytest.fixture
async def desk(fake: FakeTailscaled) -> AsyncGenerator[Desk]:
    async with desk_at(fake.socket) as one:
        yield one


@pytest.fixture
async def laptop(fake: FakeTailscaled, tmp_path: Path) -> AsyncGenerator[Path]:
    """The socket of another machine of the tailnet."""
    async with FakeTailscaled(tmp_path / "laptop", name="laptop") as one:
        join(fake, one)
        yield tmp_path / "laptop"


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody looks all the time."""
    monkeypatch.setattr(announcement, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(announcement, "_AGAIN_SECONDS", 0.005)
    monkeypatch.setattr(sharing, "_CONFLICT_SECONDS", 0.01)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks unless there is a reason."""
    monkeypatch.setattr(announcement, "_LOOK_SECONDS", 3600.0)


@pytest.fixture
def posts(fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Row]]:
    """What was asked to be served from now on: which config it was to replace, and the new one."""
    found: list[tuple[str, Row]] = []
    replace = fake.serve.replace

    def spy(incoming: Any, if_match: str, living: Any) -> set[str]:
        found.append((if_match, copy.deepcopy(incoming)))
        return replace(incoming, if_match, living)

    monkeypatch.setattr(fake.serve, "replace", spy)
    return found


async def nothing_left(fake: FakeTailscaled) -> None:
    """Wait until nobody watches; nothing is served then."""
    await until(lambda: not fake.watchers and "Foreground" not in (fake.serve_config or {}))


# Alone


async def test_what_is_announced_is_in_the_index_and_can_be_reached(
    fake: FakeTailscaled, desk: Desk, laptop: Path
) -> None:
    heard: list[bytes] = []
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", heard=heard) as url:
        given = Endpoint(id="k3", name="shop", url=url, labels={"version": "1.18.33", "auth": "basic"})
        await desk.start_endpoint(given).until_announced()

        response = await get(laptop, NAME)
        told = {"id": "k3", "path": "/i/k3/", "name": "shop", "version": "1.18.33", "auth": "basic"}
        assert (response.status_code, response.json()) == (200, {"v": 1, "instances": [told]})
        assert (await get(laptop, NAME, "/i/k3/global/health")).text == "hi"
    assert heard[0].startswith(b"GET /global/health HTTP/1.1\r\n")
    assert {name: fake.asked[name] for name in ("POST serve-config", "PATCH prefs")} == {
        "POST serve-config": 1,
        "PATCH prefs": 0,
    }


async def test_it_is_announced_only_once_it_is_visible(
    fake: FakeTailscaled, desk: Desk, laptop: Path
) -> None:
    one = desk.start()
    fake.hang("POST serve-config")
    fake.hang("serve-config")
    await until(lambda: fake.asked["serve-config"] == 1)
    assert not one.announced.is_set()
    assert await index(laptop, NAME) == set()
    fake.mend("serve-config")


async def test_who_is_cancelled_is_withdrawn(fake: FakeTailscaled, desk: Desk, laptop: Path) -> None:
    one = await desk.announce()
    assert await index(laptop, NAME) == {"shop"}

    await one.leave()

    await nothing_left(fake)
    assert await index(laptop, NAME) == set()


async def test_it_can_be_announced_again_by_the_same_transport(fake: FakeTailscaled, desk: Desk) -> None:
    one = await desk.announce()
    await one.leave()
    await nothing_left(fake)

    again = Announcer(one.transport, one.endpoint)
    desk._group.start_soon(again.run)

    await again.until_announced()
    assert announced(fake.serve_config) == {"shop"}


async def test_while_nothing_changes_nothing_is_written(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    await desk.announce("one")
    await desk.announce("two")
    written = fake.asked["POST serve-config"]
    looks = fake.asked["serve-config"]

    await until(lambda: fake.asked["serve-config"] > looks + 6)

    assert fake.asked["POST serve-config"] == written
    assert fake.asked["status"] == 2


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:4096", "http://127.0.0.1:4096"),
        ("http://127.0.0.2:4096", "http://127.0.0.2:4096"),
        ("http://[::1]:4096", "http://[::1]:4096"),
        ("http://0.0.0.0:4096", "http://127.0.0.1:4096"),
        ("http://[::]:4096", "http://[::1]:4096"),
        ("http://[0:0:0:0:0:0:0:1]:4096", "http://[::1]:4096"),
        ("http://127.0.0.1", "http://127.0.0.1:80"),
    ],
)
async def test_tailscaled_is_told_where_on_this_machine_it_is(
    fake: FakeTailscaled, desk: Desk, url: str, target: str
) -> None:
    await desk.announce("shop", url)

    [part] = (fake.serve_config or {})["Foreground"].values()
    assert part["Web"][f"{NAME}:{PORT}"]["Handlers"]["/i/shop/"] == {"Proxy": target}
    assert part["Web"][MARK]["Handlers"]["/i/shop/"] == {"Proxy": target}


async def test_what_listens_at_ipv6_loopback_is_reached(
    fake: FakeTailscaled, desk: Desk, laptop: Path
) -> None:
    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nsix")

    async with (
        await anyio.create_tcp_listener(local_host="::1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        await desk.announce("shop", f"http://[::1]:{port}")

        assert (await get(laptop, NAME, "/i/shop/x")).text == "six"
        group.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["http://localhost:4096", "http://evil.example:80", "http://127.1:80"])
async def test_what_is_at_no_address_is_refused(fake: FakeTailscaled, desk: Desk, url: str) -> None:
    words = await desk.start("shop", url).failure()

    assert words == f"tailscale cannot announce {url}: it must say an IP address."
    assert not fake.asked


@pytest.mark.parametrize("known", ["a b", "../x", "k" * 65, "é", "a/b", "🦊" * 128, ".", "a.b"])
def test_an_id_that_fits_no_path_is_replaced_by_one_that_does(known: str) -> None:
    given = Endpoint(id=known, name="shop", url="http://127.0.0.1:4096")
    one, same = entry_of(given), entry_of(given)

    assert one == same
    assert one.id != known
    assert read_entry(written(one)) is not None


async def test_what_has_such_an_id_is_announced(fake: FakeTailscaled, desk: Desk, laptop: Path) -> None:
    for known in ("../x", "a b"):
        given = Endpoint(id=known, name=known, url="http://127.0.0.1:4096")
        one = desk.start_endpoint(given)
        await one.until_announced()
        assert await index(laptop, NAME) == {known}
        await one.leave()
        await nothing_left(fake)


@pytest.mark.slow
async def test_a_very_long_name_of_any_letters_is_announced(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None
) -> None:
    names = ["🦊" * 200, "\"\\/<>&'" * 28, "{${HOST}}%00%2e", "é" * 200]
    for number, name in enumerate(names):
        given = Endpoint(
            id=f"k{number}", name=name, url="http://127.0.0.1:4096", labels={"version": "v" * 1024}
        )
        await desk.start_endpoint(given).until_announced()

    await until_index(laptop, NAME, *names)
    assert len((await get(laptop, NAME)).content) < 64_000


# With others


@pytest.mark.slow
async def test_several_share_one_index(fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None) -> None:
    names = [f"shop{number}" for number in range(6)]
    for name in names:
        await desk.announce(name)

    assert await index(laptop, NAME) == set(names)
    assert len(holders(fake.serve_config)) == 1
    assert len(fake.sessions) == 6


@pytest.mark.slow
async def test_several_that_start_at_the_very_same_time_all_come_in(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None, posts: list[tuple[str, Row]]
) -> None:
    starting = [desk.start(f"shop{number}") for number in range(8)]
    for one in starting:
        await one.until_announced()

    await until_index(laptop, NAME, *(f"shop{number}" for number in range(8)))
    assert len(holders(fake.serve_config)) == 1
    assert all(if_match for if_match, _ in posts)
    assert not any(one.ended.is_set() for one in starting)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.slow
async def test_whoever_leaves_the_others_stay(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None, order: tuple[int, ...]
) -> None:
    staying = {f"shop{number}": await desk.announce(f"shop{number}") for number in range(3)}
    for number in order:
        await staying.pop(f"shop{number}").leave()
        await until_index(laptop, NAME, *staying)
        assert not any(one.ended.is_set() for one in staying.values())
    await nothing_left(fake)


@pytest.mark.slow
async def test_when_the_holder_goes_only_one_follows(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None
) -> None:
    first = await desk.announce("first")
    for number in range(5):
        await desk.announce(f"shop{number}")
    await first.leave()

    await until(lambda: listed(fake.serve_config, NAME) == {f"shop{number}" for number in range(5)})
    assert len(holders(fake.serve_config)) == 1


@pytest.mark.parametrize("holder", ["third", "shop"])
@pytest.mark.slow
async def test_of_two_with_one_id_the_later_one_is_told_so(
    fake: FakeTailscaled,
    desk: Desk,
    laptop: Path,
    brisk: None,
    monkeypatch: pytest.MonkeyPatch,
    holder: str,
) -> None:
    monkeypatch.setattr(sharing, "_IDLE_SECONDS", 0.1)
    first, third = [await desk.announce(name) for name in sorted(["shop", "third"], key=holder.__ne__)]
    session = holders(fake.serve_config)
    for _ in range(3):  # whatever the order of their sessions
        words = await desk.start("shop", "http://127.0.0.1:5000").failure()
        assert words == "Another process of this machine announces the same instance, shop."

    assert holders(fake.serve_config) == session
    assert not any(one.ended.is_set() for one in (first, third))
    await until_index(laptop, NAME, "shop", "third")
    await (first if first.endpoint.id == "shop" else third).leave()
    await desk.announce("shop", "http://127.0.0.1:5000")


@pytest.mark.slow
async def test_if_there_are_too_many_that_is_said_and_the_others_stay(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.index.MOST_INSTANCES", 3)
    first, *others = [await desk.announce(f"shop{number}") for number in range(3)]
    for _ in range(3):  # whatever the order of their sessions
        assert await desk.start("late").failure() == (
            "This machine announces too many instances: others read 64 of them, and 64 kB in all."
        )

    await until_index(laptop, NAME, "shop0", "shop1", "shop2")
    assert not any(one.ended.is_set() for one in (first, *others))
    await others[0].leave()
    await desk.announce("late")
    await until_index(laptop, NAME, "shop0", "late", "shop2")


# At the real pace, and in other processes


@pytest.mark.slow
async def test_two_processes_share_an_index_and_the_heir_of_one_killed_is_there_in_time(
    fake: FakeTailscaled, laptop: Path
) -> None:
    with processes(fake.socket, "one", "two", "three") as running:
        for one in running:
            await one.until_announced()
        await until_index(laptop, NAME, "one", "two", "three")
        for _ in range(2):
            [dying] = [one for one in running if one.name == holder_name(fake.serve_config)]
            running.remove(dying)

            dying.kill()

            await until_index(laptop, NAME, *(one.name for one in running), seconds=5)
            dying.close()


@pytest.mark.slow
async def test_a_member_that_is_killed_is_out_of_the_index_in_time(
    fake: FakeTailscaled, laptop: Path
) -> None:
    with processes(fake.socket, "one", "two", "three") as running:
        for one in running:
            await one.until_announced()
        holder = holder_name(fake.serve_config)
        session = holders(fake.serve_config)
        gone, *others = [one for one in running if one.name != holder]

        gone.kill()

        await until_index(laptop, NAME, holder, *(one.name for one in others), seconds=3)
        assert holders(fake.serve_config) == session


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [(), ("ann@example.com",)])
async def test_what_is_gone_is_out_of_the_index_in_time_though_the_holder_hangs(
    fake: FakeTailscaled, laptop: Path, allowed: tuple[str, ...]
) -> None:
    with processes(fake.socket, "one", "two", "three", allowed=allowed) as running:
        for one in running:
            await one.until_announced()
        [holder] = [one for one in running if one.name == holder_name(fake.serve_config)]
        gone, stays = [one for one in running if one is not holder]
        holder.send(signal.SIGSTOP)
        gone.kill()

        await until(lambda: holder_name(fake.serve_config) == stays.name, PATIENCE)
        await until_index(laptop, NAME, stays.name)
        holder.send(signal.SIGCONT)
        await until_index(laptop, NAME, stays.name, holder.name, seconds=PATIENCE)
        assert holder_name(fake.serve_config) == stays.name


@pytest.mark.slow
async def test_a_holder_that_hangs_and_tells_some_hands_over_to_who_is_there(
    fake: FakeTailscaled, laptop: Path
) -> None:
    with processes(fake.socket, "one", "two", allowed=("ann@example.com",)) as running:
        for one in running:
            await one.until_announced()
        await until_index(laptop, NAME, "one", "two")
        [holder] = [one for one in running if one.name == holder_name(fake.serve_config)]
        holder.send(signal.SIGSTOP)

        [heir] = [one for one in running if one is not holder]
        await until(lambda: holder_name(fake.serve_config) == heir.name, PATIENCE)
        await until_index(laptop, NAME, heir.name)


@pytest.mark.slow
async def test_a_holder_that_hangs_hands_over_to_a_newcomer_and_comes_back_as_a_member(
    fake: FakeTailscaled, laptop: Path
) -> None:
    with processes(fake.socket, "one", "two") as running:
        for one in running:
            await one.until_announced()
        [holder] = [one for one in running if one.name == holder_name(fake.serve_config)]
        [member] = [one for one in running if one is not holder]
        holder.send(signal.SIGSTOP)

        with processes(fake.socket, "three") as [newcomer]:
            await newcomer.until_announced()
            await until_index(laptop, NAME, member.name, "three")
            assert holder_name(fake.serve_config) in (member.name, "three")
            holder.send(signal.SIGCONT)

            await until_index(laptop, NAME, "one", "two", "three", seconds=PATIENCE)
            assert holder_name(fake.serve_config) in (member.name, "three")


@pytest.mark.slow
async def test_many_processes_that_start_at_the_same_time_all_come_in(
    fake: FakeTailscaled, laptop: Path
) -> None:
    names = [f"shop{number}" for number in range(5)]
    with processes(fake.socket, *names) as running:
        for one in running:
            await one.until_announced()
        await until_index(laptop, NAME, *names)
        assert len(holders(fake.serve_config)) == 1


@pytest.mark.slow
async def test_twenty_in_one_process_come_in_at_the_real_pace(
    fake: FakeTailscaled, desk: Desk, laptop: Path
) -> None:
    starting = [desk.start(f"shop{number}") for number in range(20)]
    for one in starting:
        await one.until_announced(10)

    await until_index(laptop, NAME, *(f"shop{number}" for number in range(20)))


@pytest.mark.slow
async def test_the_heir_is_there_in_time(fake: FakeTailscaled, desk: Desk, laptop: Path) -> None:
    first = await desk.announce("first")
    await desk.announce("second")
    await desk.announce("third")
    await first.leave()

    await until_index(laptop, NAME, "second", "third", seconds=5)


async def test_a_holder_that_takes_nobody_in_hands_over_after_a_while(
    fake: FakeTailscaled,
    desk: Desk,
    brisk: None,
    posts: list[tuple[str, Row]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sharing, "_IDLE_SECONDS", 0.08)
    async with LocalApi(settings(fake.socket)) as api, api.watch() as bus:
        idle = Member(session=bus.session, entry=entry_of(endpoint("idle")))
        part = part_of_holder(idle, [idle], port=PORT, name=NAME, index="")
        fake.post_serve_config({"Foreground": {bus.session: part}})
        began = anyio.current_time()

        await desk.announce("shop")

        assert anyio.current_time() - began >= 0.08
        assert holder_name(fake.serve_config) == "shop"
        assert announced(fake.serve_config) == {"shop"}
        told = [listed(config, NAME) for _, config in posts if bus.session not in config["Foreground"]]
        assert told == [{"shop"}]
        with anyio.fail_after(5):
            await bus.follow(lambda: None)  # until it is sent away
    assert "taken over" in caplog.text


@contextlib.asynccontextmanager
async def hanging(fake: FakeTailscaled, *others: str, index: str = "") -> AsyncGenerator[str]:
    """Serve the index for others too, and do nothing any more; yields the session."""
    async with LocalApi(settings(fake.socket)) as api, api.watch() as bus:
        everybody = [
            Member(session=bus.session, entry=entry_of(endpoint(name))) for name in ("idle", *others)
        ]
        part = part_of_holder(everybody[0], everybody, port=PORT, name=NAME, index=index)
        fake.post_serve_config({"Foreground": {bus.session: part}})
        yield bus.session


async def test_a_holder_that_names_who_is_gone_hands_over_after_a_while(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_IDLE_SECONDS", 0.08)
    async with hanging(fake, "shop", "gone"):
        began = anyio.current_time()
        await desk.announce("shop")
        assert holder_name(fake.serve_config) == "idle"

        await until(lambda: listed(fake.serve_config, NAME) == {"shop"})

        assert anyio.current_time() - began >= 0.08
        assert holder_name(fake.serve_config) == "shop"


@pytest.mark.slow
async def test_a_holder_that_is_at_work_hands_over_to_nobody(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_IDLE_SECONDS", 0.05)
    async with hanging(fake, "shop", "gone") as session:
        shop = await desk.announce("shop")
        for number in range(20):
            config = copy.deepcopy(fake.serve_config or {})
            web = config["Foreground"][session]["Web"][f"{NAME}:{PORT}"]["Handlers"]
            web[f"/i/{number}/"] = {"Proxy": "http://127.0.0.1:4096"}
            fake.post_serve_config(config)
            looks = fake.asked["serve-config"]
            await until(lambda looks=looks: fake.asked["serve-config"] > looks)
            assert holders(fake.serve_config) == [session]
        assert not shop.ended.is_set()


@pytest.mark.slow
async def test_a_holder_that_tells_nobody_hands_over_after_a_while(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_IDLE_SECONDS", 0.08)
    monkeypatch.setattr(telling, "_ANSWER_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        async with hanging(fake, "shop", index=index):
            await desk.announce("shop")

            await until(lambda: holder_name(fake.serve_config) == "shop")
            assert listed(fake.serve_config, NAME) == {"shop"}


@pytest.mark.slow
async def test_a_holder_that_tells_some_keeps_the_index(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_IDLE_SECONDS", 0.05)
    await desk.announce("one", allow_users=("ann@example.com",))
    session = holders(fake.serve_config)
    await desk.announce("two")
    looks = fake.asked["serve-config"]
    await until(lambda: fake.asked["serve-config"] > looks + 20)

    assert holders(fake.serve_config) == session


async def test_who_leaves_is_gone_at_once_though_the_holder_hangs(
    fake: FakeTailscaled, desk: Desk, lazy: None
) -> None:
    async with hanging(fake, "shop", "other") as session:
        shop = await desk.announce("shop")

        await shop.leave()

        assert listed(fake.serve_config, NAME) == {"idle", "other"}
        assert "/i/shop/" not in str(fake.serve_config)
        assert holders(fake.serve_config) == [session]


@pytest.mark.parametrize("fault", ["hang", "fail", "conflict"])
async def test_whatever_is_in_the_way_of_leaving_it_takes_no_longer(
    fake: FakeTailscaled, desk: Desk, lazy: None, fault: str
) -> None:
    async with hanging(fake, "shop") as session:
        shop = await desk.announce("shop")
        match fault:
            case "hang":
                fake.hang("POST serve-config")
            case "fail":
                fake.fail("serve-config", 500)
            case _:
                fake.conflicts = 1

        await shop.leave()  # within 2 s

        await until(lambda: fake.sessions == [session])
        assert announced(fake.serve_config) == {"idle"}


# With a serve config of the user's


BACKGROUND: Row = {
    "TCP": {"443": {"HTTPS": True}, "2222": {"TCPForward": "127.0.0.1:22"}},
    "Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:3000"}}}},
    "Services": {"svc:web": {"TCP": {"80": {"HTTP": True}}, "Tun": True}},
    "AllowFunnel": {f"{NAME}:443": True},
}
THEIRS: Row = {
    "TCP": {"8080": {"HTTP": True}},
    "Web": {f"{NAME}:8080": {"Handlers": {"/a/": {"Text": "a <b> & c"}}}},
}


def others(config: Row | None, *sessions: str) -> Row:
    """A serve config without what is of none of these sessions."""
    rest = copy.deepcopy(config or {})
    rest["Foreground"] = {key: part for key, part in rest.get("Foreground", {}).items() if key in sessions}
    return rest


async def test_what_the_user_serves_stays_before_during_and_after(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    async with LocalApi(settings(fake.socket)) as api, api.watch() as one, api.watch() as other:
        fake.post_serve_config({**BACKGROUND, "Foreground": {one.session: THEIRS}})
        before = {**BACKGROUND, "Foreground": {one.session: THEIRS}}

        first, second = await desk.announce("first"), await desk.announce("second")
        assert others(fake.serve_config, one.session) == before
        assert set((fake.serve_config or {})["Foreground"]) == {*fake.sessions} - {other.session}

        await first.leave()
        await until(lambda: holder_name(fake.serve_config) == "second")
        assert others(fake.serve_config, one.session) == before
        await second.leave()
        await until(lambda: fake.watchers == 2)
        assert fake.serve_config == before


async def test_what_the_user_changes_meanwhile_stays(fake: FakeTailscaled, desk: Desk, brisk: None) -> None:
    await desk.announce("first")
    fake.post_serve_config({**(fake.serve_config or {}), **BACKGROUND})
    await desk.announce("second")
    assert others(fake.serve_config) == {**BACKGROUND, "Foreground": {}}

    now = copy.deepcopy(fake.serve_config or {})
    del now["TCP"]["2222"]
    fake.post_serve_config(now)
    await desk.announce("third")

    assert others(fake.serve_config)["TCP"] == {"443": {"HTTPS": True}}
    await until(lambda: listed(fake.serve_config, NAME) == {"first", "second", "third"})


@pytest.mark.parametrize(
    "taken",
    [
        {"TCP": {str(PORT): {"TCPForward": "127.0.0.1:22"}}},
        {
            "TCP": {str(PORT): {"HTTP": True}},
            "Web": {f"{NAME}:{PORT}": {"Handlers": {"/.well-known/opencode": {"Text": "mine"}}}},
        },
    ],
)
@pytest.mark.parametrize("foreground", [False, True])
async def test_a_port_that_the_user_uses_is_left_alone(
    fake: FakeTailscaled, desk: Desk, brisk: None, taken: Row, foreground: bool
) -> None:
    async with LocalApi(settings(fake.socket)) as api, api.watch() as bus:
        config = {"Foreground": {bus.session: taken}} if foreground else taken
        fake.post_serve_config(config)

        words = await desk.start().failure()

        assert words == (
            f"The index port {PORT} is used by another serve config of this machine "
            "(`tailscale serve status`). Set TAILSCALE_INDEX_PORT, on all machines."
        )
        assert fake.serve_config == config
        await desk.announce("shop", index_port=PORT + 1)


async def test_a_port_that_is_open_to_the_internet_is_not_used(fake: FakeTailscaled, desk: Desk) -> None:
    config = {"AllowFunnel": {f"{NAME}:{PORT}": True}}
    fake.post_serve_config(config)

    assert "open to the internet through Funnel" in await desk.start().failure()
    assert fake.serve_config == config
    assert fake.asked["POST serve-config"] == 0


async def test_if_the_port_is_opened_to_the_internet_it_is_withdrawn(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    one, other = await desk.announce("one"), await desk.announce("two")
    fake.post_serve_config({**(fake.serve_config or {}), "AllowFunnel": {f"{NAME}:{PORT}": True}})

    for each in (one, other):
        assert "open to the internet through Funnel" in await each.failure()
    await nothing_left(fake)


# Conflicts


async def test_whose_change_comes_too_late_tries_again_after_another_while_each_time(
    fake: FakeTailscaled, desk: Desk, posts: list[tuple[str, Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spreads: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        spreads.append((low, high))
        return low

    monkeypatch.setattr(random, "uniform", uniform)
    fake.conflicts = 3
    await desk.announce()

    ours = [(if_match, config) for if_match, config in posts if if_match]
    assert len(ours) == 4
    assert len({if_match for if_match, _ in ours}) == 4  # read again each time
    assert len((fake.serve_config or {})["TCP"]) == 3  # nothing of the others was overwritten
    assert len([one for one in spreads if one[0] * 3 < one[1]]) == 3


async def test_who_leaves_too_late_tries_again_after_another_while_each_time(
    fake: FakeTailscaled,
    desk: Desk,
    lazy: None,
    posts: list[tuple[str, Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announcement, "_LEAVE_SECONDS", 1.8)
    monkeypatch.setattr("opencode_mcp_tailscale.sharing._CONFLICT_SECONDS", 0.001)
    spreads: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        spreads.append((low, high))
        return low

    async with hanging(fake, "shop", "other") as session:
        shop = await desk.announce("shop")
        posts.clear()
        monkeypatch.setattr(random, "uniform", uniform)
        fake.conflicts = 3

        await shop.leave()

        assert listed(fake.serve_config, NAME) == {"idle", "other"}
        assert holders(fake.serve_config) == [session]
    ours = {if_match for if_match, _ in posts if if_match}
    assert len(ours) == 4  # read again each time
    assert len([one for one in spreads if one[0] * 3 < one[1]]) == 3


async def test_no_change_is_made_blindly(
    fake: FakeTailscaled, desk: Desk, brisk: None, posts: list[tuple[str, Row]]
) -> None:
    first = await desk.announce("first")
    await desk.announce("second", allow_users=("ann@example.com",))
    fake.update_me(name="table.tail1a2b.ts.net")
    await until(lambda: f"table.tail1a2b.ts.net:{PORT}" in str(fake.serve_config))
    await first.leave()
    await until(lambda: holder_name(fake.serve_config) == "second")

    assert len(posts) >= 4
    assert all(len(if_match) == 64 for if_match, _ in posts)


async def test_a_config_that_came_without_its_tag_is_not_overwritten(
    fake: FakeTailscaled, desk: Desk, brisk: None, posts: list[tuple[str, Row]]
) -> None:
    fake.post_serve_config(BACKGROUND)
    posts.clear()
    fake.garbage("serve-config", b"{}", times=1)  # an answer that has no Etag

    await desk.announce()

    assert posts[0][0] == "none"
    assert others(fake.serve_config) == {**BACKGROUND, "Foreground": {}}


async def test_if_others_change_it_all_the_time_that_is_said(
    fake: FakeTailscaled, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_CONFLICT_SECONDS", 0.001)
    fake.conflicts = 1000

    assert "Others change what this machine serves all the time" in await desk.start().failure()
    await nothing_left(fake)


# What is in the way of announcing


async def test_who_may_not_announce_is_told_what_to_do(fake: FakeTailscaled, desk: Desk) -> None:
    fake.writable = False

    words = await desk.start().failure()

    assert words == (
        "tailscaled lets only root and its operator announce: run `sudo tailscale set --operator=$USER`."
    )
    await nothing_left(fake)


async def test_if_nobody_can_connect_it_is_not_announced(fake: FakeTailscaled, desk: Desk) -> None:
    fake.set_prefs(ShieldsUp=True)

    assert "run `tailscale set --shields-up=false`" in await desk.start().failure()
    assert fake.asked["POST serve-config"] == 0


async def test_if_nobody_can_connect_any_more_it_is_withdrawn(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    one, other = await desk.announce("one"), await desk.announce("two")
    fake.set_prefs(ShieldsUp=True)

    for each in (one, other):
        assert "accepts no connections from the tailnet" in await each.failure()
    await nothing_left(fake)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("NeedsLogin", "Tailscale is logged out: log in at https://login.tailscale.com/a/1b2c."),
        ("NeedsMachineAuth", "waits to be approved"),
        ("Stopped", "Tailscale is stopped: run `tailscale up`."),
        ("Starting", "Tailscale is starting."),
        ("NoState", "Tailscale is starting."),
        ("InUseOtherUser", "Another user of this machine uses Tailscale."),
    ],
)
async def test_a_tailscale_that_is_not_running_is_said_to_be_so(
    fake: FakeTailscaled, desk: Desk, brisk: None, state: str, words: str
) -> None:
    one = await desk.announce()
    fake.auth_url = "https://login.tailscale.com/a/1b2c"
    fake.state = state

    assert words in await one.failure()  # while it was announced
    assert words in await desk.start().failure()  # from the beginning
    fake.state = "Running"
    await desk.announce()


async def test_if_a_change_is_refused_because_tailscale_is_logged_out_that_is_said(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    one = await desk.announce()
    with fake.silently():
        fake.tailnet.state = "NeedsLogin"

    assert await one.failure() == "Tailscale is logged out: log in with `tailscale up`."
    assert fake.asked["POST serve-config"] == 2


async def test_a_machine_whose_key_has_expired_announces_nothing(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    one = await desk.announce()
    status = json.loads(fake.tailnet.status())
    fake.tailnet.extra["Self"] = {**status["Self"], "Expired": True, "KeyExpiry": "2020-01-01T00:00:00Z"}
    fake.auth_url = "https://login.tailscale.com/a/1b2c"
    fake.state = "NeedsLogin"

    said = "The key of this machine has expired: log in at https://login.tailscale.com/a/1b2c."
    assert await one.failure() == said
    assert await desk.start().failure() == said


async def test_who_is_in_another_network_than_tailscaled_announces_nothing(
    fake: FakeTailscaled, desk: Desk, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tun = True

    assert "outside of this container, or network namespace" in await desk.start().failure()
    assert fake.asked["POST serve-config"] == 0

    monkeypatch.setattr(sharing, "is_here", lambda address: str(address) == fake.me.ips[-1])
    await desk.announce()
    assert await index(laptop, NAME) == {"shop"}


async def test_who_is_in_another_network_than_a_tailscaled_in_user_space_announces_nothing(
    fake: FakeTailscaled, laptop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, network in (("self", "net:[1]"), (str(os.getpid()), "net:[2]")):
        (tmp_path / name / "ns").mkdir(parents=True)
        (tmp_path / name / "ns" / "net").symlink_to(network)
    with monkeypatch.context() as patch:
        patch.setattr(daemon, "_PROCESSES", tmp_path)
        async with desk_at(fake.socket) as outside:
            said = await outside.start().failure()
    assert "outside of this container, or network namespace" in said
    assert fake.asked["POST serve-config"] == 0

    async with desk_at(fake.socket) as desk:
        await desk.announce()
        assert await index(laptop, NAME) == {"shop"}


async def test_a_machine_without_a_name_announces_nothing(fake: FakeTailscaled, desk: Desk) -> None:
    fake.update_me(extra={"DNSName": ""})

    assert "turn on MagicDNS" in await desk.start().failure()


async def test_a_machine_that_is_renamed_tells_its_index_under_the_new_name(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None
) -> None:
    await desk.announce("one")
    await desk.announce("two")

    fake.update_me(name="table.tail1a2b.ts.net")

    await until_index(laptop, "table.tail1a2b.ts.net", "one", "two")
    names = {name for part in (fake.serve_config or {})["Foreground"].values() for name in part["Web"]}
    assert names == {MARK, f"table.tail1a2b.ts.net:{PORT}"}


# When tailscaled is in trouble


@pytest.mark.slow
async def test_a_daemon_that_restarts_has_it_again_soon(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="opencode_mcp_tailscale")
    announcers = [await desk.announce("one"), await desk.announce("two", allow_users=("ann@example.com",))]
    for _ in range(3):
        looks = fake.asked["serve-config"]
        await until(
            lambda looks=looks: fake.asked["serve-config"] > looks + 6
        )  # both know that they are there
        await fake.stop()
        assert "tailscaled cannot be reached" in await desk.start().failure()
        with fake.silently():
            fake.tailnet.state = "Starting"
        await fake.start()
        asked = fake.asked["status"]
        await until(lambda asked=asked: fake.asked["status"] > asked)
        fake.state = "Running"

        await until_index(laptop, NAME, "one", "two")
        assert not any(one.ended.is_set() for one in announcers)
    assert caplog.text.count("tailscaled has withdrawn one: it is announced again.") == 3


async def test_a_daemon_that_stays_away_ends_it(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcement, "_AWAY_SECONDS", 0.1)
    one = await desk.announce()
    began = anyio.current_time()
    await fake.stop()

    assert "tailscaled cannot be reached" in await one.failure()
    assert anyio.current_time() - began >= 0.1


async def test_while_the_daemon_is_away_it_can_be_cancelled(fake: FakeTailscaled, desk: Desk) -> None:
    one = await desk.announce()
    await fake.stop()

    await one.leave()


async def test_what_was_never_announced_is_not_waited_for(
    fake: FakeTailscaled, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcement, "_LEAVE_SECONDS", 0.01)
    fake.hang("serve-config")
    one = desk.start()
    await until(lambda: fake.asked["serve-config"])
    fake.drop_watchers()

    assert "tailscaled has withdrawn it" in await one.failure()


@pytest.mark.slow
async def test_if_the_user_resets_what_is_served_it_is_announced_again_and_at_last_that_is_said(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    announcers = [await desk.announce("one"), await desk.announce("two")]
    for _ in range(3):
        fake.post_serve_config({})
        await until(lambda: listed(fake.serve_config, NAME) == {"one", "two"}, 0.4)
        looks = fake.asked["serve-config"]
        await until(lambda looks=looks: fake.asked["serve-config"] > looks + 6)  # and both know it
    fake.post_serve_config({})

    for one in announcers:
        assert "somebody reset what it serves" in await one.failure()
    await nothing_left(fake)
    await desk.announce()


async def test_after_a_while_a_reset_is_forgotten(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcement, "_LOSSES_SECONDS", 0.0)
    one = await desk.announce("one")
    for _ in range(6):
        fake.post_serve_config({})
        await until(lambda: listed(fake.serve_config, NAME) == {"one"})
    assert not one.ended.is_set()


@pytest.mark.parametrize("way", ["end", "abort", "fell behind"])
async def test_if_the_bus_ends_it_is_announced_again_in_a_new_session(
    fake: FakeTailscaled, desk: Desk, lazy: None, way: str
) -> None:
    one = await desk.announce()
    before = holders(fake.serve_config)
    match way:
        case "end":
            fake.drop_watchers()
        case "abort":
            fake.drop_watchers(abort=True)
        case _:
            fake.fell_behind()

    await until(lambda: holders(fake.serve_config) not in ([], before), 0.4)
    assert holders(fake.serve_config) == fake.sessions
    assert not one.ended.is_set()


async def test_a_tailscaled_without_sessions_is_too_old(fake: FakeTailscaled, desk: Desk) -> None:
    fake.garbage("watch-ipn-bus", b'{"Version":"1.50.0","State":6}\n')

    assert "too old" in await desk.start().failure()


@pytest.mark.slow
async def test_only_the_beginning_of_the_bus_is_bounded_in_time(
    fake: FakeTailscaled, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(localapi, "_SECONDS", 0.3)
        one = desk.start()
        await until(lambda: fake.watchers)
    await one.until_announced()

    with anyio.move_on_after(0.4):
        await one.ended.wait()

    assert not one.ended.is_set()


@pytest.mark.parametrize("endpoint", ["watch-ipn-bus", "status", "prefs", "serve-config"])
@pytest.mark.parametrize("fault", ["hang", "fail", "garbage", "nothing", "no HTTP"])
async def test_a_tailscaled_that_fails_is_said_to_do_so(
    fake: FakeTailscaled, desk: Desk, monkeypatch: pytest.MonkeyPatch, endpoint: str, fault: str
) -> None:
    match fault:
        case "hang":
            monkeypatch.setattr(localapi, "_SECONDS", 0.05)
            fake.hang(endpoint)
        case "fail":
            fake.fail(endpoint, 500, '{"error": "no netmap"}')
        case "garbage":
            fake.garbage(endpoint, b"\xff\xfe\n[[[")
        case "nothing":
            fake.garbage(endpoint, b"", raw=True)
        case _:
            fake.garbage(endpoint, b"SSH-2.0-x\r\n\r\n", raw=True)

    words = await desk.start().failure()

    assert "tailscaled" in words
    assert ("no netmap" in words) is (fault == "fail")
    assert "Foreground" not in (fake.serve_config or {})


async def test_a_tailscaled_that_takes_no_change_is_quoted(
    fake: FakeTailscaled, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> set[str]:
        raise ValueError("the config is locked")

    monkeypatch.setattr(fake.serve, "replace", refuse)

    words = await desk.start().failure()

    assert "HTTP status 500" in words
    assert "the config is locked" in words


@pytest.mark.parametrize("name", ["serve-config", "status", "prefs"])
@pytest.mark.parametrize("fault", ["fail", "hang", "garbage"])
@pytest.mark.slow
async def test_answers_may_fail_for_a_while_once_it_is_announced(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    one = await desk.announce()
    sessions = fake.sessions
    monkeypatch.setattr(localapi, "_SECONDS", 0.02)
    match fault:
        case "fail":
            fake.fail(name, 503, "no netmap")
        case "hang":
            fake.hang(name)
        case _:
            fake.garbage(name, b"[[[")
    fake.say(State=6)
    asked = fake.asked[name]
    await until(lambda: fake.asked[name] > asked + 3)
    fake.mend(name)
    fake.set_prefs(ShieldsUp=False)
    looks = fake.asked["serve-config"]
    await until(lambda: fake.asked["serve-config"] > looks + 3)

    assert fake.sessions == sessions
    assert announced(fake.serve_config) == {"shop"}
    assert not one.ended.is_set()
    with fake.silently():
        fake.tailnet.state = "Stopped"
    one.transport.woke()
    assert "Tailscale is stopped" in await one.failure()


@pytest.mark.parametrize("name", ["serve-config", "status", "prefs"])
@pytest.mark.slow
async def test_if_answers_fail_for_longer_that_is_said(
    fake: FakeTailscaled, desk: Desk, brisk: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(announcement, "_TRYING_SECONDS", 0.05)
    one = await desk.announce()
    began = anyio.current_time()
    fake.fail(name, 503, "no netmap")
    fake.say(State=6)

    assert "no netmap" in await one.failure()
    assert anyio.current_time() - began >= 0.05
    await nothing_left(fake)


@pytest.mark.parametrize("status", [401, 403])
async def test_who_may_announce_no_more_is_told_at_once(
    fake: FakeTailscaled, desk: Desk, brisk: None, status: int
) -> None:
    one = await desk.announce()
    fake.fail("serve-config", status, "denied", times=1)

    assert "denied" in await one.failure()
    fake.mend("serve-config")
    await nothing_left(fake)


# Being woken, and being cancelled


async def test_who_is_woken_looks_at_once(fake: FakeTailscaled, desk: Desk, lazy: None) -> None:
    one = await desk.announce()
    with fake.silently():
        fake.tailnet.state = "Stopped"

    one.transport.woke()

    assert "Tailscale is stopped" in await one.failure()


async def test_who_is_woken_looks_once(fake: FakeTailscaled, desk: Desk, laptop: Path, lazy: None) -> None:
    one = await desk.announce()
    looks = fake.asked["serve-config"]
    for more in (1, 2):
        one.transport.woke()
        await until(lambda wanted=looks + more: fake.asked["serve-config"] == wanted)
        for _ in range(5):
            assert await index(laptop, NAME) == {"shop"}
        assert fake.asked["serve-config"] == looks + more


async def test_who_is_woken_while_looking_looks_again(
    fake: FakeTailscaled, desk: Desk, lazy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await desk.announce()
    read = desk.api.serve_config

    async def read_and_be_woken() -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(desk.api, "serve_config", read)
        with fake.silently():
            fake.tailnet.state = "Stopped"
        one.transport.woke()
        return await read()

    monkeypatch.setattr(desk.api, "serve_config", read_and_be_woken)
    one.transport.woke()

    assert "Tailscale is stopped" in await one.failure()


@pytest.mark.slow
async def test_wherever_it_is_cancelled_nothing_is_left(fake: FakeTailscaled, desk: Desk) -> None:
    await (await desk.announce()).leave()  # tailscaled is found: from now on there are no threads
    await nothing_left(fake)
    cycles = 0
    one = desk.start()
    while not one.announced.is_set():
        await anyio.lowlevel.checkpoint()
        cycles += 1
    await one.leave()
    await nothing_left(fake)
    assert 20 < cycles < 400

    written = 0
    for cycle in range(cycles + 5):
        one = desk.start()
        for _ in range(cycle):
            await anyio.lowlevel.checkpoint()
        written += bool(announced(fake.serve_config))
        await one.leave()
        await nothing_left(fake)
    assert 0 < written < cycles


@pytest.mark.slow
async def test_wherever_one_is_cancelled_the_other_one_stays(
    fake: FakeTailscaled, desk: Desk, laptop: Path, brisk: None
) -> None:
    other = await desk.announce("other")
    for cycle in range(0, 120, 7):
        one = desk.start("one")
        for _ in range(cycle):
            await anyio.lowlevel.checkpoint()
        await one.leave()
    await until_index(laptop, NAME, "other")
    assert not other.ended.is_set()
    assert fake.watchers == 1


# What others say of it


async def test_inspection_says_where_it_is_served_and_that_it_is_not(
    fake: FakeTailscaled, desk: Desk, brisk: None
) -> None:
    one = await desk.announce("one")
    two = await desk.announce("two", "http://127.0.0.1:5000")

    async def inspected(given: Endpoint) -> list[tuple[str, bool | None, str]]:
        return [(found.about, found.ok, found.detail) for found in await one.transport.inspect(given)]

    assert await inspected(one.endpoint) == [("served", True, f"at http://{NAME}:{PORT}/i/one/")]
    assert await inspected(two.endpoint) == [("served", True, f"at http://{NAME}:{PORT}/i/two/")]
    gone = ("served", False, f"tailscaled does not serve it at port {PORT}")
    assert await inspected(endpoint("three")) == [gone]
    assert await inspected(endpoint("two", "http://127.0.0.1:4096")) == [gone]

    fake.state = "Stopped"
    assert await inspected(one.endpoint) == [("tailnet", False, "Tailscale is stopped: run `tailscale up`.")]
    await nothing_left(fake)
    await fake.stop()
    with pytest.raises(TransportError, match="cannot be reached"):
        await inspected(one.endpoint)


def test_what_announcing_takes_says_who_is_told() -> None:
    [plugin] = opencode_mcp_transports()
    assert plugin.announcing is not None
    everybody = plugin.announcing(settings("/run/x"))
    some = plugin.announcing(settings("/run/x", allow_users=("ann@example.com", "tag:x")))
    elsewhere = plugin.announcing(settings("/run/y"))

    assert everybody.listen == "127.0.0.1"
    assert (
        everybody.facts["Tailnet"]
        == "index at port 14096, for whoever the tailnet's access rules let through"
    )
    assert some.facts["Tailnet"] == "index at port 14096, for ann@example.com, tag:x"
    assert everybody.place == some.place != elsewhere.place
    assert plugin.announcing(settings("/run/x", index_port=1)).place != everybody.place
    assert "/run" not in everybody.place


async def test_the_transport_announces_as_core_does(fake: FakeTailscaled) -> None:
    [plugin] = opencode_mcp_transports()
    async with plugin.open(settings(fake.socket)) as transport:
        assert isinstance(transport, Tailscale)
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: transport.announce(endpoint(), task_status=task_status))
            assert announced(fake.serve_config) == {"shop"}
            group.cancel_scope.cancel()
    await nothing_left(fake)
