"""What finding instances on a tailnet costs, beside a fake tailscaled with 2,000 machines in another process.

The floor is asyncio alone (`tailscale_floor.py`), told beforehand who never answers, in turns. Connections go
through tailscaled's `dial`; directly too, in a network namespace in which the machines are addresses, where
this runs as root.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil

from figure import Figure
from mdns import figure, read
from processes import HERE, OURS, connected, simulated
from support.lan import INTERFACE, Host, end, lan
from weight import cpu

MACHINES, INSTANCES, DROPPERS = 2000, 50, 500
FEW = 10
AT_ONCE = 32
SETTLE_SECONDS = 100.0
"""Until those that drop packets were asked three times at both ports, the last time with 2 s of patience."""
IDLE_SECONDS = 60.0
HUNDREDS = 300
_WATCHER, _LEAST, _TAILNET, _DIALLING = (
    f"tailscale_{name}.py" for name in ("watcher", "floor", "tailnet", "dialling")
)
_VIA = "10.77.0.250"
"""On the cable, but nobody: what is sent there is lost, as what the rules of a tailnet drop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tailnet:
    """A fake tailscaled that runs.

    Attributes:
        how: `dial` or `direct`.
        place: The directory of its socket.
        drops: Who drops packets, in a file too.
        late: The ids of machines with an instance that are offline as yet.
        host: The namespace it is in; None for this one.
    """

    how: str
    place: Path
    drops: Sequence[str]
    late: list[str]
    process: subprocess.Popen[str]
    host: Host | None

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find it."""
        return {"TRANSPORT": "tailscale", "TAILSCALE_SOCKET": str(self.place / "socket")}

    def ask(self, question: str) -> Any:
        """Put a question that `tailscale_tailnet.py` knows."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return read(self.process)

    def run(self, script: str, *words: str) -> subprocess.Popen[str]:
        """Start one of our scripts, where it finds the tailnet."""
        more = (str(self.place / "drops"),) if script == _LEAST else ()
        return popen(self.host, self.environment, script, *words, *more)


def popen(
    host: Host | None, environment: Mapping[str, str], script: str, *words: str
) -> subprocess.Popen[str]:
    """Start one of our scripts."""
    command = [sys.executable, str(HERE / script), *words]
    options: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    options |= {"stderr": None, "text": True, "env": {**os.environ, **environment}}
    return host.popen(*command, **options) if host else subprocess.Popen(command, **options)


@contextlib.contextmanager
def tailnet(
    host: Host | None, machines: int = MACHINES, *, late: int = 0, ports: Sequence[int] = ()
) -> Generator[Tailnet]:
    """Run a fake tailscaled; of few machines, none has an instance and none drops packets."""
    how = "direct" if host else "dial"
    shares = (INSTANCES, DROPPERS) if machines == MACHINES else (0, 0)
    numbers = [*map(str, (machines + late, *shares, late, *ports))]
    with tempfile.TemporaryDirectory(prefix="opencode-mcp-bench-") as made:
        process = popen(host, {}, _TAILNET, f"{made}/socket", how, *numbers)
        try:
            told = read(process)
            (Path(made) / "drops").write_text(json.dumps(told["drops"]))
            yield Tailnet(
                how=how, place=Path(made), drops=told["drops"], late=told["late"], process=process, host=host
            )
        finally:
            end(process)


def cold(network: Tailnet, script: str) -> tuple[float, float, int]:
    """Start a watcher; return the seconds from there, and from `watch`, until it has published all.

    And the most connections that it had to machines at once.
    """
    network.ask("shuffle")
    began = time.monotonic_ns()
    process = network.run(script, str(INSTANCES))
    try:
        published, watched, found, most = read(process)
    finally:
        end(process)
    assert len(found) == INSTANCES, found
    if network.how == "dial":
        most = network.ask("counted")[1]
    return (published - began) / 1e9, (published - watched) / 1e9, most


def cold_starts(network: Tailnet, rounds: int) -> Generator[Figure]:
    """Measure how soon all instances are published, from nothing."""
    taken: dict[str, list[tuple[float, float, int]]] = {_WATCHER: [], _LEAST: []}
    for script in taken:
        cold(network, script)  # leaves compiled modules behind
    for _ in range(rounds):
        for script, found in taken.items():
            found.append(cold(network, script))
    ours, least = (list(zip(*found, strict=True)) for found in taken.values())
    shown = f"tailscale, {network.how}: {INSTANCES} of {MACHINES:,} published, {DROPPERS} drop packets"
    yield figure(f"{shown}, from watch", ours[1], 3.0, least[1])
    yield figure(f"{shown}, from the process's start", ours[0], 3.0, least[0])
    yield Figure(
        name=f"tailscale, {network.how}: connections to machines at once, the most",
        measured=max(ours[2]),
        unit="",
        target=AT_ONCE,
        floor=max(least[2]),
    )


