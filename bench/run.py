"""`bench/run.py [NAME ...] [--rounds N] [--json]`: the figures of docs/performance.md.

The server is measured over stdio with the official MCP client, against simulated OpenCode servers in one
other process, each figure in turns with its floor: the least that could do the same work.
Exit code 1 for a miss.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from tempfile import TemporaryDirectory

import anyio

import connect
import freshness
import generations
import listing
import mdns
import sending
import start
import tailscale
import weight
from figure import Figure, table

BENCHMARKS: Mapping[str, Callable[[int], AsyncGenerator[Figure]]] = {
    "start": start.measure,
    "instances": listing.measure,
    "send": sending.measure,
    "weight": weight.measure,
    "freshness": freshness.measure,
    "generations": generations.measure,
    "connect": connect.measure,
    "mdns": mdns.measure,
    "tailscale": tailscale.measure,
}


async def run(names: list[str], rounds: int) -> list[Figure]:
    """Run benchmarks one after the other."""
    figures: list[Figure] = []
    for name in names:
        began = time.perf_counter()
        figures += [figure async for figure in BENCHMARKS[name](rounds)]
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return figures


def machine() -> str:
    """Say what this ran on, in general terms."""
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    return f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores{load}"


def main() -> None:
    """Run what is asked for and show it."""
    parser = argparse.ArgumentParser(description="Measure what docs/performance.md promises.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=15, help="how often, about (default 15)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    with TemporaryDirectory(prefix="opencode-mcp-bench-") as compiled:
        # Modules are compiled once, whatever the environment says; and nothing is left in the source tree.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        figures = anyio.run(run, arguments.names or list(BENCHMARKS), max(2, arguments.rounds))
    if arguments.json:
        shown = {"machine": machine(), "figures": [figure.as_json() for figure in figures]}
        print(json.dumps(shown, indent=2))
    else:
        print(f"{table(figures)}\n\n{machine()}")
    sys.exit(not all(figure.met for figure in figures))


if __name__ == "__main__":
    main()
