"""A jump of the wall clock is a machine that slept, or whose clock was set."""

import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from opencode_mcp import Endpoint
from opencode_mcp.connect.clock import watch_clock
from opencode_mcp.connect.keeping import Keeper
from opencode_mcp_local_relay import LocalRelaySettings, opencode_mcp_transports
from support.fleets import until

pytestmark = pytest.mark.anyio


class Wall:
    """A wall clock that a test may set."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return time.monotonic() + 1_700_000_000 + self.ahead


@pytest.mark.parametrize("seconds", [3600.0, 6.0, -3600.0])
async def test_a_jump_is_told_once_at_the_next_look(seconds: float) -> None:
    wall, told = Wall(), list[float]()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: watch_clock(told.append, wall=wall, look_seconds=0.01))
        await until(lambda: wall.looks > 3)
        assert told == []
        wall.ahead += seconds
        looks = wall.looks
        await until(lambda: wall.looks > looks + 5)
        assert told == [pytest.approx(seconds, abs=0.5)]
        wall.ahead += seconds
        await until(lambda: len(told) == 2)
        group.cancel_scope.cancel()


async def test_a_clock_that_is_corrected_a_little_has_not_jumped() -> None:
    wall, told = Wall(), list[float]()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: watch_clock(told.append, wall=wall, look_seconds=0.01))
        for _ in range(5):
            looks = wall.looks
            await until(lambda looks=looks: wall.looks > looks)
            wall.ahead += 4.5
        group.cancel_scope.cancel()
    assert told == []


async def test_after_a_jump_the_registration_is_written_anew_at_once(tmp_path: Path) -> None:
    [plugin] = opencode_mcp_transports()
    settings = LocalRelaySettings(registry_dir=tmp_path / "registry", ssh_cmd=None)
    keeper: Any = Keeper(plugin, settings, lambda: None)
    endpoint = Endpoint(id="x", name="laptop-shop", url="http://127.0.0.1:4096")
    wall = Wall()
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run, endpoint)
        group.start_soon(lambda: watch_clock(lambda _: keeper.woke(), wall=wall, look_seconds=0.01))
        await until(lambda: keeper.announced)
        path = tmp_path / "registry" / "laptop-shop.json"
        before = path.stat().st_ino
        wall.ahead = 3600
        await until(lambda: path.stat().st_ino != before, seconds=1)
        group.cancel_scope.cancel()
    assert not path.exists()
