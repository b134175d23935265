"""The login names that a status leaves out, asked for with whois."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.logins import Logins
from opencode_mcp_tailscale.status import Status, Who
from support.fake_tailscaled import FakeTailscaled
from tailscale import tailscale_parts as parts

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / "s") as one:
        one.add_peer("box", id="nbox", user="bob@example.com", ips=("100.64.0.7",))
        one.tailnet.extra["User"] = {}  # as tailscaled 1.102 leaves out who joined late
        yield one


@pytest.fixture
async def api(fake: FakeTailscaled) -> AsyncGenerator[LocalApi]:
    async with LocalApi(parts.settings(fake)) as one:
        yield one


async def user_of_box(logins: Logins, api: LocalApi) -> str:
    found: Status = await logins.complete(await api.status())
    [machine] = found.peers
    return machine.user


async def test_a_name_that_the_status_leaves_out_is_asked_for_once(
    fake: FakeTailscaled, api: LocalApi
) -> None:
    assert (await api.status()).peers[0].user == ""
    logins = Logins(api)
    assert await user_of_box(logins, api) == "bob@example.com"
    assert await user_of_box(logins, api) == "bob@example.com"
    assert fake.asked["whois"] == 1


async def test_what_failed_is_asked_again(fake: FakeTailscaled, api: LocalApi) -> None:
    logins = Logins(api)
    fake.fail("whois", 503, "no netmap", times=1)
    assert await user_of_box(logins, api) == ""
    assert await user_of_box(logins, api) == "bob@example.com"


async def test_of_too_many_who_stay_unknown_all_get_their_turns(
    fake: FakeTailscaled, api: LocalApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.logins._AT_A_TIME", 2)
    for number in range(5):
        peer = fake.add_peer(f"a{number}", user=f"a{number}@example.com", ips=(f"100.64.1.{number}",))
        fake.whois[peer.ips[0]] = {"Node": None, "UserProfile": None, "CapMap": None}
    asked: list[str] = []
    whois = api.whois

    async def noted(address: str) -> Who | None:
        asked.append(address)
        return await whois(address)

    monkeypatch.setattr(api, "whois", noted)
    logins = Logins(api)
    for _ in range(6):
        await logins.complete(await api.status())
    assert len(asked) == 12
    assert asked.count("100.64.0.7") == 1  # who is known is not asked for again
    assert {asked.count(f"100.64.1.{number}") for number in range(5)} == {2, 3}


async def test_a_whois_that_hangs_delays_a_status_for_a_moment_only(
    fake: FakeTailscaled, api: LocalApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_tailscale.logins._SECONDS", 0.05)
    fake.hang("whois")
    assert await user_of_box(Logins(api), api) == ""


@pytest.mark.parametrize("node", ["nother", "", None])
async def test_whoever_has_the_address_by_now_is_not_taken_for_the_machine(
    fake: FakeTailscaled, api: LocalApi, node: Any
) -> None:
    fake.whois["100.64.0.7"] = {
        "Node": {"StableID": node},
        "UserProfile": {"LoginName": "bob@example.com"},
        "CapMap": None,
    }
    assert await user_of_box(Logins(api), api) == ""


async def test_on_another_tailnet_the_same_number_is_another_user(
    fake: FakeTailscaled, api: LocalApi
) -> None:
    logins = Logins(api)
    assert await user_of_box(logins, api) == "bob@example.com"
    fake.update_me(id="nelsewhere")
    fake.whois["100.64.0.7"] = {
        "Node": {"StableID": "nbox"},
        "UserProfile": {"LoginName": "eve@example.com"},
        "CapMap": None,
    }
    assert await user_of_box(logins, api) == "eve@example.com"
