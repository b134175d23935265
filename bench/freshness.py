"""How soon a new registration is listed, and how soon an instance that was killed is shown offline.

What is timed ends when a call of `instances`, repeated every 20 ms, shows it. The floor is what this process
sees itself: the file in the directory's listing, the end of the killed instance's event stream.
"""

import statistics
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import httpx2

from figure import Figure
from processes import OURS, Connected, Registry, connected, simulated, workplace

OTHERS = 100
_EVERY_SECONDS = 0.02
_PREFIX = "newcomer"


async def until(server: Connected, wanted: Callable[[dict[str, Any] | None], bool]) -> float:
    """Call `instances` until the newcomer's row, or its absence, is as wanted; return the moment."""
    with anyio.fail_after(20):
        while True:
            rows = await server.rows()
            if wanted(next((row for row in rows if row["name"].startswith(_PREFIX)), None)):
                return time.perf_counter()
            await anyio.sleep(_EVERY_SECONDS)


def _is(row: dict[str, Any] | None, status: str) -> bool:
    return row is not None and row["status"] == status and (status != "online" or row["activity"] == "idle")


class Times:
    """Milliseconds, by what was waited for."""

    def __init__(self) -> None:
        self.listed: list[float] = []
        self.online: list[float] = []
        self.offline: list[float] = []
        self.in_directory: list[float] = []
        self.cut: list[float] = []


async def come_and_go(server: Connected, registry: Registry, times: Times) -> None:
    """Start an instance, register it, kill it, and withdraw its registration."""
    async with simulated(1) as newcomer:
        began = time.perf_counter()
        registry.register(*newcomer.ports, prefix=_PREFIX)
        assert any(registry.directory.glob(f"{_PREFIX}-*.json"))
        times.in_directory.append((time.perf_counter() - began) * 1000)
        times.listed.append((await until(server, lambda row: row is not None) - began) * 1000)
        times.online.append((await until(server, lambda row: _is(row, "online")) - began) * 1000)
        await anyio.sleep(0.5)

        async with (
            httpx2.AsyncClient(timeout=30, trust_env=False) as client,
            client.stream("GET", f"http://127.0.0.1:{newcomer.ports[0]}/global/event") as response,
            anyio.create_task_group() as tasks,
        ):
            began = time.perf_counter()
            newcomer.process.kill()
            tasks.start_soon(_read_until_cut, response, began, times)
            times.offline.append((await until(server, lambda row: _is(row, "offline")) - began) * 1000)
    registry.withdraw(_PREFIX)
    await until(server, lambda row: row is None)


async def _read_until_cut(response: httpx2.Response, began: float, times: Times) -> None:
    try:
        async for _ in response.aiter_raw():
            pass
    except httpx2.HTTPError:
        pass
    times.cut.append((time.perf_counter() - began) * 1000)


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Let an instance come and go among others."""
    times = Times()
    async with workplace() as (_, registry), simulated(OTHERS) as others:
        registry.register(*others.ports)
        async with connected(OURS, registry.environment) as server:
            await server.all_online(OTHERS)
            for _ in range(max(5, rounds // 2)):
                await come_and_go(server, registry, times)
    for name, measured, floor, target in (
        ("new registration listed", times.listed, times.in_directory, 1000),
        ("new registration listed as online", times.online, times.in_directory, 1000),
        ("killed instance shown offline", times.offline, times.cut, 2000),
    ):
        yield Figure(
            name=name,
            measured=statistics.median(measured),
            unit="ms",
            target=target,
            floor=statistics.median(floor),
            note=f"n={len(measured)}, worst {max(measured):.0f}",
        )
