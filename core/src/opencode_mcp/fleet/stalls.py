"""Names the plugin that holds up the event loop: core can bound what waits, not what blocks."""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import anyio

from opencode_mcp.transport import TransportPlugin

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_BEATS_MISSED = 5
_LOGGED_AGAIN_SECONDS = 3600.0


class Stalls:
    """Looks from a thread whether the event loop is still turning, and into whose code it is stuck.

    Args:
        plugins: The transports that run on it.
    """

    def __init__(self, plugins: Iterable[TransportPlugin[Any]]) -> None:
        self._packages: Mapping[str, str] = {
            _root(getattr(one.open, "__module__", "")): one.package or one.name for one in plugins
        }
        self._beats = 0
        self._over = threading.Event()
        self._logged: dict[str, float] = {}

    async def watch(self) -> None:
        """Watch the event loop that this runs in, until cancelled."""
        thread = threading.Thread(
            target=self._look, args=(threading.get_ident(),), name="watches the event loop", daemon=True
        )
        thread.start()
        try:
            while True:
                self._beats += 1
                await anyio.sleep(_BEAT_SECONDS)
        finally:
            self._over.set()

    def _look(self, watched: int) -> None:
        seen, missed = 0, 0
        while not self._over.wait(_BEAT_SECONDS):
            # Counted, not measured: a machine that slept, or a process that was stopped, has missed none.
            missed = missed + 1 if self._beats == seen else 0
            seen = self._beats
            # Once for each time: as it ends, the next in the row would be blamed.
            if missed == _BEATS_MISSED and (frame := sys._current_frames().get(watched)) is not None:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - it has no other name
                self._tell(frame)

    def _tell(self, frame: FrameType) -> None:
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        who = ""
        while frame.f_back is not None and not who:
            root = _root(frame.f_globals.get("__name__", ""))
            if root in self._packages:
                who = self._packages[root]
                where = f"{frame.f_code.co_filename}:{frame.f_lineno}, {frame.f_code.co_name}"
            frame = frame.f_back
        now, before = time.monotonic(), self._logged.get(where)
        if before is None or now - before > _LOGGED_AGAIN_SECONDS:
            self._logged[where] = now
            seconds = _BEATS_MISSED * _BEAT_SECONDS
            by = f"Transport {who} holds it up: update that package" if who else "It is held up"
            logger.error("Nothing has moved for %g s. %s (%s).", seconds, by, where)


def _root(module: str) -> str:
    return module.partition(".")[0]
