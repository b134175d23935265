"""What the look-out does when things are different from before: names, networks, users, other machines."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from opencode_mcp import Endpoint
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_tailscale import own
from support.fake_tailscaled import FakeTailscaled
from support.fleets import until
from tailscale import tailscale_parts as parts
from tailscale.tailscale_parts import INDEX, announce, client, served, watching

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


def mark(port: int, known: str, url: str) -> dict[str, object]:
    """The part of the serve config in which this machine announces an instance."""
    handlers = {"/": {"Text": f'{{"id": "{known}", "path": "/i/{known}/"}}'}, f"/i/{known}/": {"Proxy": url}}
    return {"Web": {f"opencode-mcp.invalid:{port}": {"Handlers": handlers}}}


def announced_here(fake: FakeTailscaled, session: str, known: str, url: str) -> None:
    fake.post_serve_config({"Foreground": {session: mark(INDEX, known, url)}})


async def test_a_renamed_machine_is_called_by_its_new_name_over_the_open_route(
    fake: FakeTailscaled, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.GONE_SECONDS", 5.0)  # until the new name is known here
    peer = fake.add_peer("box", id="nbox", ips=("100.64.0.7",))
    web = announce(fake, peer, {"k3": opencode.url})
    async with watching(fake) as watched:
        endpoint = (await watched.lists("nbox/k3"))["nbox/k3"]
        async with watched.transport.connect(endpoint) as route, client(route) as asking:
            assert (await asking.get("/global/health")).status_code == 200
            renamed = fake.update_peer("nbox", name="chest.tail1a2b.ts.net")
            web.configs.replace(served(renamed.name, {"k3": opencode.url}), "", ())
            await until(lambda: watched.now["nbox/k3"].hostname == "chest")
            assert (await asking.get("/global/health")).status_code == 200


async def test_when_this_machine_is_back_everybody_is_asked_anew(
    fake: FakeTailscaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.rounds.PATIENCE", (0.05, 0.05, 0.05))
    monkeypatch.setattr("opencode_mcp_tailscale.rounds._SILENT_SECONDS", 3600.0)
    peer = fake.add_peer("box", id="nbox", ips=("100.64.0.7",))
    fake.reach["100.64.0.7", INDEX] = "hang"
    async with watching(fake) as watched:
        await until(lambda: len([one for one in fake.dials if one[1] == INDEX]) >= 3)
        await anyio.sleep(0.1)  # now it rests for an hour
        announce(fake, peer, {"k3": f"http://127.0.0.1:{parts.NOWHERE}"})
        fake.update_me(online=False)
        await until(lambda: fake.asked["status"] >= 3)
        fake.update_me(online=True)
        await watched.lists("nbox/k3")


async def test_in_another_namespace_this_machine_is_left_out(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    fake.tun = True
    fake.update_me(ips=("100.64.0.250",))
    async with watching(fake, ports=(opencode.port,)) as watched:
        await watched.says("another network namespace")
        await watched.lists()


async def test_what_was_forgotten_and_came_back_elsewhere_on_this_machine_is_listed(
    fake: FakeTailscaled, opencode: FakeOpenCode
) -> None:
    async with watching(fake) as watched:
        await until(lambda: bool(fake.sessions))
        [session] = fake.sessions
        announced_here(fake, session, "k3", f"http://127.0.0.1:{parts.NOWHERE}")
        known = f"{fake.me.id}/k3"
        endpoint = (await watched.lists(known))[known]
        await watched.transport.forget(endpoint)
        await watched.lists()
        announced_here(fake, session, "k3", opencode.url)
        assert (await watched.lists(known))[known].url == opencode.url


async def test_who_listens_here_as_another_user_is_named_as_such(
    fake: FakeTailscaled, opencode: FakeOpenCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "listening_user", lambda url: os.geteuid() + 1)
    async with watching(fake, ports=(opencode.port,)) as watched:
        known = f"{fake.me.id}:{opencode.port}"
        found: Endpoint = (await watched.lists(known))[known]
    assert not found.vouched
    assert found.name == f"{fake.me.name.partition('.')[0]}-shop@{fake.me.name}"
    assert found.labels["identity"] == "of another user of this machine"


async def test_what_another_user_wrote_into_the_serve_config_is_not_this_users(
    fake: FakeTailscaled,
) -> None:
    """Somebody listens at 0.0.0.0, and the serve config names that port of another machine."""
    async with watching(fake) as watched:
        await until(lambda: bool(fake.sessions))
        [session] = fake.sessions
        here = FakeOpenCode()
        async with here.serve(host="0.0.0.0"):
            announced_here(fake, session, "k3", f"http://192.0.2.66:{here.port}")
            known = f"{fake.me.id}/k3"
            assert not (await watched.lists(known))[known].vouched


@pytest.mark.parametrize("zone", ["\u202e", " ", "\\", "x" * 3000])
async def test_a_part_of_the_serve_config_that_makes_no_url_harms_nobody(
    fake: FakeTailscaled, zone: str
) -> None:
    peer = fake.add_peer("box", id="nbox")
    announce(fake, peer, {"k3": f"http://127.0.0.1:{parts.NOWHERE}"})
    async with watching(fake) as watched:
        await watched.lists("nbox/k3")
        [session] = fake.sessions
        before = fake.asked["serve-config"]
        announced_here(fake, session, "k4", f"http://[fe80::1%{zone}]:4096")
        await until(lambda: fake.asked["serve-config"] > before + 2)
        await watched.lists("nbox/k3")


async def test_a_machine_that_claims_an_address_of_this_one_is_left_out(fake: FakeTailscaled) -> None:
    [first, *_] = fake.me.ips
    fake.add_peer("box", id="nbox", ips=(first,))
    async with watching(fake) as watched:
        await watched.says("it has an address of this machine")
    assert not [one for one in fake.dials if one[0] == first]


async def test_a_user_of_whom_the_status_says_nothing_is_asked_for(fake: FakeTailscaled) -> None:
    peer = fake.add_peer("box", id="nbox", user="bob@example.com")
    announce(fake, peer, {"k3": f"http://127.0.0.1:{parts.NOWHERE}"})
    fake.tailnet.extra["User"] = {}
    async with watching(fake, users=("bob@example.com",)) as watched:
        assert (await watched.lists("nbox/k3"))["nbox/k3"].vouched
