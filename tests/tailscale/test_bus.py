"""The bus: whatever its lines look like, and however they are cut, a change is noticed."""

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from opencode_mcp import TransportError
from opencode_mcp_tailscale.bus import Bus
from support.fake_tailscaled import FakeTailscaled
from support.fake_tailscaled_bus import line

pytestmark = pytest.mark.anyio

FIRST = line(SessionID="5e55", State=6)
RELEVANT: dict[str, Any] = {
    "State": 2,
    "Prefs": {"ShieldsUp": True},
    "SelfChange": {"ID": 1},
    "NetMap": {"Peers": []},
    "PeersChanged": [{"ID": 7}],
    "PeersRemoved": [7],
    "PeerChangedPatch": [{"NodeID": 7, "Online": True}],
    "PeerChanges": [{"NodeID": 7}],
}


async def parts(*written: bytes) -> AsyncIterator[bytes]:
    for part in written:
        yield part


async def noticed(*written: bytes) -> int:
    """How often a change is noticed in what follows the first line."""
    bus = Bus(parts(FIRST, *written))
    await bus.open()
    return await followed(bus)


async def followed(bus: Bus) -> int:
    calls: list[None] = []
    await bus.follow(lambda: calls.append(None))
    return len(calls)


def pieces(whole: bytes, size: int) -> Iterable[bytes]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


async def test_the_first_line_says_which_session_it_is() -> None:
    bus = Bus(parts(*pieces(FIRST, 3)))
    await bus.open()
    assert bus.session == "5e55"


@pytest.mark.parametrize("told", [{}, {"SessionID": None}, {"SessionID": 7}, {"SessionID": ["x"]}])
async def test_a_daemon_that_names_no_session_is_watched_all_the_same(told: dict[str, Any]) -> None:
    bus = Bus(parts(line(**told)))
    await bus.open()
    assert bus.session == ""


@pytest.mark.parametrize(
    "first", [b"<html>\n", b"[]\n", b"null\n", b"\n", b"\xff\xfe\n", b'"x"\n', b"[" * 100_000 + b"\n"]
)
async def test_a_first_line_that_is_garbage_is_refused(first: bytes) -> None:
    with pytest.raises(TransportError, match="in words that are not understood"):
        await Bus(parts(first)).open()


@pytest.mark.parametrize("first", [[], [b'{"Version"'], [b"x" * 65_536] * 20])
async def test_a_first_line_that_does_not_end_is_refused(first: list[bytes]) -> None:
    with pytest.raises(TransportError, match="tells nothing of what changes"):
        await Bus(parts(*first)).open()


@pytest.mark.parametrize("name", RELEVANT)
async def test_what_may_change_the_status_is_noticed(name: str) -> None:
    assert await noticed(line(**{name: RELEVANT[name]})) == 1


async def test_what_cannot_change_the_status_is_not() -> None:
    said = 'a "State":6 and \\"NetMap\\":{}'
    engine = {"RBytes": 1, "LivePeers": {}}
    assert await noticed(line(), line(Engine=engine), line(Health={"Text": said}, ErrMessage=said)) == 0


@pytest.mark.parametrize("generation", ["netmap", "changes", "patches"])
async def test_each_generation_of_tailscaled_is_understood(generation: Any) -> None:
    fake = FakeTailscaled(generation=generation)
    bus = fake._bus
    said: list[bytes] = []

    class Session:
        mask = 2 | 4096 | 32768
        full = False
        put = staticmethod(said.append)

    bus.sessions["x"] = Session()  # pyright: ignore[reportArgumentType] - one that only listens
    peer = fake.add_peer("box")
    fake.update_peer(peer.id, online=False)
    fake.update_peer(peer.id, name="tower.tail1a2b.ts.net")
    fake.remove_peer(peer.id)
    assert len(said) == 4
    for one in said:
        assert await noticed(one) == 1


@pytest.mark.parametrize("name", RELEVANT)
async def test_a_key_may_be_cut_anywhere(name: str) -> None:
    whole = line(Engine={"x": "y" * 200}) + json.dumps({name: RELEVANT[name]}).encode() + b"\n"
    at = whole.index(f'"{name}"'.encode())
    for cut in range(at - 1, at + len(name) + 6):
        assert await noticed(whole[:cut], whole[cut:]) >= 1
    assert await noticed(*pieces(whole, 1)) >= 1


async def test_null_is_no_change_however_it_is_cut() -> None:
    assert await noticed(b'{"State":null,"NetMap" : null}\n') == 0


async def test_a_line_of_megabytes_costs_one_reading_a_part_at_most() -> None:
    peers = [{"ID": number, "Name": "x" * 100} for number in range(20_000)]
    whole = line(NetMap={"Peers": peers})
    assert len(whole) > 2_000_000
    cut = list(pieces(whole, 65_536))
    assert await noticed(*cut) == 1
    assert await noticed(line(Engine={"x": "y" * 3_000_000})) == 0


async def test_what_comes_with_the_first_line_counts() -> None:
    bus = Bus(parts(FIRST + line(State=4)))
    await bus.open()
    assert await followed(bus) == 1


async def test_lines_that_come_together_are_one_change_and_those_that_do_not_are_several() -> None:
    assert await noticed(line(State=4) + line(State=6)) == 1
    assert await noticed(line(State=4), line(State=6)) == 2


async def test_who_fell_behind_is_told_the_end() -> None:
    assert await noticed(line(ErrMessage="IPN bus consumer fell behind; closing watch")) == 0