def sightings(host: Host | None, machines: int, rounds: int) -> Generator[Figure]:
    """Measure how soon an instance is listed whose machine comes online."""
    taken: dict[str, list[float]] = {_WATCHER: [], _LEAST: []}
    for script, found in taken.items():
        with tailnet(host, machines, late=rounds + 1) as network:
            present = INSTANCES if machines == MACHINES else 0
            first = network.late.pop()
            watcher = network.run(script, str(present + 1))
            try:
                network.ask(f"online {first}")
                while len(read(watcher)[2]) < present + 1:
                    pass
                for turn, name in enumerate(network.late):
                    time.sleep(1.5 + turn % 7 / 10)  # at any moment of what else it does
                    began = network.ask(f"online {name}")
                    while name not in (seen := read(watcher))[2]:
                        pass
                    found.append((seen[0] - began) / 1e9)
            finally:
                end(watcher)
    how = "direct" if host else "dial"
    ours, least = taken.values()
    name = f"tailscale, {how}: machine comes online until its instance is published, {machines:,} machines"
    yield figure(name, ours, 2.0, least)
    yield Figure(name=f"{name}, the worst", measured=max(ours), unit="s", target=2.0, floor=max(least))


def dialling() -> Generator[Figure]:
    """Measure what `dial` adds to a request."""
    server = popen(None, {}, _DIALLING, "serve")
    try:
        port = read(server)
        with tailnet(None, FEW) as network:
            address = network.ask(f"reach {port}")
            asking = network.run(_DIALLING, address, str(port), str(HUNDREDS))
            try:
                taken = read(asking)
            finally:
                end(asking)
    finally:
        end(server)
    middle = {way: statistics.median(found) for way, found in taken.items()}
    for kind, shown in {"new": "each of a connection of its own", "kept": "all of one connection"}.items():
        dial, direct, least, without = (
            middle[way]
            for way in (f"dial {kind}", f"direct {kind}", f"dial {kind} least", f"direct {kind} least")
        )
        yield Figure(
            name=f"tailscale: what dial adds to a request, {shown}",
            measured=dial - direct,
            unit="ms",
            target=1.0,
            floor=least - without,
            note=f"n={HUNDREDS}; {dial:.2f}, direct {direct:.2f}; least {least:.2f}, direct {without:.2f}",
        )


async def weights(host: Host | None) -> AsyncGenerator[Figure]:
    """Measure the CPU that following the tailnet takes once everybody has been asked."""
    async with simulated(INSTANCES) as servers:
        with contextlib.ExitStack() as stack:
            hosts = (None, host) if host else (None,)
            networks = [stack.enter_context(tailnet(one)) for one in hosts]
            alone = stack.enter_context(tailnet(None))
            whole = stack.enter_context(tailnet(None, ports=servers.ports))
            runs = [one.run(_WATCHER, str(INSTANCES)) for one in networks]
            least = alone.run(_LEAST, str(INSTANCES))
            stack.callback(lambda: end(*runs, least))
            for process in (*runs, least):
                await anyio.to_thread.run_sync(read, process)
            async with connected(OURS, dict(whole.environment)) as server:
                await server.all_online(INSTANCES)
                await anyio.sleep(SETTLE_SECONDS)
                processes = [*(psutil.Process(one.pid) for one in (*runs, least)), server.process]
                for network in (*networks, alone, whole):
                    network.ask("shuffle")
                *used, floor, with_core = await cpu(processes, IDLE_SECONDS)
                dials = [one.ask("counted")[0] / IDLE_SECONDS for one in (networks[0], alone)]
                await server.all_online(INSTANCES, 1)
    for network, percent in zip(networks, used, strict=True):
        yield Figure(
            name=f"tailscale, {network.how}: CPU of one core, {MACHINES:,} machines, nothing happens",
            measured=percent,
            unit="%",
            target=2,
            floor=floor if network.how == "dial" else None,
            note=f"over {IDLE_SECONDS:.0f} s, {SETTLE_SECONDS:.0f} s after all are published"
            + (
                f"; {dials[0]:.0f} dials/s, floor {dials[1]:.0f}; opencode-mcp as a whole {with_core:.1f} %"
                if network.how == "dial"
                else ""
            ),
        )


@contextlib.contextmanager
def interface() -> Generator[Host | None]:
    """Have a namespace in which machines can be reached without tailscaled; None where that cannot be had."""
    with contextlib.ExitStack() as stack:
        if sys.platform != "linux" or os.geteuid() != 0:
            print("tailscale: nothing measured without dial: it takes Linux and root", file=sys.stderr)
            yield None
            return
        host = stack.enter_context(lan(1)).host(1)
        for command in (
            f"neigh add {_VIA} lladdr 02:77:00:00:00:fa dev {INTERFACE} nud permanent",
            "route add local 100.64.0.0/16 dev lo",
            f"route add 100.65.0.0/16 via {_VIA}",
        ):
            host.run("ip", *command.split())
        yield host


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Measure speed, then weight."""
    for name in [name for name in os.environ if name.startswith(("TAILSCALE_", "TS_"))]:
        del os.environ[name]  # what a user has set is not to count

    def listed(figures: Callable[..., Generator[Figure]], *given: Any) -> list[Figure]:
        return list(figures(*given))

    def cold_started(host: Host | None) -> list[Figure]:
        with tailnet(host) as network:
            return list(cold_starts(network, max(5, rounds // 2)))

    with interface() as host:
        for one in (None, host) if host else (None,):
            for found in await anyio.to_thread.run_sync(cold_started, one):
                yield found
        for machines in (FEW, MACHINES):
            for found in await anyio.to_thread.run_sync(listed, sightings, None, machines, rounds):
                yield found
        for found in await anyio.to_thread.run_sync(listed, dialling):
            yield found
        async for found in weights(host):
            yield found
