"""A fake tailscaled in a process of its own, on a tailnet of simulated machines.

`tailscale_tailnet.py SOCKET HOW COUNT INSTANCES DROPPERS LATE [PORT ...]`, which ends with its stdin. Of
COUNT machines, INSTANCES tell an index with one instance, which leads to one of the PORTs here; DROPPERS
answer nothing, not even to refuse; LATE are offline, and would tell one; the others refuse. HOW is

* `dial`: tailscaled is in user space (`TUN` is false), so that whoever connects has to dial.
* `direct`: there is an interface. That takes a network namespace in which `100.64.0.0/16` is local, and
  what is sent to `100.65.0.0/16` is lost.

It prints one line of JSON, `{"own": address, "drops": [address, …], "late": [id, …]}`. Then each line on
stdin is a question, answered by a line of JSON:

* `shuffle`: the machines are told of in another order from now on, and what was counted is forgotten.
* `counted`: how many dials there were, and the most connections to machines at once.
* `online ID`: when a machine came, in nanoseconds of the monotonic clock, right before the bus was told.
* `reach PORT`: the address of a machine whose port leads to that of this one from now on.
"""

import asyncio
import contextlib
import functools
import json
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import anyio.to_thread

from support.fake_tailscaled import FakeTailscaled, Place, ServedWeb, Stream
from support.fake_tailscaled_wire import Answer, GoneError, Request

INDEX_PORT = 14_096
_OWN = "100.64.255.1"
_BACKLOG = 256


class Counting(FakeTailscaled):
    """A fake tailscaled that counts connections to machines, those that have no answer yet among them.

    Attributes:
        dialled: How many were asked for.
        most: The most there were at once.
    """

    dialled = most = _open = 0

    def forget(self) -> None:
        """Count anew."""
        self.dialled, self.most = 0, self._open

    async def _answer_dial(self, stream: Stream, request: Request) -> Answer | bool:
        self.dialled += 1
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            return await super()._answer_dial(stream, request)
        finally:
            self._open -= 1


def addresses(first: str) -> Iterator[str]:
    """Yield the addresses of a network of 16 bits."""
    for number in range(1, 1 << 16):
        yield f"{first}.{number >> 8}.{number & 255}"


def announcer(name: str, port: int) -> ServedWeb:
    """Serve what tailscaled serves where one instance is announced."""
    instance = {"id": "k3", "path": "/i/k3/", "name": f"project-{name}", "version": "1.18.33", "auth": "none"}
    handlers = {
        "/.well-known/opencode": {"Text": json.dumps({"v": 1, "instances": [instance]})},
        "/i/k3/": {"Proxy": f"http://127.0.0.1:{port}"},
    }
    return ServedWeb(
        {
            "TCP": {str(INDEX_PORT): {"HTTP": True}},
            "Web": {f"{name}.tail1a2b.ts.net:{INDEX_PORT}": {"Handlers": handlers}},
        }
    )


async def listen(address: str, web: ServedWeb) -> None:
    """Serve at an address of this namespace."""
    place: Any = web.at(INDEX_PORT)
    await asyncio.start_server(functools.partial(_serve, place), address, INDEX_PORT, backlog=_BACKLOG)


async def _serve(place: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    stream = Stream(reader, writer)
    with contextlib.suppress(GoneError):
        await place(stream)
    await stream.close()


async def populate(
    fake: Counting, *, direct: bool, numbers: Sequence[int], ports: Sequence[int]
) -> dict[str, Any]:
    """Add the machines."""
    count, instances, droppers, late = numbers
    here, nowhere = addresses("100.64"), addresses("100.65")
    told: dict[str, Any] = {"own": _OWN, "drops": [], "late": []}
    fake.update_me(ips=(_OWN,))
    for number in range(count):
        drops = instances <= number < instances + droppers
        coming = instances + droppers <= number < instances + droppers + late
        place: Place = "hang" if drops else "refuse"
        address = next(nowhere if drops else here)
        ips = (address, f"fd7a:115c:a1e0::{number + 1:x}")
        peer = fake.add_peer(f"box{number}", ips=ips, online=not coming)
        if number < instances or coming:
            web = announcer(peer.label, ports[number % len(ports)] if ports else 9)
            place = web.at(INDEX_PORT)
            if direct:
                await listen(address, web)
        if coming:
            told["late"].append(peer.id)
        if drops:
            told["drops"].append(address)
            fake.machines[address] = lambda _: "hang"
        else:
            fake.reach[address, INDEX_PORT] = place
    return told


def shuffle(fake: Counting) -> None:
    """Tell of the machines in another order."""
    peers = list(fake.tailnet.peers.items())
    random.shuffle(peers)
    with fake.silently():
        fake.tailnet.peers.clear()
        fake.tailnet.peers.update(peers)
    fake.tailnet.status()  # written beforehand, so that nobody waits for that
    fake.forget()


def answer(fake: Counting, question: str) -> Any:
    """Answer a question."""
    match question.split():
        case ["shuffle"]:
            return shuffle(fake)
        case ["counted"]:
            return [fake.dialled, fake.most]
        case ["online", name]:
            now = time.monotonic_ns()
            fake.update_peer(name, online=True)
            return now
        case ["reach", port]:
            address = next(iter(fake.tailnet.peers.values())).ips[0]
            fake.reach[address, int(port)] = ("127.0.0.1", int(port))
            return address
        case _:
            raise ValueError(question)


async def main(socket: str, how: str, numbers: Sequence[int]) -> None:
    """Serve until stdin ends."""
    async with Counting(socket) as fake:
        fake.tun = how == "direct"
        told = await populate(fake, direct=fake.tun, numbers=numbers[:4], ports=numbers[4:])
        shuffle(fake)
        print(json.dumps(told), flush=True)
        while question := await anyio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(answer(fake, question)), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    anyio.run(main, sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]])
