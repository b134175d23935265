"""How long it takes from the start of the process until `initialize` is answered."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import AsyncGenerator, Sequence

import psutil

from figure import Figure, spread
from processes import OURS, SMALLEST, simulated, workplace

HANGING = 100
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    },
}


def start(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Start a server, wait for its first answer, end it; return the milliseconds until then, and of CPU."""
    request = json.dumps(_INITIALIZE).encode() + b"\n"
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            answer = process.stdout.readline()
            took = time.perf_counter() - began
            used = psutil.Process(process.pid).cpu_times()
            assert "serverInfo" in json.loads(answer)["result"], answer
            process.stdin.close()
            process.wait(10)
        finally:
            process.kill()
    return took * 1000, (used.user + used.system) * 1000


def compare(name: str, rounds: int, environment: dict[str, str]) -> Figure:
    """Start ours and the smallest in turns."""
    ours: list[tuple[float, float]] = []
    floor: list[tuple[float, float]] = []
    for command in (OURS, SMALLEST):
        start(command, environment)  # leaves compiled modules behind
    turns = [(OURS, ours), (SMALLEST, floor)]
    for _ in range(rounds):
        for command, times in turns:
            times.append(start(command, environment))
        turns.reverse()
    took, used = zip(*ours, strict=True)
    least_took, least_used = zip(*floor, strict=True)
    return Figure(
        name=name,
        measured=statistics.median(took),
        unit="ms",
        target=1.15,
        relative=True,
        floor=statistics.median(least_took),
        note=f"{spread(took, 0)}; CPU {statistics.median(used):.0f} and {statistics.median(least_used):.0f}",
    )


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Compare without instances, and with instances that accept connections and never answer."""
    async with workplace() as (_, registry):
        yield compare("start to initialize", rounds, registry.environment)
        async with simulated(HANGING, hanging=HANGING) as servers:
            registry.register(*servers.ports)
            yield compare(f"start to initialize, {HANGING} hanging", rounds, registry.environment)
