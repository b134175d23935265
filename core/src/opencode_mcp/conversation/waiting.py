"""Waits for the answer to one prompt: passes on what streams, and finds in what is stored that it is over."""

import time

import anyio

from opencode_mcp.conversation import listening, wording
from opencode_mcp.conversation.listening import Listener
from opencode_mcp.conversation.results import Reply
from opencode_mcp.conversation.stored import newest
from opencode_mcp.conversation.turn import Turn, is_last
from opencode_mcp.errors import OpenCodeMCPError
from opencode_mcp.fleet import Feed, Monitor
from opencode_mcp.model import Session
from opencode_mcp.opencode.api import Message

JOINED_SECONDS = 0.05
"""Pieces of text closer together than this are passed on as one."""
CHECK_SECONDS = 5.0
"""How often the stored messages are asked for although no event says that the turn is over."""
CHECK_WITHOUT_STREAM_SECONDS = 1.0
NOTHING_HAPPENS_SECONDS = 15.0
"""After how much rest without an answer a prompt is given up."""
_WITHDRAWN_SECONDS = 10.0
_STUCK_BUSY_SECONDS = 3.0
_CHECK_COMPLETE_SECONDS = 0.5
_AFTERTHOUGHT_SECONDS = 0.2
_LAST_EVENTS_SECONDS = 1.0
_STORED = 30


class Waiting:
    """One prompt that was sent, and its answer to come.

    Two tasks: one listens to events and never waits for a request, so that signs of life and the end of
    the waiting are kept; the other asks for what is stored.
    """

    def __init__(
        self, monitor: Monitor, session: Session, feed: Feed, turn: Turn, listener: Listener
    ) -> None:
        self._monitor = monitor
        self._session = session
        self._feed = feed
        self._turn = turn
        self._listener = listener
        self._began = time.monotonic()
        self._was_busy = False
        self._stored = ""
        self._complete_since: tuple[str, float] = ("", 0.0)
        self._wanted = anyio.Event()
        self._reply: Reply | None = None

    async def run(self, until: float) -> Reply:
        """Listen until the answer is complete or `until` (of `time.monotonic`) has come."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_looking)
            await self._listen(until)
            tasks.cancel_scope.cancel()
        if self._reply is not None:
            return self._reply
        note = wording.still_running(self._monitor, self._session.id, time.monotonic() - self._began)
        return self._result("running", self._turn.text or self._stored, note)

    async def _listen(self, until: float) -> None:
        unsaid = ""
        spoke = joined_until = time.monotonic()
        while True:
            unsaid += self._turn.read(self._feed.take())
            now = time.monotonic()
            over = self._reply is not None or now >= until or self._withdrawn
            if unsaid and (over or now >= joined_until):
                await self._listener.text(unsaid)
                unsaid = ""
                spoke = time.monotonic()
                joined_until = spoke + JOINED_SECONDS
            if over:
                return
            if now - spoke >= listening.SIGN_OF_LIFE_SECONDS:
                await self._listener.sign_of_life(
                    wording.doing(self._monitor, self._session.id, now - self._began)
                )
                spoke = time.monotonic()
            if self._worth_a_look():
                self._wanted.set()
            pause = joined_until - now if unsaid else spoke + listening.SIGN_OF_LIFE_SECONDS - now
            await self._feed.wait(max(0.0, min(pause, until - now)))

    @property
    def _withdrawn(self) -> bool:
        return self._monitor.withdrawn_seconds > _WITHDRAWN_SECONDS

    @property
    def _seems_busy(self) -> bool:
        return self._monitor.picture.is_busy(self._session.id)

    def _worth_a_look(self) -> bool:
        busy = self._seems_busy
        came_to_rest = self._was_busy and not busy
        self._was_busy = busy
        over, self._turn.maybe_over = self._turn.maybe_over, False
        return came_to_rest or over

    async def _keep_looking(self) -> None:
        while self._reply is None:
            usual = CHECK_SECONDS if self._monitor.streaming else CHECK_WITHOUT_STREAM_SECONDS
            with anyio.move_on_after(_CHECK_COMPLETE_SECONDS if self._complete_since[0] else usual):
                await self._wanted.wait()
            self._wanted = anyio.Event()
            reply = await self._look()
            if reply is not None:
                await self._hear_the_rest()
                self._reply = reply
        self._feed.wake()

    async def _hear_the_rest(self) -> None:
        """Let the stream tell what is stored already: it can be the slower one."""
        with anyio.move_on_after(_LAST_EVENTS_SECONDS):
            while self._monitor.streaming and self._seems_busy:
                self._wanted = anyio.Event()
                await self._wanted.wait()

    async def _look(self) -> Reply | None:
        """Ask for what is stored; None while the answer is not complete, or the instance is away."""
        try:
            message = await self._answer()
            busy = await self._monitor.api.is_busy(self._session) or self._seems_busy
            if message is not None and is_last(message):
                # While it is busy something may follow: a long conversation is compacted, and goes on.
                done = not busy or self._turn.superseded or self._is_stuck(message)
                return self._over(message) if done else None
            if busy:
                return None
            if message is not None:
                if not message.completed:  # rest is told before the message's end is stored
                    await anyio.sleep(_AFTERTHOUGHT_SECONDS)
                message = await self._answer()  # it may have gone on, and ended, between the two
        except OpenCodeMCPError:
            return None  # the monitor reports it and comes back
        if message is None and self._turn.parked and self._turn.error:
            return self._result("running", note=wording.parked(self._monitor))
        if message is not None or self._turn.error:
            return self._over(message)
        if time.monotonic() - self._began > NOTHING_HAPPENS_SECONDS:
            return self._result(
                "failed", note="OpenCode took the message, but its agent did nothing with it."
            )
        return None

    async def _answer(self) -> Message | None:
        stored = await newest(self._monitor.api, self._session.id, _STORED)
        message = self._turn.answer(stored.messages)
        self._stored = message.text if message else ""
        return message

    def _is_stuck(self, message: Message) -> bool:
        """Whether a session stays busy behind a complete answer, as OpenCode is known to leave some."""
        now = time.monotonic()
        if self._complete_since[0] != message.id:
            self._complete_since = (message.id, now)
        return now - self._complete_since[1] > _STUCK_BUSY_SECONDS

    def _over(self, message: Message | None) -> Reply:
        text = message.text if message else ""
        error = message.error if message else ""
        if message is None or not is_last(message):
            error = error or self._turn.error
        if error:
            return self._result("failed", text, f"The agent stopped with an error: {error}")
        if message is not None and not message.completed:
            return self._result(
                "failed", text, "The agent stopped in the middle of its answer. Was OpenCode restarted?"
            )
        if text:
            return self._result("done", text)
        return self._result(
            "done", note="The agent finished without saying anything; `read` shows what it did."
        )

    def _result(self, state: str, text: str = "", note: str = "") -> Reply:
        return Reply.about(self._monitor, self._session, state=state, text=text, note=note)
