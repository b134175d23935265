"""Keeps an instance announced on one transport: tries again when that ends, ever more rarely."""

import logging
import random
from collections.abc import Callable
from typing import Any, cast

import anyio
import anyio.lowlevel

from opencode_mcp.errors import TransportError, ours
from opencode_mcp.model import Endpoint
from opencode_mcp.settings import Settings
from opencode_mcp.text import clean_line
from opencode_mcp.transport import Announcer, Transport, TransportPlugin

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0
_HEALTHY_SECONDS = 30.0
_JITTER = 0.25
_SHOWN = 500


class Backoff:
    """How long to wait before another attempt: 1 s, 2 s, 4 s, … 60 s, each with up to a quarter on top."""

    def __init__(self) -> None:
        self._next = _FIRST_SECONDS

    def wait(self, healthy_seconds: float) -> float:
        """Return the next wait, in seconds; health of 30 s makes it start afresh."""
        if healthy_seconds >= _HEALTHY_SECONDS:
            self._next = _FIRST_SECONDS
        wait = self._next
        self._next = min(2 * wait, _LONGEST_SECONDS)
        return wait * random.uniform(1, 1 + _JITTER)  # noqa: S311 - spreads load, guards nothing


class Keeper:
    """Announces through one transport.

    Args:
        plugin: Its descriptor.
        settings: Its settings.
        changed: Called whenever `state` is another.

    Attributes:
        name: What `TRANSPORT` calls it.
        state: How it stands, in words.
        announced: Whether the instance is visible at present.
        ever_announced: Whether it ever was.
        problem: Why the last attempt failed, or empty.
        left: Why something of it may be left where it was announced, once it has ended; or empty.
    """

    def __init__(self, plugin: TransportPlugin[Any], settings: Settings, changed: Callable[[], None]) -> None:
        self.name = plugin.name
        self.state = "not announced yet"
        self.announced = False
        self.ever_announced = False
        self.problem = ""
        self.left = ""
        self._ending = False
        self._was_announced = False
        self._plugin = plugin
        self._settings = settings
        self._changed = changed
        self._transport: Transport | None = None
        self._awake = anyio.Event()
        self._since = 0.0
        self._backoff = Backoff()

    async def run(self, endpoint: Endpoint) -> None:
        """Keep `endpoint` announced until cancelled; then it is withdrawn."""
        self._ending = self._was_announced = False
        try:
            while True:
                try:
                    async with self._plugin.open(self._settings) as transport:
                        self._transport = transport
                        while True:
                            await self._rest_after(await self._announce(transport, endpoint))
                except Exception as error:  # foreign code: its failure must not stop the others
                    await self._rest_after(error)
                finally:
                    self._transport = None
        finally:
            if self._was_announced and not self.announced:
                # Gone before there was a connection again to take it off.
                self.left = self.left or self.state
            self.announced = False
            self._say(f"perhaps not withdrawn: {self.left}" if self.left else "withdrawn")

    def ending(self) -> None:
        """The announcement is about to be withdrawn."""
        self._ending = True

    def woke(self) -> None:
        """This machine has slept: look after the announcement, or try again, at once."""
        self._awake.set()
        if self._transport is not None:
            try:
                self._transport.woke()
            except Exception:  # foreign code
                logger.exception("Transport %s failed when it was told of a jump of the clock.", self.name)

    async def _announce(self, transport: Transport, endpoint: Endpoint) -> Exception:
        """Announce until that fails; return why."""
        if not isinstance(transport, Announcer):
            return TransportError("It finds instances, but announces none.")
        try:
            async with anyio.create_task_group() as group:
                await group.start(transport.announce, endpoint)
                self._since = anyio.current_time()
                self.announced = self._was_announced = self.ever_announced = True
                self.left = ""
                self._say("announced")
                logger.info("Transport %s: %s is announced.", self.name, endpoint.name)
        except Exception as error:  # foreign code, as above
            if self._ending:
                self.left = self._words(error)
                logger.warning("Transport %s: %s", self.name, self.left)
                await anyio.lowlevel.checkpoint()  # which is cancelled
            return error
        return TransportError("Announcing ended without an error.")

    async def _rest_after(self, error: Exception) -> None:
        """Tell of a failure and wait before another attempt; only a second if the clock jumps meanwhile."""
        if ours(error) is None:
            logger.error("Transport %s failed.", self.name, exc_info=_unwrapped(error))
        why = self._words(error)
        seconds = self._backoff.wait(anyio.current_time() - self._since if self.announced else 0.0)
        self.announced = False
        logger.warning("Transport %s: %s Next attempt in %.1f s.", self.name, why, seconds)
        self.problem = why
        self._say(f"not announced: {why}")
        self._awake = anyio.Event()
        await anyio.sleep(_FIRST_SECONDS)
        with anyio.move_on_after(seconds - _FIRST_SECONDS):
            await self._awake.wait()

    @staticmethod
    def _words(error: Exception) -> str:
        known = ours(error)
        return clean_line(str(known or f"It failed with {type(_unwrapped(error)).__name__}."), _SHOWN)

    def _say(self, state: str) -> None:
        self.state = state
        self._changed()


def _unwrapped(error: Exception) -> Exception:
    """Take an error that is alone out of the groups that task groups put it into."""
    if not isinstance(error, ExceptionGroup):
        return error
    inner = cast("ExceptionGroup[Exception]", error).exceptions
    return _unwrapped(inner[0]) if len(inner) == 1 else cast("Exception", error)
