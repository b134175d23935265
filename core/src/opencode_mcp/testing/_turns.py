"""Runs prompts: one turn at a time in each session, with the events of OpenCode 1.18.33 in their order."""

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing.script import Reply

Json = dict[str, Any]

_ABORTED: Json = {"name": "MessageAbortedError", "data": {"message": "Aborted"}}


@dataclasses.dataclass(kw_only=True)
class Turn:
    """What a session is busy with.

    Attributes:
        session_id: The session.
        user: The newest prompt.
        message: The assistant message being written, if any.
        open_part: The part of it being written, if any.
        said: The text of that part so far.
        more: Whether another prompt came in meanwhile.
        broken: Whether it could not even start (no such model).
        done: Set at the end.
    """

    session_id: str
    user: Json
    message: Json | None = None
    open_part: Json | None = None
    said: str = ""
    more: bool = True
    broken: bool = False
    done: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Turns:
    """Starts, runs and aborts turns.

    Attributes:
        script: Replies still to be given, in turn; after them `default` answers.
        models: The models that exist, as `provider/model`.
        delta_clock: Whether each delta carries `time.time_ns()` and a blank instead of its text.
    """

    def __init__(self, store: Store, tools: Tools, default: Callable[[str], Reply]) -> None:
        self.script: deque[Reply] = deque()
        self.default = default
        self.models = {"fake/fake"}
        self.delta_clock = False
        self._store = store
        self._tools = tools
        self._running: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def prompt(
        self,
        session_id: str,
        texts: Sequence[str],
        *,
        model: Json | None = None,
        message_id: str = "",
        reply: Reply | None = None,
    ) -> Turn:
        """Store a prompt and start a turn for it, or let the running turn answer it as well."""
        store = self._store
        model = model or {"providerID": "fake", "modelID": "fake"}
        chosen = {"id": model["modelID"], "providerID": model["providerID"], "variant": "default"}
        if "model" not in store.sessions[session_id]:
            store.touch_session(session_id, agent="build", model=chosen)
        user = store.add_user_message(session_id, list(texts), model, message_id)
        turn = self._running.get(session_id)
        if turn is not None:
            turn.user, turn.more = user, True
            return turn
        turn = self._running[session_id] = Turn(session_id=session_id, user=user)
        turn.task = asyncio.create_task(self._run(turn, reply))
        self._tasks.add(turn.task)
        turn.task.add_done_callback(lambda task: self._ended(turn, task))
        return turn

    def abort(self, session_id: str) -> None:
        """End what the session and its sub-agents do; an idle one says once more that it is idle."""
        store = self._store
        turn = self._running.pop(session_id, None)
        if turn is None or turn.task is None:
            if session_id in store.sessions:
                store.set_status(session_id, "idle")
            return
        for child in store.children(session_id):
            if child["id"] in self._running:
                self.abort(child["id"])
        turn.task.cancel()
        self._fail(turn, _ABORTED)

    def forget(self, session_id: str) -> None:
        """End a turn without a word."""
        turn = self._running.pop(session_id, None)
        if turn is not None and turn.task is not None:
            turn.task.cancel()

    async def close(self) -> None:
        """End all turns as a server does that stops: without a word.

        Raises:
            Exception: What went wrong in a turn, if anything did.
        """
        self._running.clear()
        self._store.statuses.clear()
        self._tools.clear()
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _ended(self, turn: Turn, task: asyncio.Task[None]) -> None:
        turn.done.set()
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)

    async def _run(self, turn: Turn, reply: Reply | None) -> None:
        store, session_id = self._store, turn.session_id
        while turn.more:
            turn.more = False
            text = "".join(part["text"] for part in turn.user["parts"])
            chosen = reply or (self.script.popleft() if self.script else self.default(text))
            reply = None
            store.set_status(session_id, "busy")
            if chosen.bad_model or self._model_of(turn) not in self.models:
                self._miss_model(turn)
                return
            if not await self._answer(turn, chosen):
                break
        if self._running.get(session_id) is not turn:  # it failed and said so
            return
        self._running.pop(session_id)
        store.set_status(session_id, "idle")
        self._summarize(turn)

    async def _answer(self, turn: Turn, reply: Reply) -> bool:
        """Answer one prompt; False ends the turn although more may wait."""
        store, session_id = self._store, turn.session_id
        for number, call in enumerate(reply.tools):
            message = await self._begin(turn)
            if number == 0:
                await self._say(turn, "reasoning", reply.reasoning, reply)
            if says := getattr(call, "says", ""):
                await self._say(turn, "text", [says], reply)
            goes_on = await self._tools.run(message, call, self._start_child)
            self._finish(turn, "tool-calls")
            if not goes_on:
                return False
            store.set_status(session_id, "busy")
        await self._begin(turn)
        if not reply.tools:
            await self._say(turn, "reasoning", reply.reasoning, reply)
        await self._say(turn, "text", reply.pieces, reply)
        if reply.never_finishes:
            await anyio.sleep_forever()
        if reply.error is not None:
            self._running.pop(session_id)
            self._fail(turn, _api_error(reply.error))
            return False
        self._finish(turn, "stop")
        store.set_status(session_id, "busy")
        return True

    async def _begin(self, turn: Turn) -> Json:
        turn.message = self._store.add_assistant_message(turn.session_id, turn.user)
        self._summarize(turn)
        await anyio.lowlevel.checkpoint()
        self._store.set_status(turn.session_id, "busy")
        self._store.add_part(turn.message, {"type": "step-start"})
        return turn.message

    def _finish(self, turn: Turn, reason: str) -> None:
        assert turn.message is not None  # noqa: S101 -- `_begin` came first
        self._store.add_part(turn.message, {"type": "step-finish", "reason": reason})
        self._store.complete_message(turn.message, finish=reason)
        turn.message = None

    async def _say(self, turn: Turn, kind: str, pieces: Sequence[str], reply: Reply) -> None:
        if not pieces:
            return
        store, message = self._store, turn.message
        assert message is not None  # noqa: S101 -- `_begin` came first
        part = store.add_part(message, {"type": kind, "text": "", "time": {"start": now_ms()}})
        turn.open_part, turn.said = part, ""
        for piece in pieces:
            if reply.gate is not None:
                await reply.gate.pass_through()
            await anyio.sleep(reply.delay)
            text = f"{time.time_ns()} " if self.delta_clock else piece
            turn.said += text
            store.add_delta(part, text)
        self._close_part(turn)

    def _close_part(self, turn: Turn) -> None:
        part, turn.open_part = turn.open_part, None
        if part is not None:
            part["text"] = turn.said
            part["time"]["end"] = now_ms()
            self._store.publish_part(part)

    def _fail(self, turn: Turn, error: Json) -> None:
        """End a turn with an error; the stream says `idle` before the message shows the error, then again."""
        store, session_id = self._store, turn.session_id
        store.publish(session_id, "session.error", {"error": error})
        store.set_status(session_id, "idle")
        self._close_part(turn)
        if turn.message is not None:
            self._tools.interrupt(turn.message)
            store.complete_message(turn.message, error=error)
        store.set_status(session_id, "idle")

    def _miss_model(self, turn: Turn) -> None:
        store, session_id = self._store, turn.session_id
        message = f"Model not found: {self._model_of(turn)}."
        turn.broken = True
        self._running.pop(session_id)
        for text in (message, f"ProviderModelNotFoundError: {message}\n    at <anonymous>"):
            store.publish(session_id, "session.error", {"error": _error("UnknownError", message=text)})
            if text is message:
                store.set_status(session_id, "idle")

    def _model_of(self, turn: Turn) -> str:
        model = turn.user["info"]["model"]
        return f"{model['providerID']}/{model['modelID']}"

    def _summarize(self, turn: Turn) -> None:
        """What OpenCode does on the side, now and after the end: a summary, and a title for a new session."""
        store, session_id = self._store, turn.session_id
        session = store.sessions[session_id]
        summary = {"additions": 0, "deletions": 0, "files": 0}
        store.touch_session(session_id, summary=summary)
        store.publish(session_id, "session.diff", {"diff": []})
        turn.user["info"]["summary"] = {"diffs": []}
        store.publish_message(turn.user)
        if session["title"].startswith("New session - ") and turn.user["parts"]:
            store.touch_session(session_id, title=turn.user["parts"][0]["text"][:50])

    async def _start_child(self, session_id: str, prompt: str, reply: Reply) -> None:
        await self.prompt(session_id, [prompt], reply=reply).done.wait()


def _error(name: str, **data: Any) -> Json:
    return {"name": name, "data": data}


def _api_error(message: str) -> Json:
    return _error(
        "APIError",
        message=message,
        statusCode=400,
        isRetryable=False,
        responseHeaders={"content-type": "application/json"},
        responseBody="",
        metadata={"url": "http://127.0.0.1/v1/chat/completions"},
    )
