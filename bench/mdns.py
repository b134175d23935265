"""What finding and announcing over multicast DNS costs, on a LAN of network namespaces.

The floor is python-zeroconf alone in the same place, in turns; for memory and CPU it is the same server, told
of the same instances by a transport of a few lines. It needs root, or says so and measures nothing.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from connect import CONNECTED, Bench
from figure import Figure
from processes import HERE, OURS, connected, simulated, workplace
from support.distributions import Site
from support.lan import Host, end, lan
from weight import cpu, megabytes

ANNOUNCING = 4
"""Hosts that announce; one more looks."""
SIZES = (1, 100)
COUNT = 100
SETTLE_SECONDS = 10.0
IDLE_SECONDS = 60.0
COLD = "start of the process until"
_WATCHER, _LEAST = "mdns_watcher.py", "mdns_floor.py"
_SECONDS = 30.0
_AVAHI = ("avahi-browse", "avahi-daemon", "avahi-publish", "dbus-daemon")


def run(host: Host, script: str, *words: str) -> subprocess.Popen[str]:
    """Start one of our scripts on a host."""
    command = [sys.executable, str(HERE / script), *words]
    return host.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True)


def read(process: subprocess.Popen[str]) -> Any:
    """Read the next line of JSON."""
    assert process.stdout is not None
    timer = threading.Timer(_SECONDS, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if line:
        return json.loads(line)
    raise RuntimeError(f"It said nothing more: {process.args}")


@contextlib.contextmanager
def announced(hosts: Sequence[Host], count: int, how: str) -> Generator[Mapping[str, str]]:
    """Announce `count` services, spread over the hosts, until the block ends; yield their URLs by id."""
    shares = [count // len(hosts) + (number < count % len(hosts)) for number in range(len(hosts))]
    running = [
        run(host, "mdns_announcer.py", host.address, str(share), how)
        for host, share in zip(hosts, shares, strict=True)
        if share
    ]
    try:
        yield {name: url for process in running for name, url in read(process)[1].items()}
    finally:
        stop(*running)


def stop(*processes: subprocess.Popen[str]) -> None:
    """Let announcers say goodbye and end."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    end(*processes)


def cold(host: Host, script: str, names: set[str]) -> tuple[float, float]:
    """Start a watcher; return the seconds until it has published all, and until it had resolved all."""
    began = time.monotonic_ns()
    process = run(host, script, str(len(names)))
    try:
        published, resolved, found = read(process)
        assert set(found) == names, found
    finally:
        end(process)
    return (published - began) / 1e9, (resolved - began) / 1e9


