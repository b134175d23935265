"""How long a call of `instances` takes, and that it asks no instance for anything."""

import statistics
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from figure import Figure, spread
from processes import HERE, OURS, Connected, connected, simulated, workplace

SIZES = (1, 100, 500)


async def call(server: Connected) -> float:
    """Call the tool and return the milliseconds that it took."""
    began = time.perf_counter()
    await server.instances()
    return (time.perf_counter() - began) * 1000


async def against_a_constant(place: Path, real: Connected, rounds: int) -> tuple[list[float], list[float]]:
    """Call ours and a server that returns the same as a constant, in turns; return how long each took."""
    result = await real.instances()
    (place / "result.json").write_text(result.model_dump_json(by_alias=True, exclude_none=True))
    command = (sys.executable, str(HERE / "constant.py"), str(place / "result.json"))
    async with connected(command, {}) as constant:
        same = await constant.instances()
        assert same.content == result.content
        assert same.structured_content == result.structured_content
        schemas = [await _output_schema(server) for server in (real, constant)]
        assert schemas[0] == schemas[1]
        for server in (real, constant) * 3:
            await call(server)
        ours: list[float] = []
        floor: list[float] = []
        turns = [(real, ours), (constant, floor)]
        for _ in range(rounds):
            for server, times in turns:
                times.append(await call(server))
            turns.reverse()
    return ours, floor


async def compare(count: int, rounds: int) -> tuple[Figure, Figure]:
    """Call ours and the constant in turns, with `count` instances online."""
    async with workplace() as (place, registry), simulated(count) as servers:
        registry.register(*servers.ports)
        async with connected(OURS, registry.environment) as real:
            await real.all_online(count)
            before = await servers.ask("requests")
            ours, floor = await against_a_constant(place, real, rounds)
            after = await servers.ask("requests")
    latency = Figure(
        name=f"instances, {count} online",
        measured=statistics.median(ours),
        unit="ms",
        target=1.3,
        relative=True,
        floor=statistics.median(floor),
        note=spread(ours),
    )
    asked = Figure(
        name=f"requests during {rounds} calls, {count} online",
        measured=after - before,
        unit="",
        target=0,
    )
    return latency, asked


async def _output_schema(server: Connected) -> object:
    tools = (await server.client.list_tools()).tools
    return next(tool.output_schema for tool in tools if tool.name == "instances")


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Compare with a few, many and very many instances."""
    for count in SIZES:
        for figure in await compare(count, rounds * 4):
            yield figure
