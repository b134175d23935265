"""A language model on loopback: speaks OpenAI's chat completions, says what the test scripted."""

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import anyio
from starlette.types import Receive, Scope, Send

from opencode_mcp.testing._serve import bind, serving, until_disconnect


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model does with one request.

    Attributes:
        chunks: Text, in the pieces in which it is streamed.
        reasoning: Reasoning, in pieces, streamed before the text.
        calls: Tools to call, as (name, arguments).
        status: An HTTP status of 400 or more fails the request.
        message: The words of that failure.
        delay: Seconds before each piece.
        tokens: How many it says the request had.
        gate: Nothing after the first piece is sent before this event is set.
    """

    chunks: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    status: int = 200
    message: str = "scripted failure"
    delay: float = 0.0
    tokens: int = 10
    gate: anyio.Event | None = None


class ModelServer:
    """Answers in the order scripted; with no script left it says `ok`.

    Attributes:
        requests: The bodies of all requests with tools, oldest first.
        title: What it answers when asked for a session's title (a request without tools).
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.title = "Scripted title"
        self._script: deque[Answer] = deque()
        self._calls = 0
        self.url = ""

    def script(self, *answers: Answer) -> None:
        """Forget what is left of the old script; answer like this, one after the other."""
        self._script = deque(answers)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncGenerator[None]:
        """Listen on a free port of loopback; `url` is the base URL for a provider."""
        sock = bind()
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        async with serving(self, sock):
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = json.loads(body or b"{}")
        if request.get("tools"):
            self.requests.append(request)
            answer = self._script.popleft() if self._script else Answer(chunks=["ok"])
        else:
            answer = Answer(chunks=[self.title])
        await until_disconnect(receive, lambda: self._answer(answer, send))

    async def _answer(self, answer: Answer, send: Send) -> None:
        if answer.status >= 400:
            error = {"error": {"message": answer.message, "type": "invalid_request_error", "code": None}}
            await _start(send, answer.status, "application/json")
            await _body(send, json.dumps(error), more=False)
            return
        await _start(send, 200, "text/event-stream")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": piece} for piece in answer.reasoning]
        deltas += [{"content": piece} for piece in answer.chunks]
        deltas += [{"tool_calls": [self._tool_call(index, *call)]} for index, call in enumerate(answer.calls)]
        for sent, delta in enumerate(deltas):
            if answer.gate is not None and sent == 2:
                await answer.gate.wait()
            await anyio.sleep(answer.delay)
            await _event(send, {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        finish = "tool_calls" if answer.calls else "stop"
        await _event(send, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        total = answer.tokens + 5
        usage = {"prompt_tokens": answer.tokens, "completion_tokens": 5, "total_tokens": total}
        await _event(send, {"choices": [], "usage": usage})
        await _body(send, "data: [DONE]\n\n", more=False)

    def _tool_call(self, index: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._calls += 1
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"index": index, "id": f"call_{self._calls}", "type": "function", "function": function}


async def _start(send: Send, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _body(send: Send, text: str, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})


async def _event(send: Send, chunk: dict[str, Any]) -> None:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake", **chunk}
    await _body(send, f"data: {json.dumps(chunk)}\n\n", more=True)
