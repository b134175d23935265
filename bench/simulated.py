"""A process of its own with simulated OpenCode servers, which answers a few questions on its pipes.

`simulated.py COUNT HANGING [GENERATION]` prints the ports as a JSON list; the last HANGING servers never
answer, and those of OpenCode 2.x want PASSWORD. Then each line on stdin is a question, answered by a line of
JSON: `requests`, how many requests came in so far; `deltas`, the texts that the first server has emitted
since the last time; `cut`, which ends the event streams that are open. It ends with stdin.

A prompt of `stream COUNT SECONDS` makes a server answer with COUNT deltas, each after that many SECONDS. What
a delta says is the moment at which it is emitted, in nanoseconds, and a blank.
"""

import json
import os
import resource
import sys

import anyio
import anyio.to_thread

from opencode_mcp.testing import FakeFleet, Reply

PASSWORD = "benchmark"
SESSIONS = 20
"""Of each server, so that there is something to ask for, to keep and to show."""


def answer(prompt: str) -> Reply:
    """Stream what the prompt asks for."""
    _, count, seconds = prompt.split()
    return Reply(chunks=["x"] * int(count), delay=float(seconds))


async def serve(count: int, hanging: int, generation: int) -> None:
    """Serve until stdin ends."""
    password = PASSWORD if generation > 1 else None
    options = {"generation": generation, "password": password, "default_reply": answer, "delta_clock": True}
    fleet = FakeFleet(count, hang=hanging, **options)
    for fake in fleet.fakes:
        for number in range(SESSIONS):
            fake.create_session(f"Mend what broke in release {number}")
    async with fleet.serve():
        print(json.dumps([fake.port for fake in fleet.fakes]), flush=True)
        told = 0
        while question := await anyio.to_thread.run_sync(sys.stdin.readline):
            if question.strip() == "requests":
                print(sum(len(fake.requests) for fake in fleet.fakes), flush=True)
            elif question.strip() == "cut":
                for fake in fleet.fakes:
                    fake.cut_streams()
                print("null", flush=True)
            else:
                deltas = fleet.fakes[0].deltas
                print(json.dumps([delta.text for delta in deltas[told:]]), flush=True)
                told = len(deltas)
        os._exit(0)  # without taking leave of each client: they have gone, and nobody waits


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    anyio.run(serve, int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
