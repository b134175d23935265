"""Runs prompts as OpenCode 1.18.33 does: one turn at a time in each session, events in their order."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import anyio.lowlevel

from opencode_mcp.testing._play import ABORTED, Player, Scene, api_error, error
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing._v1_voice import ClassicVoice
from opencode_mcp.testing.script import Reply

Json = dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class Turn(Scene):
    """What a session is busy with.

    Attributes:
        more: Whether another prompt came in meanwhile.
        broken: Whether it could not even start (no such model).
        done: Set at the end.
        task: Runs it.
    """

    more: bool = True
    broken: bool = False
    done: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Turns:
    """Starts, runs and aborts turns."""

    def __init__(self, store: Store, tools: Tools, player: Player, voice: ClassicVoice) -> None:
        self._store = store
        self._tools = tools
        self._player = player
        self._voice = voice
        self._running: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def may_start(self) -> None:
        """Wait until turns may start."""
        await self._player.may_start()

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
        self._fail(turn, ABORTED)

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
            chosen = reply or self._player.choose(text)
            reply = None
            store.set_status(session_id, "busy")
            if chosen.bad_model or self._model_of(turn) not in self._player.models:
                self._miss_model(turn)
                return
            ending = await self._player.play(self, turn, chosen)
            if ending == "failed":
                self._running.pop(session_id)
                self._fail(turn, api_error(chosen.error or ""))
                return
            if ending == "declined":
                self._player.finish(turn, "tool-calls")
                break
        self._running.pop(session_id)
        store.set_status(session_id, "idle")
        self._summarize(turn)

    def step_begins(self, scene: Scene, first: bool) -> None:
        """Nothing to do: a prompt is part of the conversation as soon as it comes."""

    async def step_began(self, scene: Scene) -> None:
        """Summarize, and say that the session is busy."""
        self._summarize(scene)
        await anyio.lowlevel.checkpoint()
        self._store.set_status(scene.session_id, "busy")

    def step_ended(self, scene: Scene) -> None:
        """Say once more that the session is busy."""
        self._store.set_status(scene.session_id, "busy")

    async def start_child(self, session_id: str, prompt: str, reply: Reply) -> None:
        """Prompt a sub-agent's session and wait for its end."""
        await self.prompt(session_id, [prompt], reply=reply).done.wait()

    def _fail(self, turn: Turn, problem: Json) -> None:
        """End a turn with an error; the stream says `idle` before the message shows the error, then again."""
        self._voice.publish(turn.session_id, "session.error", {"error": problem})
        self._store.set_status(turn.session_id, "idle")
        self._player.fail(turn, problem)
        self._store.set_status(turn.session_id, "idle")

    def _miss_model(self, turn: Turn) -> None:
        session_id = turn.session_id
        message = f"Model not found: {self._model_of(turn)}."
        turn.broken = True
        self._running.pop(session_id)
        for text in (message, f"ProviderModelNotFoundError: {message}\n    at <anonymous>"):
            problem = error("UnknownError", message=text)
            self._voice.publish(session_id, "session.error", {"error": problem})
            if text is message:
                self._store.set_status(session_id, "idle")

    def _model_of(self, turn: Turn) -> str:
        model = turn.user["info"]["model"]
        return f"{model['providerID']}/{model['modelID']}"

    def _summarize(self, scene: Scene) -> None:
        """What OpenCode does on the side, now and after the end: a summary, and a title for a new session."""
        store, session_id = self._store, scene.session_id
        session = store.sessions[session_id]
        summary = {"additions": 0, "deletions": 0, "files": 0}
        store.touch_session(session_id, summary=summary)
        self._voice.publish(session_id, "session.diff", {"diff": []})
        scene.user["info"]["summary"] = {"diffs": []}
        self._voice.message_added(scene.user)
        if session["title"].startswith("New session - ") and scene.user["parts"]:
            store.touch_session(session_id, title=scene.user["parts"][0]["text"][:50])
