"""Runs the agents of OpenCode 2.x: an execution goes on until the inbox of its session has nothing left."""

import asyncio
import contextlib
import dataclasses
from typing import Any

import anyio.lowlevel

from opencode_mcp.testing import _v2_json as shape
from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._play import ABORTED, Player, Scene, api_error, error
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._tools import Tools
from opencode_mcp.testing._v2_inbox import Inbox
from opencode_mcp.testing._v2_voice import CurrentVoice
from opencode_mcp.testing.script import Reply

Json = dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class Execution:
    """What a session is busy with.

    Attributes:
        session_id: The session.
        queued: Whether prompts that do not steer have their turn as well.
        told: Whether the streams know that it started.
        scene: What is played, if anything is yet.
        done: Set at the end.
        task: Runs it; None if a test only says that the session is busy.
    """

    session_id: str
    queued: bool = True
    told: bool = False
    scene: Scene | None = None
    done: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Executions:
    """Starts, runs and interrupts executions."""

    def __init__(self, store: Store, tools: Tools, player: Player, voice: CurrentVoice, inbox: Inbox) -> None:
        self._store = store
        self._tools = tools
        self._player = player
        self._voice = voice
        self._inbox = inbox
        self._running: dict[str, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self, session_id: str, *, queued: bool = True) -> Execution:
        """Let a session look into its inbox."""
        running = self._running.get(session_id)
        if running is not None and running.task is not None:
            return running
        execution = Execution(session_id=session_id, queued=queued, told=running is not None)
        self._running[session_id] = execution
        if running is not None:
            running.done.set()
        execution.task = asyncio.create_task(self._run(execution))
        self._tasks.add(execution.task)
        execution.task.add_done_callback(lambda task: self._ended(execution, task))
        return execution

    def set_busy(self, session_id: str, busy: bool) -> None:
        """Start or end an execution in which nothing happens."""
        if busy and session_id not in self._running:
            execution = self._running[session_id] = Execution(session_id=session_id)
            self._start(execution)
        elif not busy and session_id in self._running:
            self._settle(self._running[session_id], "succeeded")

    def interrupt(self, session_id: str) -> bool:
        """End what a session and its sub-agents do; what waits in their inboxes stays there."""
        execution = self._running.get(session_id)
        if execution is None:
            return False
        for child in self._store.children(session_id):
            self.interrupt(child["id"])
        if execution.task is not None:
            execution.task.cancel()
        if not execution.told:
            del self._running[session_id]
            return False
        self._forget_requests(session_id)
        if execution.scene is not None:
            self._player.fail(execution.scene, ABORTED)
        self._settle(execution, "interrupted", reason="user")
        return True

    def forget(self, session_id: str) -> None:
        """End what a session that goes does, and what its sub-agents do, without a word."""
        for child in self._store.children(session_id):
            self.forget(child["id"])
        execution = self._running.pop(session_id, None)
        if execution is not None:
            execution.done.set()
            if execution.task is not None:
                execution.task.cancel()
        self._store.statuses.pop(session_id, None)
        self._forget_requests(session_id)
        self._inbox.forget(session_id)

    async def wait(self, session_id: str) -> None:
        """Wait until a session is idle."""
        while (execution := self._running.get(session_id)) is not None:
            await execution.done.wait()

    async def close(self) -> None:
        """End all executions as a server does that is killed: without a word.

        Raises:
            Exception: What went wrong in one of them, if anything did.
        """
        for execution in self._running.values():
            execution.done.set()
        self._running.clear()
        self._store.statuses.clear()
        self._tools.clear(permissions_too=False)  # 2.x keeps them in its database
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def step_begins(self, scene: Scene, first: bool) -> None:
        """Deliver what came in to steer the execution."""
        if not first:
            self._deliver(scene.session_id, queued=False)

    async def step_began(self, scene: Scene) -> None:
        """Let others do something."""
        await anyio.lowlevel.checkpoint()

    def step_ended(self, scene: Scene) -> None:
        """Nothing to do: the voice has told it."""

    async def start_child(self, session_id: str, prompt: str, reply: Reply) -> None:
        """Prompt a sub-agent's session and wait for its end."""
        item = self._inbox.admit(session_id, prompt, "steer")
        self._inbox.replies[item["id"]] = reply
        await self.wake(session_id).done.wait()

    def _ended(self, execution: Execution, task: asyncio.Task[None]) -> None:
        execution.done.set()
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)

    async def _run(self, execution: Execution) -> None:
        session_id = execution.session_id
        await self._player.may_start()
        if not execution.told:
            self._start(execution)
        await anyio.lowlevel.checkpoint()
        while users := self._deliver(session_id, queued=execution.queued):
            text = "\n".join(part["text"] for user in users for part in user["parts"])
            reply = self._inbox.replies.pop(users[-1]["info"]["id"], None) or self._player.choose(text)
            model = users[-1]["info"]["model"]
            name = f"{model['providerID']}/{model['modelID']}"
            if reply.bad_model or name not in self._player.models:
                problem = error("UnknownError", message=f"Model unavailable: {name}")
                self._settle(execution, "failed", problem=problem)
                return
            scene = execution.scene = Scene(session_id=session_id, user=users[-1])
            ending = await self._player.play(self, scene, reply)
            execution.scene = None
            if ending == "declined":
                self._player.fail(scene, ABORTED)
                self._settle(execution, "interrupted", reason="shutdown")
                return
            if ending == "failed":
                problem = api_error(reply.error or "")
                self._player.fail(scene, problem)
                self._settle(execution, "failed", problem=problem)
                return
        self._settle(execution, "succeeded")
        self._name(session_id)

    def _deliver(self, session_id: str, *, queued: bool) -> list[Json]:
        """Make prompts part of the conversation, and return them as messages."""
        chosen: Json = self._store.sessions[session_id].get("model", shape.MODEL)
        model = {"providerID": chosen["providerID"], "modelID": chosen["id"]}
        return [
            self._store.add_user_message(session_id, [item["payload"]["text"]], model, item["id"])
            for item in self._inbox.deliver(session_id, queued=queued)
        ]

    def _start(self, execution: Execution) -> None:
        session_id, execution.told = execution.session_id, True
        session = self._store.sessions[session_id]
        session.pop("outcome", None)
        session["time"].pop("idle", None)
        self._voice.publish(session_id, "session.execution.started")
        self._store.set_status(session_id, "busy")

    def _settle(
        self, execution: Execution, outcome: str, *, reason: str = "", problem: Json | None = None
    ) -> None:
        session_id = execution.session_id
        del self._running[session_id]
        said: Json = {"reason": reason} if reason else {}
        if problem is not None:
            said["error"] = shape.error(problem)
        if reason != "shutdown":
            self._come_to_rest(session_id, outcome, said.get("error"))
        self._voice.publish(session_id, f"session.execution.{outcome}", **said)
        self._store.set_status(session_id, "idle")
        execution.done.set()

    def _come_to_rest(self, session_id: str, outcome: str, problem: Json | None) -> None:
        session = self._store.sessions[session_id]
        session["time"]["updated"] = now_ms()
        if not self._voice.preview:
            session["outcome"], session["time"]["idle"] = outcome, now_ms()
        more = {} if problem is None else {"error": problem}
        self._voice.mark(session_id, "idle", outcome=outcome, **more)

    def _name(self, session_id: str) -> None:
        """What OpenCode does on the side: a title for a new session, which uses the model once more."""
        session = self._store.sessions[session_id]
        if not session["title"] and "parentID" not in session and self._store.messages[session_id]:
            first = self._store.messages[session_id][0]["parts"][0]["text"]
            self._store.touch_session(session_id, title=first[:50])
        self._voice.used(session_id)

    def _forget_requests(self, session_id: str) -> None:
        for open_ones in (self._tools.permissions, self._tools.questions):
            for request_id in [key for key, one in open_ones.items() if one.body["sessionID"] == session_id]:
                del open_ones[request_id]
