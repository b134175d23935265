"""A server that answers every request with the same bytes, whatever they are."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream


@asynccontextmanager
async def answering(
    answer: bytes, *, hold: bool = False, heard: list[bytes] | None = None, drip_seconds: float = 0
) -> AsyncGenerator[str]:
    """Serve on the URL that is yielded.

    Args:
        answer: What every connection is sent once it has asked.
        hold: Keep the connection open after that.
        heard: Takes what was asked.
        drip_seconds: Send the answer byte by byte, with so much time between two of them.
    """

    async def serve(stream: SocketStream) -> None:
        async with stream:
            try:
                request = await stream.receive()
                if heard is not None:
                    heard.append(request)
                if drip_seconds:
                    for byte in answer:
                        await stream.send(bytes([byte]))
                        await anyio.sleep(drip_seconds)
                else:
                    await stream.send(answer)
                if hold:
                    await anyio.sleep_forever()
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                return

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            yield f"http://127.0.0.1:{port}"
            group.cancel_scope.cancel()
