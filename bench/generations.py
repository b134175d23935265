"""OpenCode 1.x and 2.x beside each other: how soon `send` streams, what a cut costs, and a mixed fleet.

The floor of the stream is a bare reader of 1.x's; of the fleet, a server that answers with a constant.
"""

import os
import statistics
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import anyio

from figure import Figure, spread
from listing import against_a_constant
from processes import OURS, Connected, Simulated, connected, simulated, workplace
from sending import FIRST, Said, past_us, through_us
from simulated import PASSWORD
from wire import answered_within

EACH = 250
CUTS = 6
LONG = (200, 0.01)
NAMES = {1: "old-000", 2: "new-000"}


async def first(server: Connected, port: int, rounds: int) -> AsyncGenerator[Figure]:
    """Compare how soon the first delta of each is there, in turns."""
    times: dict[int, list[float]] = {1: [], 2: []}
    least: list[float] = []
    for turn in range(rounds + 1):
        for generation in sorted(times, reverse=turn % 2 == 1):
            times[generation].append((await through_us(server, *FIRST, NAMES[generation])).first_ms)
        least.append((await past_us(port, *FIRST)).first_ms)
    for generation, measured in times.items():
        yield Figure(
            name=f"send to OpenCode {generation}.x: first delta, emitted to heard",
            measured=statistics.median(measured),
            unit="ms",
            target=10,
            floor=statistics.median(least),
            note=spread(measured),
        )


async def cut(server: Connected, servers: Simulated, generation: int, rounds: int) -> AsyncGenerator[Figure]:
    """Cut the stream in the middle of an answer, again and again."""
    lost = repeated = 0
    for _ in range(rounds):
        await servers.ask("deltas")
        said = await _disturbed(server, servers, NAMES[generation])
        emitted: list[str] = await servers.ask("deltas")
        lost += said.stored.split() != "".join(emitted).split()
        words = said.text.split()
        repeated += len(words) - len(set(words))
    kind = f"OpenCode {generation}.x, stream cut in {rounds} answers"
    yield Figure(name=f"{kind}: final texts that are not complete", measured=lost, unit="", target=0)
    yield Figure(name=f"{kind}: pieces heard twice", measured=repeated, unit="", target=0)


async def _disturbed(server: Connected, servers: Simulated, name: str) -> Said:
    """Let an instance stream, and cut that halfway."""
    said: list[Said] = []

    async def send() -> None:
        said.append(await through_us(server, *LONG, name))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.sleep(LONG[0] * LONG[1] / 2)
        await servers.ask("cut")
    return said[0]


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Measure both generations in one run."""
    async with AsyncExitStack() as stack:
        _, registry = await stack.enter_async_context(workplace())
        old = await stack.enter_async_context(simulated(2))
        new = await stack.enter_async_context(simulated(1, generation=2))
        registry.register(old.ports[0], prefix="old")
        registry.register(*new.ports, prefix="new")
        environment = {**registry.environment, "OPENCODE_SERVER_PASSWORD": PASSWORD}
        server = await stack.enter_async_context(connected(OURS, environment))
        await server.all_online(2)
        async for figure in first(server, old.ports[1], rounds):
            yield figure
        for generation, servers in ((1, old), (2, new)):
            async for figure in cut(server, servers, generation, CUTS):
                yield figure
    async with workplace() as (place, registry), simulated(EACH) as old, simulated(EACH, generation=2) as new:
        registry.register(*old.ports, prefix="old")
        registry.register(*new.ports, prefix="new")
        environment = {**registry.environment, "OPENCODE_SERVER_PASSWORD": PASSWORD}
        on_the_wire = await answered_within(OURS, {**os.environ, **environment}, 2 * EACH, rounds * 4)
        async with connected(OURS, environment) as server:
            await server.all_online(2 * EACH)
            times, floor = await against_a_constant(place, server, rounds * 4)
    fleet = f"instances, {EACH} of 1.x and {EACH} of 2.x online"
    yield Figure(
        name=f"{fleet}: answered on the wire",
        measured=statistics.median(on_the_wire),
        unit="ms",
        target=30,
        note=spread(on_the_wire),
    )
    yield Figure(
        name=f"{fleet}: until the official client has read it",
        measured=statistics.median(times),
        unit="ms",
        target=1.3,
        relative=True,
        floor=statistics.median(floor),
        note=spread(times),
    )
