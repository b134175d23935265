"""How `send` streams: nothing lost, how soon the first piece is there, and how fast very many are.

The floor is a bare reader of the instance's event stream, here in the client's process.
"""

import statistics
import time
from collections.abc import AsyncGenerator
from typing import Any, cast

import httpx2

from figure import Figure, spread
from processes import OURS, Connected, Simulated, connected, simulated, workplace

COMPLETE = (400, 0.005)
FIRST = (20, 0.01)
FAST = (2_000, 0.0)


class Said:
    """What came of one prompt: the pieces, and when the first came; and the answer as it was stored."""

    def __init__(self) -> None:
        self.stored = ""
        self.pieces: list[str] = []
        self.first_at = 0
        self.ended_at = 0

    def add(self, piece: str) -> None:
        """Take a piece."""
        if not self.pieces:
            self.first_at = time.time_ns()
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self.pieces)

    @property
    def first_ms(self) -> float:
        """How old the first delta was when it came."""
        return (self.first_at - self._emitted) / 1e6

    @property
    def total_ms(self) -> float:
        """How long it took from the emission of the first delta to the end."""
        return (self.ended_at - self._emitted) / 1e6

    @property
    def emission_ms(self) -> float:
        """How long the instance took from its first delta to its last."""
        return (int(self.text.split()[-1]) - self._emitted) / 1e6

    @property
    def _emitted(self) -> int:
        return int(self.pieces[0].split()[0])


async def through_us(server: Connected, count: int, seconds: float, name: str = "project-000") -> Said:
    """Let an instance stream, and follow it by progress notifications."""
    said = Said()

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        said.add(message or "")

    prompt = f"stream {count} {seconds}"
    result = await server.client.call_tool(
        "send", {"instance": name, "message": prompt, "session": "new"}, progress_callback=heard
    )
    said.ended_at = time.time_ns()
    assert not result.is_error, result
    content: dict[str, Any] = result.structured_content or {}
    assert content["state"] == "done", result
    said.stored = content["text"]
    return said


async def past_us(port: int, count: int, seconds: float) -> Said:
    """Let an instance stream, and read its events until it is idle, doing nothing else."""
    said = Said()
    async with (
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
        client.stream("GET", "/global/event") as response,
    ):
        session: dict[str, Any] = (await client.post("/session", json={})).json()
        parts = [{"type": "text", "text": f"stream {count} {seconds}"}]
        await client.post(f"/session/{session['id']}/prompt_async", json={"parts": parts})
        async for event in httpx2.EventSource(response):
            payload = cast("dict[str, dict[str, Any]]", event.json())["payload"]
            if payload["type"] == "message.part.delta":
                said.add(payload["properties"]["delta"])
            elif payload["type"] == "session.idle":
                break
        said.ended_at = time.time_ns()
    return said


async def complete(server: Connected, servers: Simulated, rounds: int) -> Figure:
    """Compare what was said with what was heard."""
    count, seconds = COMPLETE
    lost = 0
    for _ in range(rounds):
        await servers.ask("deltas")
        said = await through_us(server, count, seconds)
        emitted: list[str] = await servers.ask("deltas")
        assert len(emitted) == count
        if said.text != "".join(emitted):
            lost += max(1, len(set(emitted) - {f"{word} " for word in said.text.split()}))
    return Figure(
        name=f"send: lost or reordered of {rounds} x {count} deltas", measured=lost, unit="", target=0
    )


async def first(server: Connected, port: int, rounds: int) -> Figure:
    """Compare how soon the first delta is there."""
    ours = [(await through_us(server, *FIRST)).first_ms]
    least = [(await past_us(port, *FIRST)).first_ms]
    for _ in range(rounds):
        ours.append((await through_us(server, *FIRST)).first_ms)
        least.append((await past_us(port, *FIRST)).first_ms)
    return Figure(
        name="send: first delta, emitted to heard",
        measured=statistics.median(ours),
        unit="ms",
        target=10,
        floor=statistics.median(least),
        note=spread(ours),
    )


async def fast(server: Connected, servers: Simulated, port: int, rounds: int) -> AsyncGenerator[Figure]:
    """Compare how long very many deltas take without a pause between them."""
    ours: list[float] = []
    least: list[float] = []
    emitted: list[float] = []
    count, seconds = FAST
    lost = 0
    for _ in range(rounds):
        await servers.ask("deltas")
        said = await through_us(server, count, seconds)
        lost += said.text != "".join(await servers.ask("deltas"))
        ours.append(said.total_ms)
        emitted.append(said.emission_ms)
        least.append((await past_us(port, count, seconds)).total_ms)
    yield Figure(
        name=f"send: {count} deltas without a gap, in all",
        measured=statistics.median(ours),
        unit="ms",
        target=1000,
        floor=statistics.median(least),
        note=f"{spread(ours, 0)}; emitted within {statistics.median(emitted):.0f}",
    )
    yield Figure(name=f"send: incomplete of {rounds} x {count} deltas", measured=lost, unit="", target=0)


async def measure(rounds: int) -> AsyncGenerator[Figure]:
    """Stream through us and, in turns, past us."""
    async with workplace() as (_, registry), simulated(2) as servers:
        followed, other = servers.ports
        registry.register(followed)
        async with connected(OURS, registry.environment) as server:
            await server.all_online(1)
            yield await complete(server, servers, 3)
            yield await first(server, other, rounds)
            async for figure in fast(server, servers, other, max(3, rounds // 2)):
                yield figure
