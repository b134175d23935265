"""An MCP server on bare pipes: how long it takes to answer, without what a client library makes of that."""

import json
import time
from collections.abc import Sequence

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

_MOST_BYTES = 1 << 26


async def answered_within(
    command: Sequence[str], environment: dict[str, str], count: int, calls: int
) -> list[float]:
    """Call `instances` again and again, once `count` are online; return the milliseconds of each call."""
    async with await anyio.open_process(command, env=environment, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers, sending = BufferedByteReceiveStream(process.stdout), process.stdin

        async def ask(number: int, method: str, **params: object) -> bytes:
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            await sending.send(json.dumps(message).encode() + b"\n")
            return await answers.receive_until(b"\n", _MOST_BYTES)

        client = {"name": "bench", "version": "1"}
        await ask(0, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
        await sending.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        times: list[float] = []
        number = 0
        with anyio.fail_after(120):
            while len(times) < calls:
                number += 1
                began = time.perf_counter()
                answer = await ask(number, "tools/call", name="instances", arguments={})
                took = (time.perf_counter() - began) * 1000
                if answer.count(b'"activity":"idle"') == count:
                    times.append(took)
                else:
                    await anyio.sleep(0.2)
        process.kill()
    return times
