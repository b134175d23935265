"""How much memory and, while nothing happens but heartbeats, how much CPU a large fleet costs."""

from collections.abc import AsyncGenerator

import anyio
import psutil

from figure import Figure
from processes import OURS, SMALLEST, connected, simulated, workplace

COUNT = 500
SETTLE_SECONDS = 12.0
IDLE_SECONDS = 40.0


async def cpu(processes: list[psutil.Process], seconds: float) -> list[float]:
    """Return what each process uses, in percent of a core, averaged over some time."""
    before = [_used(process) for process in processes]
    await anyio.sleep(seconds)
    return [(_used(process) - used) / seconds * 100 for process, used in zip(processes, before, strict=True)]


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def megabytes(process: psutil.Process) -> tuple[float, float]:
    """Return what a process occupies, and how much of that it shares with nobody."""
    memory = process.memory_full_info()
    return memory.rss / 1e6, memory.uss / 1e6


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Weigh ours and the smallest side by side; `rounds` does not count here."""
    async with workplace() as (_, registry), simulated(COUNT) as servers:
        registry.register(*servers.ports)
        async with (
            connected(SMALLEST, {}) as smallest,
            connected(OURS, registry.environment) as real,
        ):
            await real.all_online(COUNT)
            await anyio.sleep(SETTLE_SECONDS)
            used, least = await cpu([real.process, smallest.process], IDLE_SECONDS)
            await real.all_online(COUNT, 1)
            (rss, uss), (floor_rss, floor_uss) = megabytes(real.process), megabytes(smallest.process)
    yield Figure(
        name=f"memory (RSS), {COUNT} online",
        measured=rss,
        unit="MB",
        target=150,
        floor=floor_rss,
        note=f"USS {uss:.0f} MB, floor {floor_uss:.0f} MB",
    )
    yield Figure(
        name=f"idle CPU of one core, {COUNT} online",
        measured=used,
        unit="%",
        target=3,
        floor=least,
        note=f"over {IDLE_SECONDS:.0f} s, a heartbeat of each every 10 s",
    )
