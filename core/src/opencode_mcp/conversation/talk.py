"""Talks with instances: picks the session, sends, waits for the answer, reads, aborts."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import anyio

from opencode_mcp.conversation.results import Reply, SaidMessage, Transcript
from opencode_mcp.conversation.turn import Turn, is_last
from opencode_mcp.errors import ConversationError, OpenCodeMCPError, RequestError, UnreachableError
from opencode_mcp.fleet import Feed, Fleet, Monitor
from opencode_mcp.fleet.names import listed
from opencode_mcp.model import Session, Status
from opencode_mcp.opencode.api import Message
from opencode_mcp.text import clean_line

JOINED_SECONDS = 0.05
"""Pieces of text closer together than this are shown as one."""
SIGN_OF_LIFE_SECONDS = 8.0
"""After this much silence of the agent a listener hears that it is still at work."""
_CHECK_SECONDS = 5.0
_CHECK_WITHOUT_STREAM_SECONDS = 1.0
_NOTHING_HAPPENS_SECONDS = 15.0
_STARTING_SECONDS = 5.0
_CHECK_STARTING_SECONDS = 0.2
_STORED = 30


class Listener(Protocol):
    """Hears an agent while it answers."""

    async def text(self, piece: str) -> None:
        """Take a piece of the answer."""
        ...

    async def sign_of_life(self, what: str) -> None:
        """Take a line about what goes on while no text comes."""
        ...


class Silent:
    """A listener that does not listen."""

    async def text(self, piece: str) -> None:
        """Ignore it."""

    async def sign_of_life(self, what: str) -> None:
        """Ignore it."""


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
        instance = monitor.instance
        if instance.status is not Status.ONLINE:
            seen = f", last seen {monitor.last_seen.isoformat()}" if monitor.last_seen else ""
            raise ConversationError(f"{instance.name} {_stands(monitor)}{seen}. {instance.detail}".rstrip())
        return monitor

    async def send(
        self,
        query: str,
        prompt: str,
        *,
        seconds: float,
        session: str | None = None,
        listener: Listener | None = None,
    ) -> Reply:
        """Hand `prompt` to an instance's agent and wait for its answer.

        Args:
            query: The instance.
            prompt: What to say; not blank.
            seconds: How long to wait; the agent's work goes on after that.
            session: An id, a part of a title, or `new`; by default the one used last.
            listener: Hears the answer as it comes.

        Raises:
            OpenCodeMCPError: It could not be sent. Nothing was, unless the message says that this is open.
        """
        if not prompt.strip():
            raise ConversationError("There is no message to send.")
        began = time.monotonic()
        monitor = await self.find(query)
        chosen = await self._session(monitor, session)
        if chosen is None:
            chosen = await monitor.api.create_session("")
        with self._alone(monitor, chosen) as alone, monitor.feed(chosen.id) as feed:
            if not alone or await self._is_busy(monitor, chosen):
                return _reply(monitor, chosen, state="busy", note=_busy(monitor, chosen))
            turn = Turn(chosen.id, prompt, await monitor.api.messages(chosen.id, 1))
            await self._prompt(monitor, chosen, prompt)
            self._sent[monitor, chosen.id] = (time.monotonic(), turn)
            waiting = _Waiting(monitor, chosen, feed, turn, listener or Silent())
            return await waiting.run(began + seconds)

    async def abort(self, query: str, *, session: str | None = None) -> Reply:
        """Stop the agent of an instance, in its busy session or in the one given.

        Raises:
            OpenCodeMCPError: It could not be told.
        """
        monitor = await self.find(query)
        chosen = await self._session(monitor, session)
        if chosen is None or not await self._is_busy(monitor, chosen):
            return _reply(
                monitor,
                chosen,
                state="nothing to abort",
                note=f"No agent is at work on {monitor.name}: nothing to abort.",
            )
        with monitor.feed(chosen.id) as feed:
            with anyio.move_on_after(self.patience):
                while await self._is_starting(monitor, chosen):
                    await feed.fetch(_CHECK_STARTING_SECONDS)
            await monitor.api.abort(chosen.id)
            with anyio.move_on_after(self.patience):
                while monitor.picture.is_busy(chosen.id):
                    await feed.fetch(1)
        return _reply(monitor, chosen, state="aborted", note=f"The agent of {monitor.name} was stopped.")

    async def read(self, query: str, *, limit: int = 10, session: str | None = None) -> Transcript:
        """Return the newest `limit` messages of an instance's session.

        Raises:
            OpenCodeMCPError: They could not be had.
        """
        monitor = await self.find(query)
        chosen = await self._session(monitor, session)
        if chosen is None:
            return Transcript(instance=monitor.name, note=f"{monitor.name} has no session yet: use `send`.")
        busy = monitor.picture.is_busy(chosen.id) or await self._is_starting(monitor, chosen)
        stored = await monitor.api.messages(chosen.id, limit)
        return Transcript(
            instance=monitor.name,
            session_id=chosen.id,
            session=chosen.title,
            activity="busy" if busy else "idle",
            waiting_for=monitor.picture.waiting_for(chosen.id),
            messages=[_said(message) for message in stored],
        )

    async def _session(self, monitor: Monitor, wanted: str | None) -> Session | None:
        """Choose a session; None means that a new one is to be made."""
        if wanted is None or not wanted.strip():
            return monitor.picture.session
        if wanted == "new":
            return None
        sessions = await monitor.api.sessions()
        by_id = {one.id: one for one in sessions}
        if wanted in by_id:
            return by_id[wanted]
        if wanted.startswith("ses_") and wanted.replace("_", "").isalnum():
            try:
                return await monitor.api.session(wanted)
            except RequestError as error:
                raise ConversationError(f"{monitor.name} has no session {wanted}: {error}") from error
        folded = wanted.casefold().strip()
        found = [one for one in sessions if one.title.casefold() == folded]
        found = found or [one for one in sessions if folded in one.title.casefold()]
        if len(found) == 1:
            return found[0]
        asked = clean_line(wanted, 80)
        titles = listed(f"{one.title!r} ({one.id})" for one in found or sessions)
        if found:
            raise ConversationError(
                f"{asked!r} fits several sessions of {monitor.name}: {titles}. Say which one."
            )
        raise ConversationError(f"{monitor.name} has no session like {asked!r}. It has: {titles or 'none'}.")

    async def _is_busy(self, monitor: Monitor, session: Session) -> bool:
        if await self._is_starting(monitor, session):
            return True
        # What a stream says is confirmed: OpenCode is known to leave a session busy that has ended.
        doubtful = monitor.picture.is_busy(session.id) or not monitor.streaming
        if doubtful or self._sent_lately(monitor, session):
            return await monitor.api.is_busy(session)
        return False

    async def _is_starting(self, monitor: Monitor, session: Session) -> bool:
        """Whether our last message is still to be begun: OpenCode takes it and looks idle up to a second."""
        turn = self._sent_lately(monitor, session)
        if turn is None or turn.error:
            return False
        return turn.answer(await monitor.api.messages(session.id, _STORED)) is None

    def _sent_lately(self, monitor: Monitor, session: Session) -> Turn | None:
        now = time.monotonic()
        self._sent = {key: one for key, one in self._sent.items() if now - one[0] < _STARTING_SECONDS}
        return self._sent.get((monitor, session.id), (now, None))[1]

    async def _prompt(self, monitor: Monitor, session: Session, prompt: str) -> None:
        try:
            await monitor.api.prompt(session, prompt)
        except UnreachableError as error:
            raise ConversationError(
                f"{monitor.name}: {error} Whether the message arrived is not known: "
                "`read` before you send it again."
            ) from error

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


class _Waiting:
    """Waits for one answer."""

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

    async def run(self, until: float) -> Reply:
        """Listen until the answer is complete or `until` (of `time.monotonic`) has come."""
        unsaid = ""
        spoke = time.monotonic()
        joined_until = checked = spoke
        while True:
            now = time.monotonic()
            if now >= until:
                break
            pause = (
                joined_until - now if unsaid else min(spoke + SIGN_OF_LIFE_SECONDS - now, self._check_seconds)
            )
            events = await self._feed.fetch(max(0.0, min(pause, until - now)))
            unsaid += self._turn.read(events)
            now = time.monotonic()
            if unsaid and now >= joined_until:
                piece, unsaid = unsaid, ""
                await self._listener.text(piece)
                spoke = time.monotonic()
                joined_until = spoke + JOINED_SECONDS
            elif now - spoke >= SIGN_OF_LIFE_SECONDS:
                await self._listener.sign_of_life(self._doing())
                spoke = time.monotonic()
            if self._worth_a_look(now - checked):
                checked = now
                reply = await self._look()
                if reply is not None:
                    unsaid += self._turn.read(await self._feed.fetch(0))
                    if unsaid:
                        await self._listener.text(unsaid)
                    return reply
        if unsaid:
            await self._listener.text(unsaid)
        return self._so_far()

    @property
    def _check_seconds(self) -> float:
        return _CHECK_SECONDS if self._monitor.streaming else _CHECK_WITHOUT_STREAM_SECONDS

    @property
    def _seems_busy(self) -> bool:
        return self._monitor.picture.is_busy(self._session.id)

    def _worth_a_look(self, since: float) -> bool:
        busy = self._seems_busy
        came_to_rest = self._was_busy and not busy
        self._was_busy = busy
        over, self._turn.maybe_over = self._turn.maybe_over, False
        return came_to_rest or over or since >= self._check_seconds

    async def _look(self) -> Reply | None:
        """Ask for what is stored; None while the answer is not complete, or the instance is away."""
        try:
            message = await self._answer()
            if message is None or not is_last(message):
                if await self._monitor.api.is_busy(self._session) or self._seems_busy:
                    return None
                if message is not None:
                    message = await self._answer()  # it may have gone on, and ended, between the two
        except OpenCodeMCPError:
            return None  # the monitor reports it and comes back
        if message is not None or self._turn.error:
            return self._over(message)
        if time.monotonic() - self._began > _NOTHING_HAPPENS_SECONDS:
            return self._reply("failed", note="OpenCode took the message, but its agent did nothing with it.")
        return None

    async def _answer(self) -> Message | None:
        message = self._turn.answer(await self._monitor.api.messages(self._session.id, _STORED))
        self._stored = message.text if message else ""
        return message

    def _over(self, message: Message | None) -> Reply:
        text = message.text if message else ""
        error = message.error if message else ""
        if message is None or not is_last(message):
            error = error or self._turn.error
        if error:
            return self._reply("failed", text, f"The agent stopped with an error: {error}")
        if message is not None and not message.completed:
            return self._reply(
                "failed", text, "The agent stopped in the middle of its answer. Was OpenCode restarted?"
            )
        if text:
            return self._reply("done", text)
        return self._reply(
            "done", note="The agent finished without saying anything; `read` shows what it did."
        )

    def _so_far(self) -> Reply:
        waited = round(time.monotonic() - self._began)
        what = self._monitor.picture.waiting_for(self._session.id)
        online = self._monitor.instance.status is Status.ONLINE
        state = f"It waits for a person to decide: {what}." if what else "The agent is still at work."
        if not online:
            state = f"The instance {_stands(self._monitor)} at present."
        return self._reply(
            "running",
            self._turn.text or self._stored,
            f"{state} Waited {waited} s. `read` shows how it goes on; the answer will be there.",
        )

    def _doing(self) -> str:
        picture = self._monitor.picture
        waited = round(time.monotonic() - self._began)
        what = picture.waiting_for(self._session.id)
        if what:
            return f"[waits for a person to decide: {what}; {waited} s]"
        if self._monitor.instance.status is not Status.ONLINE:
            return f"[the instance {_stands(self._monitor)}; {waited} s]"
        return f"[at work{f': {doing}' if (doing := picture.doing(self._session.id)) else ''}; {waited} s]"

    def _reply(self, state: str, text: str = "", note: str = "") -> Reply:
        return _reply(self._monitor, self._session, state=state, text=text, note=note)


def _busy(monitor: Monitor, session: Session) -> str:
    """Say why nothing was sent."""
    what = monitor.picture.waiting_for(session.id)
    doing = f"it waits for a person ({what})" if what else monitor.picture.doing(session.id)
    about = f', "{session.title}"' if session.title else ""
    return (
        f"{monitor.name} is busy{about}{f': {doing}' if doing else ''}. Nothing was sent. "
        "Wait and `read`, send into another session (`new` for a fresh one), or stop it with abort."
    )


def _reply(monitor: Monitor, session: Session | None, *, state: str, text: str = "", note: str = "") -> Reply:
    title = monitor.picture.title(session.id) or session.title if session else ""
    return Reply.model_validate(
        {
            "instance": monitor.name,
            "state": state,
            "session_id": session.id if session else "",
            "session": title,
            "text": text,
            "note": note,
        }
    )


def _stands(monitor: Monitor) -> str:
    status = monitor.instance.status
    return status.value if status is Status.NEEDS_CREDENTIALS else f"is {status.value}"


def _said(message: Message) -> SaidMessage:
    return SaidMessage(
        role=message.role,
        time=datetime.fromtimestamp(message.created / 1000, UTC).isoformat(timespec="seconds"),
        text=message.text,
        tools=[f"{tool} → {tool.status}" for tool in message.tools],
        error=message.error,
    )