def cold_avahi(host: Host, count: int) -> float:
    """Start avahi-daemon, then avahi-browse; return the seconds until the latter has resolved all."""
    from support.avahi import running_avahi

    with running_avahi(host) as avahi:
        began = time.monotonic()
        process = host.popen(
            *("avahi-browse", "--resolve", "--parsable", "--terminate", "_opencode._tcp"),
            env=avahi.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        names: set[str] = set()
        took = 0.0
        for line in process.stdout:
            if line.startswith("="):
                names.add(line.split(";")[3])
                took = took or (time.monotonic() - began if len(names) == count else 0.0)
        end(process)
    return took or float("nan")


def cold_starts(hosts: Sequence[Host], looking: Host, rounds: int) -> Generator[Figure]:
    """Measure how soon a process that has just been started knows what is there."""
    for count in SIZES:
        ours: list[tuple[float, float]] = []
        least: list[float] = []
        avahi: list[float] = []
        with announced(hosts, count, "light") as services:
            names = set(services)
            for script in (_WATCHER, _LEAST):
                cold(looking, script, names)  # leaves compiled modules behind
            for _ in range(rounds):
                ours.append(cold(looking, _WATCHER, names))
                least.append(cold(looking, _LEAST, names)[0])
            if all(map(shutil.which, _AVAHI)):
                avahi = [cold_avahi(looking, count) for _ in range(max(3, rounds // 3))]
        published, resolved = zip(*ours, strict=True)
        beside = f"; avahi-browse {between(avahi)}" if avahi else "; avahi is not installed"
        yield figure(f"mdns: {COLD} {count} resolved", resolved, 0.35, least, f"{beside}")
        yield figure(f"mdns: {COLD} {count} asked and published", published, 1.0, least)


def sightings(hosts: Sequence[Host], looking: Host, rounds: int) -> Figure:
    """Measure how soon what is announced on one host is seen on another, where somebody looks already."""
    watchers = {"ours": run(looking, _WATCHER, "1"), "alone": run(looking, _LEAST, "1")}
    taken: dict[str, list[float]] = {"ours": [], "alone": []}
    try:
        for _ in range(rounds):
            for how, watcher in watchers.items():
                host = hosts[len(taken[how]) % len(hosts)]
                announcer = run(host, "mdns_announcer.py", host.address, "1", how)
                try:
                    began, services = read(announcer)
                    (name,) = services
                    while name not in (seen := read(watcher))[2]:
                        pass
                    taken[how].append((seen[0] - began) / 1e9)
                finally:
                    stop(announcer)
    finally:
        end(*watchers.values())
    return figure("mdns: announced until published elsewhere", taken["ours"], 1.5, taken["alone"])


def connections(hosts: Sequence[Host], looking: Host, place: Path, rounds: int) -> Figure:
    """Measure how soon an OpenCode that `opencode-connected` has started is seen on another host."""
    watcher = run(looking, _WATCHER, "1")
    taken: list[float] = []
    known: set[str] = set()
    try:
        for turn in range(rounds):
            bench = Bench(place / str(turn))  # where it is another instance than before
            bench.place.mkdir()
            environment = {**bench.environment(), "TRANSPORT": "mdns"}
            host = hosts[turn % len(hosts)]
            process = host.popen(CONNECTED, "--headless", env=environment, cwd=bench.place)
            try:
                while known.issuperset((seen := read(watcher))[2]):
                    pass
                known.update(seen[2])
                _, answering = bench.noted()  # by the clock of the day
                answered = answering - time.time_ns() + time.monotonic_ns()
                taken.append((seen[0] - answered) / 1e9)
            finally:
                end(process, seconds=10)
    finally:
        end(watcher)
    return figure("mdns: OpenCode of opencode-connected answers until published elsewhere", taken, 1.5, ())


def imports(rounds: int) -> Figure:
    """Measure what importing the plugin takes, in a process that has imported core's contract."""
    added = {
        "ours": "opencode_mcp_mdns, opencode_mcp_mdns.lookout",
        "least": "zeroconf.asyncio",
        "running": "opencode_mcp_mdns, opencode_mcp_mdns.lookout",
        "core": "opencode_mcp",
    }
    before = {"running": ", asyncio, anyio._backends._asyncio"}
    taken: dict[str, list[float]] = {name: [] for name in added}
    whole: dict[str, list[float]] = {name: [] for name in added}
    for turn in range(rounds + 1):
        for name, modules in added.items():
            code = (
                f"import time, opencode_mcp{before.get(name, '')}; began = time.perf_counter()\n"
                f"import {modules}\nprint(time.perf_counter() - began)"
            )
            began = time.perf_counter()
            said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            if turn:  # the first leaves compiled modules behind
                whole[name].append((time.perf_counter() - began) * 1000)
                taken[name].append(float(said.stdout) * 1000)
    note = (
        f"; {statistics.median(taken['running']):.0f} where asyncio runs already; whole process "
        f"{statistics.median(whole['ours']):.0f}, without it {statistics.median(whole['core']):.0f}"
    )
    return figure("mdns: importing it, after core", taken["ours"], 120, taken["least"], note, "ms")


async def weights(hosts: Sequence[Host], looking: Host, rounds: int) -> AsyncGenerator[Figure]:
    """Weigh the server that finds its instances by mdns beside one that is told of the same ones."""
    memory: dict[str, list[tuple[float, float]]] = {"mdns": [], "constant": [], "local-relay": []}
    used = least = 0.0
    async with workplace() as (place, registry), simulated(COUNT) as local:
        registry.register(*local.ports)
        site = Site(place / "site")
        site.install("opencode-mcp-constant", transports={"constant": "mdns_constant"})
        own = {"XDG_STATE_HOME": str(place), "BENCH_ENDPOINTS": str(place / "endpoints.json")}
        path = os.pathsep.join((str(site.path), str(HERE), os.environ.get("PYTHONPATH", "")))
        on_lan = looking.wrap(*OURS)
        with announced(hosts, COUNT, "full") as services:
            told = [{"id": one, "name": one, "url": url} for one, url in services.items()]
            await anyio.Path(own["BENCH_ENDPOINTS"]).write_text(json.dumps(told))
            for last in (*(False for _ in range(rounds - 1)), True):
                async with (
                    connected(on_lan, {**own, "TRANSPORT": "mdns"}) as found,
                    connected(on_lan, {**own, "TRANSPORT": "constant", "PYTHONPATH": path}) as constant,
                    connected(OURS, registry.environment) as relayed,
                ):
                    servers = {"mdns": found, "constant": constant, "local-relay": relayed}
                    for server in servers.values():
                        await server.all_online(COUNT)
                    await anyio.sleep(SETTLE_SECONDS)
                    if last:
                        used, least = await cpu([found.process, constant.process], IDLE_SECONDS)
                    for name, server in servers.items():
                        memory[name].append(megabytes(server.process))
    rss, uss = ({name: [one[kind] for one in found] for name, found in memory.items()} for kind in (0, 1))
    base = statistics.median(rss["constant"])
    relay = statistics.median(rss["local-relay"])
    unique = statistics.median(uss["mdns"]) - statistics.median(uss["constant"])
    yield figure(
        f"mdns: memory (RSS) for {COUNT} services, over core",
        [one - base for one in rss["mdns"]],
        10,
        (),
        f"; core {base:.0f}, with local-relay {relay:.0f}; by USS {unique:.1f}",
        "MB",
    )
    yield Figure(
        name=f"mdns: CPU of one core, {COUNT} services and heartbeats",
        measured=used,
        unit="%",
        target=1,
        floor=least,
        note=f"over {IDLE_SECONDS:.0f} s",
    )


def figure(
    name: str,
    measured: Sequence[float],
    target: float,
    floor: Sequence[float],
    note: str = "",
    unit: Any = "s",
) -> Figure:
    """Make a figure of medians, whose note begins with the extremes."""
    extremes = f"{between(measured)}, n={len(measured)}"
    if floor:
        extremes += f"; floor {between(floor)}"
    return Figure(
        name=name,
        measured=statistics.median(measured),
        unit=unit,
        target=target,
        floor=statistics.median(floor) if floor else None,
        note=extremes + note,
    )


def between(values: Sequence[float]) -> str:
    """Show the extremes."""
    digits = 2 if max(values) < 10 else 0
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Measure speed, then weight."""
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter"))):
        print("mdns: nothing measured: it takes Linux, root, iproute2 and util-linux", file=sys.stderr)
        return
    for name in [name for name in os.environ if name.startswith("MDNS_")]:
        del os.environ[name]  # what a user has set is not to count

    def listed(figures: Callable[[], Generator[Figure]]) -> list[Figure]:
        return list(figures())

    yield await anyio.to_thread.run_sync(imports, rounds)
    with lan(ANNOUNCING + 1) as network:
        *hosts, looking = network.hosts
        for one in await anyio.to_thread.run_sync(listed, lambda: cold_starts(hosts, looking, rounds)):
            yield one
        yield await anyio.to_thread.run_sync(sightings, hosts, looking, max(5, rounds // 2))
        async with workplace() as (place, _):
            yield await anyio.to_thread.run_sync(connections, hosts, looking, place, max(5, rounds // 2))
        async for one in weights(hosts, looking, max(2, rounds // 5)):
            yield one
