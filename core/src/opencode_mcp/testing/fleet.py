"""`python -m opencode_mcp.testing.fleet`: fakes in a process of their own, registered for `local-relay`."""

import argparse
import json
import os
import resource
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio

from opencode_mcp.testing._fleet import FakeFleet


def register(registry: Path, fleet: FakeFleet) -> list[Path]:
    """Write a registration file for each server of a fleet, readable by this user only.

    Args:
        registry: The directory for the files; created if it is missing.
        fleet: The servers, while they are served.

    Returns:
        The files.
    """
    registry.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    files: list[Path] = []
    for number, fake in enumerate(fleet.fakes):
        name = f"fake-{number:03}"
        registration = {
            "name": name,
            "hostname": socket.gethostname(),
            "port": fake.port,
            "localPort": fake.port,
            "cwd": fake.directory,
            "connectedAt": now,
        }
        path = registry / f"{name}.json"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(registration, file)
        files.append(path)
    return files


async def run(count: int, hang: int, registry: Path, *, delta_clock: bool) -> None:
    """Serve a fleet until standard input ends or SIGTERM comes."""
    fleet = FakeFleet(count, hang=hang, delta_clock=delta_clock)
    async with fleet.serve(), anyio.create_task_group() as group:

        async def end_with_input() -> None:
            while await anyio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True):
                pass
            group.cancel_scope.cancel()

        async def end_with_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    group.cancel_scope.cancel()

        files = register(registry, fleet)
        try:
            group.start_soon(end_with_input)
            group.start_soon(end_with_signal)
            print("ready", flush=True)
            await anyio.sleep_forever()
        finally:
            for path in files:
                path.unlink(missing_ok=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Serve many fake OpenCode servers until stdin ends.")
    parser.add_argument("--count", type=int, required=True, help="how many servers")
    parser.add_argument("--hang", type=int, default=0, help="how many of them never answer")
    parser.add_argument(
        "--registry", type=Path, required=True, help="where to write their registration files"
    )
    parser.add_argument("--delta-clock", action="store_true", help="deltas carry the time in nanoseconds")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    anyio.run(
        lambda: run(arguments.count, arguments.hang, arguments.registry, delta_clock=arguments.delta_clock)
    )
    os._exit(0)  # a thread may still wait for input


if __name__ == "__main__":
    main()
