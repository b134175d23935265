"""The model: it plays the replies of a script, step by step, whatever the generation of the server."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import anyio

from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing.script import Reply

Json = dict[str, Any]
Ending = Literal["finished", "declined", "failed"]


@dataclasses.dataclass(kw_only=True)
class Scene:
    """Where a reply is played.

    Attributes:
        session_id: The session.
        user: The newest prompt.
        message: The assistant message being written, if any.
        open_part: The part of it being written, if any.
        said: The text of that part so far.
    """

    session_id: str
    user: Json
    message: Json | None = None
    open_part: Json | None = None
    said: str = ""


class Stage(Protocol):
    """What a generation does around the steps of a reply."""

    def step_begins(self, scene: Scene, first: bool) -> None:
        """A step is about to begin: the last moment for a prompt to be part of it."""
        ...

    async def step_began(self, scene: Scene) -> None:
        """The message of a step is there."""
        ...

    def step_ended(self, scene: Scene) -> None:
        """A step is over, and well."""
        ...

    async def start_child(self, session_id: str, prompt: str, reply: Reply) -> None:
        """Prompt a sub-agent's session and wait for its end."""
        ...


class Player:
    """Plays replies.

    Attributes:
        script: Replies still to be given, in turn; after them `default` answers.
        default: Makes a reply from the text of a prompt.
        models: The models that exist, as `provider/model`.
        delta_clock: Whether each delta carries `time.time_ns()` and a blank instead of its text.
        held: No turn starts until this is set, if it is there.
    """

    def __init__(
        self, store: Store, tools: Tools, default: Callable[[str], Reply], *, delta_clock: bool = False
    ) -> None:
        self.script: deque[Reply] = deque()
        self.default = default
        self.models = {"fake/fake"}
        self.delta_clock = delta_clock
        self.held: anyio.Event | None = None
        self._store = store
        self._tools = tools

    def choose(self, text: str) -> Reply:
        """Return the reply to a prompt."""
        return self.script.popleft() if self.script else self.default(text)

    async def may_start(self) -> None:
        """Wait until turns may start."""
        if self.held is not None:
            await self.held.wait()

    async def play(self, stage: Stage, scene: Scene, reply: Reply) -> Ending:
        """Play a reply; only if it `finished` its last message is complete."""
        for number, call in enumerate(reply.tools):
            message = await self._begin(stage, scene, first=number == 0)
            if number == 0:
                await self._say(scene, "reasoning", reply.reasoning, reply)
            if says := getattr(call, "says", ""):
                await self._say(scene, "text", [says], reply)
            if not await self._tools.run(message, call, stage.start_child):
                return "declined"
            self.finish(scene, "tool-calls")
            stage.step_ended(scene)
        await self._begin(stage, scene, first=not reply.tools)
        if not reply.tools:
            await self._say(scene, "reasoning", reply.reasoning, reply)
        await self._say(scene, "text", reply.pieces, reply)
        if reply.never_finishes:
            await anyio.sleep_forever()
        if reply.error is not None:
            return "failed"
        self.finish(scene, "stop")
        stage.step_ended(scene)
        return "finished"

    def finish(self, scene: Scene, reason: str) -> None:
        """Complete the message of a step that went well."""
        assert scene.message is not None  # noqa: S101 -- the step began
        self._store.add_part(scene.message, {"type": "step-finish", "reason": reason})
        self._store.complete_message(scene.message, finish=reason)
        scene.message = None

    def fail(self, scene: Scene, error: Json) -> None:
        """Complete the message of a step that went wrong, if there is one, and what is open in it."""
        self._close_part(scene)
        if scene.message is not None:
            self._tools.interrupt(scene.message)
            self._store.complete_message(scene.message, error=error)
            scene.message = None

    async def _begin(self, stage: Stage, scene: Scene, *, first: bool) -> Json:
        stage.step_begins(scene, first)
        message = scene.message = self._store.add_assistant_message(scene.session_id, scene.user)
        await stage.step_began(scene)
        self._store.add_part(message, {"type": "step-start"})
        return message

    async def _say(self, scene: Scene, kind: str, pieces: Sequence[str], reply: Reply) -> None:
        if not pieces:
            return
        store, message = self._store, scene.message
        assert message is not None  # noqa: S101 -- the step began
        part = store.add_part(message, {"type": kind, "text": "", "time": {"start": now_ms()}})
        scene.open_part, scene.said = part, ""
        for piece in pieces:
            if reply.gate is not None:
                await reply.gate.pass_through()
            await anyio.sleep(reply.delay)
            text = f"{time.time_ns()} " if self.delta_clock else piece
            scene.said += text
            store.add_delta(part, text)
        self._close_part(scene)

    def _close_part(self, scene: Scene) -> None:
        part, scene.open_part = scene.open_part, None
        if part is not None:
            part["text"] = scene.said
            part["time"]["end"] = now_ms()
            self._store.voice.part_changed(part)


def error(name: str, **data: Any) -> Json:
    """Return an error of 1.x; 2.x is made from it."""
    return {"name": name, "data": data}


def api_error(message: str) -> Json:
    """Return what a provider's refusal looks like in 1.x."""
    return error(
        "APIError",
        message=message,
        statusCode=400,
        isRetryable=False,
        responseHeaders={"content-type": "application/json"},
        responseBody="",
        metadata={"url": "http://127.0.0.1/v1/chat/completions"},
    )


ABORTED: Json = error("MessageAbortedError", message="Aborted")
