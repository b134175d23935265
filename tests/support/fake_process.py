"""A FakeOpenCode in a process of its own: `fake_process.py PORT [HOST [PASSWORD [DIRECTORY]]]`.

It says so on stdout once it listens, and serves until it is ended.
"""

import sys

import anyio

from opencode_mcp.testing import FakeOpenCode


async def serve(port: int, host: str, password: str | None, directory: str) -> None:
    fake = FakeOpenCode(directory, password=password)
    async with fake.serve(port, host):
        print("listening", flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    chosen = [*sys.argv[1:], *["4096", "0.0.0.0", "", "/srv/project"][len(sys.argv) - 1 :]]
    anyio.run(serve, int(chosen[0]), chosen[1], chosen[2] or None, chosen[3])
