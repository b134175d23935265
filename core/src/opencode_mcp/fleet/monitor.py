"""One endpoint becomes one instance: connect, follow it, back off, go offline, come back."""

import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime

import anyio
import httpx2

from opencode_mcp.errors import (
    CredentialsError,
    LocalError,
    OpenCodeMCPError,
    StrangerError,
    TooLargeError,
    UnreachableError,
    ours,
)
from opencode_mcp.fleet.feed import Feed, Feeds
from opencode_mcp.fleet.follow import StreamEndedError, follow
from opencode_mcp.fleet.foreign import contained
from opencode_mcp.fleet.health import Health
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.fleet.picture import Picture
from opencode_mcp.fleet.watched import Watched
from opencode_mcp.model import Endpoint, Instance, Route, Status
from opencode_mcp.opencode.api import Event, Logged, OpenCode, Snapshot
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http
from opencode_mcp.text import clean_line, clean_path

logger = logging.getLogger(__name__)

_CUTS_TO_POLLING = 3
"""After so many streams in a row that end at once, as through some proxies, the instance is polled."""


class Monitor:
    """Keeps one instance up to date. It is the `Follower` of its own connection.

    Args:
        name: The instance's name in the fleet.
        endpoint: What the transport said.
        watched: Its transport, which opens the route, and is told when the endpoint is gone.
        pace: The waits.
        authenticate: Returns the credentials for an endpoint, or None.
        changed: Called with the instance before and after a visible change.
    """

    def __init__(
        self,
        *,
        name: str,
        endpoint: Endpoint,
        watched: Watched,
        pace: Pace,
        authenticate: Callable[[Endpoint], Awaitable[httpx2.Auth | None]],
        changed: Callable[[Instance, Instance], None],
    ) -> None:
        self.picture = Picture()
        self.looked = anyio.Event()
        self.streaming = False
        self._name = name
        self._endpoint = endpoint
        self._watched = watched
        self._pace = pace
        self._authenticate = authenticate
        self._changed = changed
        self._health = Health(pace)
        self._version = ""
        self._stocked = False
        self._api: OpenCode | None = None
        self._feeds = Feeds()
        self._connection = anyio.CancelScope()
        self._alone = anyio.Lock()
        self._nudged = anyio.Event()
        self._outcome = anyio.Event()
        self._cuts = 0
        self._overwhelmed = False
        self._seen: float | None = None
        self._reported: type[BaseException] | None = None
        self._withdrawn_at: float | None = None
        self._shown = self._look()

    @property
    def endpoint(self) -> Endpoint:
        """What the transport says."""
        return self._endpoint

    @property
    def name(self) -> str:
        """The instance's name in the fleet."""
        return self._name

    @property
    def instance(self) -> Instance:
        """The instance as it stands now."""
        return self._shown

    @property
    def last_seen(self) -> datetime | None:
        """When it last gave a sign of life, to the second; newer than `instance.last_seen`."""
        return None if self._seen is None else datetime.fromtimestamp(int(self._seen), UTC)

    @property
    def api(self) -> OpenCode:
        """The client of the connected server.

        Raises:
            UnreachableError: It is not connected now.
        """
        if self._api is None:
            raise UnreachableError(self._health.detail or "It is not connected.")
        return self._api

    @property
    def stocked(self) -> bool:
        """Whether the picture is known: a snapshot was taken since it was last away."""
        return self._stocked

    @property
    def withdrawn_seconds(self) -> float:
        """For how long its transport has not listed it any more; 0 while it does."""
        return 0.0 if self._withdrawn_at is None else time.monotonic() - self._withdrawn_at

    @property
    def directories(self) -> Collection[str]:
        """Projects besides the server's own that have sessions."""
        return self.picture.directories

    def update(self, name: str, endpoint: Endpoint) -> None:
        """Take over what the transport says now; at another address a fresh connection is made."""
        before, self._name, self._endpoint = self._endpoint, name, endpoint
        if (before.url, before.vouched) != (endpoint.url, endpoint.vouched):
            self._connection.cancel()
        if before != endpoint:
            self.nudge()  # a registration that was renewed is a reason to look again
        self._show()

    def nudge(self) -> None:
        """Try now instead of at the end of the present wait."""
        self._nudged.set()

    async def look_now(self, seconds: float) -> None:
        """If it is not connected, try at once, and wait for the outcome at most `seconds`."""
        if self._api is None or not self._stocked:
            self.nudge()
            with anyio.move_on_after(seconds):
                await self._outcome.wait()

    def feed(self, session_id: str) -> AbstractContextManager[Feed]:
        """Collect the events of a session, without its sub-agents', from this moment on."""
        return self._feeds.opened(session_id)

    @property
    def positions(self) -> Mapping[str, int]:
        """How far the logs of the sessions have come that somebody listens to."""
        return self._feeds.positions

    @property
    def puzzled(self) -> bool:
        """Whether a session is at work of which nothing is known."""
        return self.picture.puzzled

    def take_stock(self, snapshot: Snapshot, since: Sequence[Event] = (), *, streaming: bool) -> None:
        """Start the picture afresh from a snapshot, and what was heard since."""
        self.picture.start(snapshot)
        for event in since:
            self.picture.apply(event)
        self.streaming, self._stocked = streaming, True
        self._health.works()
        self.alive()
        self._show()
        self._looked()
        self._feeds.wake()

    def take_note(self, event: Event) -> None:
        """Learn from an event, and pass it on to those who follow its session."""
        self.alive()
        if isinstance(event, Logged):
            self._feeds.advance(event)
            return
        if self.picture.apply(event):
            self._show()
        self._feeds.put(event)

    def catch_up(self, events: Sequence[Event]) -> None:
        """Let those who follow a session hear what its log tells of a time without a stream."""
        for event in events:
            self._feeds.put(event)

    def overwhelmed(self, error: TooLargeError) -> None:
        """Say once that it sends more than is read, so that it is polled."""
        if not self._overwhelmed:
            self._overwhelmed = True
            logger.warning("%s: %s It is polled instead, for a while.", self._name, clean_line(str(error)))

    def alive(self) -> None:
        """Take note of a sign of life."""
        self._seen = time.time()

    async def run(self) -> None:
        """Keep at it until cancelled; may be run again after that, and then waits for the first to end."""
        async with self._alone:
            await self._run()

    async def _run(self) -> None:
        self._withdrawn_at = None
        try:
            while True:
                wait = await self._try()
                with anyio.move_on_after(wait * random.uniform(0.8, 1.2)):  # noqa: S311 - no secret
                    await self._nudged.wait()
                self._nudged = anyio.Event()
        finally:
            self._withdrawn_at = time.monotonic()
            self._health.withdrawn()
            self._shown = self._look()
            self._feeds.wake()

    async def _try(self) -> float:
        """Connect and follow until that ends, and return how long to wait before the next try, in seconds."""
        began = time.monotonic()
        failure: OpenCodeMCPError | None = None
        self._connection = anyio.CancelScope()
        try:
            with contained(), self._connection:
                await self._connect()
        except (Exception, SystemExit) as error:  # foreign code: its failure must not stop the fleet
            failure = ours(error) or self._foreign(error)
        finally:
            self._api, self.streaming = None, False
            self._feeds.wake()
        if failure is None:
            return 0.0
        self._stocked = False
        wait = self._health.failed(failure, lasted=time.monotonic() - began)
        if self._health.status is Status.NEEDS_CREDENTIALS:
            self.alive()
        self._show()
        self._looked()
        await self._forget_if_due()
        return wait

    async def _connect(self) -> None:
        verdict: OpenCodeMCPError | None = None
        with anyio.CancelScope(deadline=anyio.current_time() + self._pace.route) as opening:
            async with self._watched.opened().connect(self._endpoint) as route:
                opening.deadline = math.inf
                try:
                    await self._talk_over(route)
                except OpenCodeMCPError as error:
                    verdict = error  # raised outside: a route with tasks of its own would wrap it
        if opening.cancelled_caught:
            raise UnreachableError("Its transport found no way to it in time.")
        if verdict is not None:
            raise verdict

    async def _talk_over(self, route: Route) -> None:
        auth = route.auth or await self._authenticate(self._endpoint)
        vouched = self._endpoint.vouched
        async with Http(route, seconds=self._pace.probe, vouched=vouched, auth=auth) as http:
            try:
                self._api = await detect(http, pid=route.pid, version=route.version)
                self._version = self._api.version
                self._health.answers()
                self.alive()
                self._show()
                await self._follow(self._api)
            except StrangerError:
                raise
            except CredentialsError as error:
                told = route.auth is not None and http.authenticating
                raise self._refused(error, told=told) from None

    async def _follow(self, api: OpenCode) -> None:
        began = time.monotonic()
        try:
            await follow(api, self, self._pace, stream=self._cuts < _CUTS_TO_POLLING)
        except StreamEndedError:
            self._cuts = self._cuts + 1 if time.monotonic() - began < self._pace.stable else 0
            raise
        self._cuts = 0

    def _refused(self, error: CredentialsError, *, told: bool) -> CredentialsError:
        """Say what its refusal means here, where it is not about the password of the settings.

        Args:
            error: What the client says.
            told: Whether the credentials were those of its route.
        """
        if told:
            return CredentialsError("It refuses the user name and password that its transport knows.")
        if self._endpoint.vouched:
            return error
        return CredentialsError(
            "It wants a password. Its transport does not vouch for it, so OPENCODE_SERVER_PASSWORD "
            f"is not sent there. {self._how_to_vouch()}"
        )

    def _how_to_vouch(self) -> str:
        told = ""
        with suppress(Exception):  # foreign code
            told = clean_line(self._watched.opened().vouching, 300)
        return told or "A plugin's auth hook can give one."

    def _foreign(self, error: BaseException) -> LocalError:
        """Report a failure of the transport's code. Its words may hold a secret, so they stay in the log."""
        if self._reported is not type(error):
            self._reported = type(error)
            told = "Transport %s failed to reach %s with %s. %s"
            kind = type(error).__name__
            logger.error(told, self._watched.named, self._name, kind, self._watched.mend, exc_info=error)
        return LocalError(f"Its transport failed with {type(error).__name__}; the log on stderr tells more.")

    async def _forget_if_due(self) -> None:
        try:
            transport = self._watched.opened()
            limit = transport.forget_after_seconds
            if limit is None or not self._health.is_gone(limit):
                return
            with contained(), anyio.fail_after(self._pace.route):
                await transport.forget(self._endpoint)
        except (Exception, SystemExit):  # foreign code, as above
            told = "Transport %s failed to forget %s. %s"
            logger.exception(told, self._watched.named, self._name, self._watched.mend)

    def _look(self) -> Instance:
        picture, session = self.picture, self.picture.session
        directory = clean_path(picture.directory) or (session.directory if session else "")
        return Instance(
            name=self._name,
            transport=self._watched.name,
            endpoint=self._endpoint,
            status=self._health.status,
            detail=self._health.detail,
            activity=picture.activity if self._stocked and self._health.status is Status.ONLINE else None,
            version=self._version,
            directory=directory or self._endpoint.directory,
            session=session,
            waiting_for=picture.waiting_for(),
            last_seen=self.last_seen,
        )

    def _show(self) -> None:
        before, after = self._shown, self._look()
        self._shown = after
        if before != after:
            self._changed(before, after)

    def _looked(self) -> None:
        self.looked.set()
        self._outcome.set()
        self._outcome = anyio.Event()
