"""What `opencode-connected` costs: before OpenCode starts, until it is announced, while nothing happens."""

import contextlib
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import psutil

from figure import Figure, spread
from processes import HERE, workplace
from support.real_sshd import running_sshd

CONNECTED = str(Path(sys.executable).with_name("opencode-connected"))
STAND_IN = [sys.executable, "-S", str(HERE / "opencode.py")]
IDLE_SECONDS = 40.0
_SECONDS = 20.0
_MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """When things happened, in nanoseconds since the epoch."""

    began: int
    started: int
    answering: int
    registered: int


@dataclasses.dataclass(frozen=True)
class Bench:
    """A stand-in for OpenCode, and where it is registered, here or through a relay."""

    place: Path
    relay: str = ""

    @property
    def notes(self) -> Path:
        """Where the stand-in writes down when it was started, and when it answered."""
        return self.place / "notes"

    @property
    def registry(self) -> Path:
        """Where registrations appear."""
        return self.place / "registry"

    def environment(self) -> dict[str, str]:
        """An environment that nothing of the user's leaks into."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.place),
            "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX", ""),
            "TRANSPORT": "local-relay",
            "RELAY_REGISTRY_DIR": str(self.registry),
            "RELAY_SSH_CMD": self.relay,
            "OPENCODE_MCP_COMMAND": str(self.program()),
            "BENCH_NOTES": str(self.notes),
        }

    def program(self) -> Path:
        """The stand-in as a program of its own: then `opencode-connected` remembers which version it is."""
        program = self.place / "opencode"
        if not program.exists():
            program.write_text(f'#!/bin/sh\nexec {shlex.join(STAND_IN)} "$@"\n', "utf-8")
            program.chmod(0o755)
        return program

    @contextlib.contextmanager
    def run(self, command: Sequence[str]) -> Generator[tuple[int, subprocess.Popen[bytes]]]:
        """Run a command until the block ends; yield when it was started."""
        self.notes.unlink(missing_ok=True)
        began = time.time_ns()
        with subprocess.Popen(
            command,
            env=self.environment(),
            cwd=self.place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield began, process
            finally:
                process.terminate()
                process.wait(10)

    def noted(self) -> tuple[int, int]:
        """Wait for the stand-in's notes."""
        wait(self.notes.exists)
        started, answering = json.loads(self.notes.read_text("ascii"))
        return started, answering

    def connect(self) -> Times:
        """Run `opencode-connected` until it has registered the stand-in."""
        with self.run([CONNECTED, "--headless"]) as (began, _):
            registered = self.registration()
            started, answering = self.noted()
        wait(lambda: not self.files())
        return Times(began=began, started=started, answering=answering, registered=registered)

    def registration(self) -> int:
        """Wait for the registration; return when it was there."""
        wait(self.files)
        return time.time_ns()

    def files(self) -> list[Path]:
        """The registrations."""
        return list(self.registry.glob("*.json"))

    def direct(self) -> float:
        """Start the stand-in itself; return the milliseconds until it runs."""
        with self.run([str(self.program()), "serve"]) as (began, _):
            return (self.noted()[0] - began) / 1e6


def wait(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + _SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("opencode-connected did not do its work in time")
        time.sleep(0.002)


def figures(bench: Bench, rounds: int) -> list[Figure]:
    """Measure speed, then weight."""
    through = " through ssh" if bench.relay else ""
    bench.connect()  # leaves compiled modules behind
    times: list[Times] = []
    direct: list[float] = []
    for _ in range(rounds):
        times.append(bench.connect())
        direct.append(bench.direct())
    found: list[Figure] = []
    if not bench.relay:
        until = [(one.started - one.began) / 1e6 for one in times]
        least = statistics.median(direct)
        found.append(
            Figure(
                name="opencode-connected: added before OpenCode starts",
                measured=statistics.median(until) - least,
                unit="ms",
                target=400,
                note=f"{least:.0f} ms without it; with it {spread(until, 0)}",
            )
        )
    waits = [(one.registered - one.answering) / 1e6 for one in times]
    found.append(
        Figure(
            name=f"registered{through} after OpenCode answers",
            measured=statistics.median(waits),
            unit="ms",
            target=2000 if bench.relay else 500,
            note=f"{spread(waits, 0)}, worst {max(waits):.0f}",
        )
    )
    return [*found, *weight(bench, through)]


def weight(bench: Bench, through: str) -> list[Figure]:
    """Measure memory and CPU once it is announced and nothing happens."""
    with bench.run([CONNECTED, "--headless"]) as (_, process):
        bench.registration()
        whole = psutil.Process(process.pid)
        others = [
            one for one in whole.children(recursive=True) if "opencode.py" not in " ".join(one.cmdline())
        ]
        time.sleep(3)
        before = sum(map(_cpu, (whole, *others)))
        time.sleep(IDLE_SECONDS)
        used = sum(map(_cpu, (whole, *others))) - before
        memory = whole.memory_full_info()
        ssh = sum(one.memory_full_info().rss for one in others)
    beside = f"; ssh beside it {ssh / _MIB:.1f}" if ssh else ""
    return [
        Figure(
            name=f"memory of opencode-connected{through} (RSS)",
            measured=memory.rss / _MIB,
            unit="MiB",
            target=40,
            note=f"USS {memory.uss / _MIB:.1f}{beside}",
        ),
        Figure(
            name=f"CPU of opencode-connected{through}, nothing happens",
            measured=used / IDLE_SECONDS * 100,
            unit="%",
            target=0.2,
            note=f"{used * 1000:.0f} ms in {IDLE_SECONDS:.0f} s",
        ),
    ]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Measure without a relay, then through an sshd on loopback."""
    async with workplace() as (place, _):
        for figure in await anyio.to_thread.run_sync(figures, Bench(place), rounds):
            yield figure
        async with running_sshd(place / "sshd") as sshd:
            bench = Bench(place, sshd.command)
            for figure in await anyio.to_thread.run_sync(figures, bench, rounds):
                yield figure
