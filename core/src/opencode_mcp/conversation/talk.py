"""Talks with instances: sends and waits, reads, aborts."""

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import anyio

from opencode_mcp.conversation import wording
from opencode_mcp.conversation.audited import Audited
from opencode_mcp.conversation.listening import Listener, Silent, accompanied
from opencode_mcp.conversation.results import Reply, SaidMessage, Transcript
from opencode_mcp.conversation.sessions import choose
from opencode_mcp.conversation.stored import newest
from opencode_mcp.conversation.turn import Turn
from opencode_mcp.conversation.waiting import Waiting
from opencode_mcp.errors import (
    ConversationError,
    NotListeningError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from opencode_mcp.fleet import Fleet, Monitor
from opencode_mcp.model import Session, Status

_PREPARING_SECONDS = 20.0
"""How long all that comes before the prompt may take together."""
_STARTING_SECONDS = 5.0
_CHECK_STARTING_SECONDS = 0.2
_STORED = 10
_SERVER_ERROR = 500


class Conversation:
    """Operations on the instances of a fleet.

    Args:
        fleet: The live picture.
        patience: How long to wait for an instance that is not connected at the moment, in seconds.
    """

    def __init__(self, fleet: Fleet, *, patience: float = 3.0) -> None:
        self.fleet = fleet
        self.patience = patience
        self._prompting: set[tuple[Monitor, str]] = set()
        self._sent: dict[tuple[Monitor, str], tuple[float, Turn]] = {}

    async def find(self, query: str) -> Monitor:
        """Return the connected instance that `query` means.

        Raises:
            ConversationError: None or several fit, or it cannot be talked to now.
        """
        await self.fleet.discovered(self.patience)
        monitor = self.fleet.find(query)
        await monitor.look_now(self.patience)
        if monitor.instance.status is not Status.ONLINE:
            raise ConversationError(wording.away(monitor))
        return monitor

    async def send(
        self,
        query: str,
        prompt: str,
        *,
        seconds: float,
        session: str | None = None,
        listener: Listener | None = None,
        caller: str = "",
    ) -> Reply:
        """Hand `prompt` to an instance's agent and wait for its answer.

        Args:
            query: The instance.
            prompt: What to say; not blank.
            seconds: How long to wait; the agent's work goes on after that.
            session: An id, a part of a title, or `new`; by default the one used last.
            listener: Hears the answer as it comes.
            caller: Who sends it, for the audit.

        Raises:
            OpenCodeMCPError: It could not be sent. Nothing was, unless the message says that this is open.
        """
        if not prompt.strip():
            raise ConversationError("There is no message to send.")
        until = time.monotonic() + seconds
        hears = listener or Silent()
        audited = Audited(self.fleet, "send", caller=caller, text=prompt)
        with ExitStack() as stack, audited.to_the_end():
            sent = await accompanied(lambda: self._send(stack, query, prompt, session, hears, audited), hears)
            reply = sent if isinstance(sent, Reply) else await sent.run(until)
            audited.ended(reply.state, reply.note)
            return reply

    async def _send(
        self,
        stack: ExitStack,
        query: str,
        prompt: str,
        session: str | None,
        listener: Listener,
        audited: Audited,
    ) -> Waiting | Reply:
        """Send `prompt`, with its session held and followed by `stack`; a `Reply` says why it was not."""
        monitor = await self.find(query)
        try:
            with anyio.fail_after(_PREPARING_SECONDS):
                audited.begins(monitor, session)
                chosen = await choose(monitor, session) or await _fresh(monitor)
                audited.concerns(chosen)
                alone = stack.enter_context(self._alone(monitor, chosen))
                feed = stack.enter_context(monitor.feed(chosen.id))
                if not alone or await self._is_busy(monitor, chosen):
                    note = wording.busy(monitor, chosen)
                    return Reply.about(monitor, chosen, state="busy", note=note)
                turn = Turn(chosen.id, prompt, await monitor.api.messages(chosen.id, 1))
        except TimeoutError:
            raise ConversationError(f"{monitor.name} takes too long to answer. Nothing was sent.") from None
        turn.asked(await _prompt(monitor, chosen, prompt))
        self._sent[monitor, chosen.id] = (time.monotonic(), turn)
        return Waiting(monitor, chosen, feed, turn, listener)

    async def abort(self, query: str, *, session: str | None = None, caller: str = "") -> Reply:
        """Stop the agent of an instance, in its busy session or in the one given.

        Raises:
            OpenCodeMCPError: It could not be told.
        """
        monitor = await self.find(query)
        with Audited(self.fleet, "abort", caller=caller).to_the_end() as audited:
            audited.begins(monitor, session)
            chosen = await choose(monitor, session)
            audited.concerns(chosen)
            reply = await self._abort(monitor, chosen)
            audited.ended(reply.state, reply.note)
            return reply

    async def _abort(self, monitor: Monitor, chosen: Session | None) -> Reply:
        if chosen is None or not await self._is_busy(monitor, chosen):
            note = f"No agent is at work on {monitor.name}: nothing to abort."
            return Reply.about(monitor, chosen, state="nothing to abort", note=note)
        with monitor.feed(chosen.id) as feed:
            with anyio.move_on_after(self.patience):
                while await self._is_starting(monitor, chosen):
                    await feed.wait(_CHECK_STARTING_SECONDS)
            await monitor.api.abort(chosen.id)
            with anyio.move_on_after(self.patience):
                while monitor.picture.is_busy(chosen.id):
                    await feed.wait(1)
        if await monitor.api.is_busy(chosen):
            note = f"The agent of {monitor.name} was told to stop, and is still at work."
            return Reply.about(monitor, chosen, state="running", note=note)
        return Reply.about(monitor, chosen, state="aborted", note=f"The agent of {monitor.name} was stopped.")

    async def read(
        self, query: str, *, limit: int = 10, session: str | None = None, caller: str = ""
    ) -> Transcript:
        """Return the newest `limit` messages of an instance's session.

        Raises:
            OpenCodeMCPError: They could not be had.
        """
        monitor = await self.find(query)
        with Audited(self.fleet, "read", caller=caller).to_the_end() as audited:
            audited.begins(monitor, session)
            chosen = await choose(monitor, session)
            audited.concerns(chosen)
            transcript = await self._read(monitor, chosen, limit)
            audited.ended("done")
            return transcript

    async def _read(self, monitor: Monitor, chosen: Session | None, limit: int) -> Transcript:
        if chosen is None:
            return Transcript(instance=monitor.name, note=f"{monitor.name} has no session yet: use `send`.")
        busy = monitor.picture.is_busy(chosen.id) or await self._is_starting(monitor, chosen)
        stored = await newest(monitor.api, chosen.id, limit)
        return Transcript(
            instance=monitor.name,
            session_id=chosen.id,
            session=chosen.title,
            activity="busy" if busy else "idle",
            waiting_for=monitor.picture.waiting_for(chosen.id),
            messages=SaidMessage.all_of(stored.messages),
            note=wording.fewer_read(stored.fewer) if stored.fewer else "",
        )

    async def _is_busy(self, monitor: Monitor, session: Session) -> bool:
        if await self._is_starting(monitor, session):
            return True
        # What a stream says is confirmed: OpenCode is known to leave a session busy that has ended.
        doubtful = monitor.picture.is_busy(session.id) or not (monitor.streaming and monitor.stocked)
        if doubtful or self._sent_lately(monitor, session):
            return await monitor.api.is_busy(session)
        return False

    async def _is_starting(self, monitor: Monitor, session: Session) -> bool:
        """Whether our last message is still to be begun: OpenCode takes it and looks idle up to a second."""
        turn = self._sent_lately(monitor, session)
        if turn is None or turn.error:
            return False
        stored = await newest(monitor.api, session.id, _STORED)
        return turn.answer(stored.messages) is None

    def _sent_lately(self, monitor: Monitor, session: Session) -> Turn | None:
        now = time.monotonic()
        self._sent = {key: one for key, one in self._sent.items() if now - one[0] < _STARTING_SECONDS}
        return self._sent.get((monitor, session.id), (now, None))[1]

    @contextmanager
    def _alone(self, monitor: Monitor, session: Session) -> Generator[bool]:
        """Keep a second prompt of ours out: OpenCode mixes up two that come together. Yields if it can."""
        key = (monitor, session.id)
        if key in self._prompting:
            yield False
            return
        self._prompting.add(key)
        try:
            yield True
        finally:
            self._prompting.remove(key)


async def _fresh(monitor: Monitor) -> Session:
    """Create a session in the project that is shown: a server of 2.x has many, and runs anywhere."""
    many = monitor.api.generation > 1
    return await monitor.api.create_session(monitor.instance.directory if many else "")


async def _prompt(monitor: Monitor, session: Session, prompt: str) -> str:
    try:
        return await monitor.api.prompt(session, prompt)
    except NotListeningError:
        raise
    except (UnreachableError, ProtocolError, RequestError) as error:
        if isinstance(error, RequestError) and error.status < _SERVER_ERROR:
            raise
        raise ConversationError(
            f"{monitor.name}: {error} Whether the message arrived is not known: "
            "`read` before you send it again."
        ) from error
