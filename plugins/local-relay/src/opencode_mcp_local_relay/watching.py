"""Notices that something in a directory changed: by the file system's events, or by looking."""

import logging
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from opencode_mcp import clean_line

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_POLL_SECONDS = 0.75
_STEP_MS = 50
"""How often the thread that waits for events wakes up: 20 ms costs twice the CPU and gains nothing."""


class DirectoryWatch:
    """Calls `changed` after every change in a directory, which need not exist yet and may be replaced.

    It may call it without a change as well; what it calls finds that out cheaply.

    Args:
        path: The directory.
        changed: What to call.
        insists: Whether to call it again and again while there is no directory, since one may have come and
            gone unseen.
    """

    def __init__(self, path: Path, changed: Callable[[], None], *, insists: bool = True) -> None:
        self._path = path
        self._insists = insists
        self._changed = changed
        self._gives_events = True
        self._heard = False

    async def run(self) -> None:
        """Watch until cancelled."""
        missing = False
        while True:
            directory = await _look(self._path)
            if self._insists or not (missing and directory is None):
                self._changed()
            missing = directory is None
            if directory is None:
                await anyio.sleep(_LOOK_SECONDS)
            elif self._gives_events:
                await self._follow(directory)
            else:
                while _same(directory, await _look(self._path)):
                    self._changed()
                    await anyio.sleep(_POLL_SECONDS)

    async def _follow(self, directory: "_Identity") -> None:
        """Listen to events until the directory is another one, or gives none."""
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, stop)
            try:
                await self._doubt(directory)
            finally:
                # Cancelling alone would wait for the thread, which wakes up by events only.
                stop.set()

    async def _listen(self, stop: anyio.Event) -> None:
        from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType] - its types name trio, if installed

        try:
            async for _ in awatch(
                self._path,
                watch_filter=None,
                debounce=4 * _STEP_MS,
                step=_STEP_MS,
                rust_timeout=60_000,
                stop_event=stop,
                recursive=False,
            ):
                self._heard = True
                self._changed()
        except FileNotFoundError:
            return  # just removed, which the other task notices
        except (OSError, RuntimeError, ExceptionGroup) as error:
            self._poll(str(error.exceptions[0] if isinstance(error, ExceptionGroup) else error))

    async def _doubt(self, directory: "_Identity") -> None:
        """Look now and then: a replaced directory gives no events, and a network file system none at all."""
        known: _Identity | None = None  # what changes before the events begin is found by the first look
        silent = False
        while self._gives_events:
            self._heard = False
            await anyio.sleep(_LOOK_SECONDS)
            now = await _look(self._path)
            if not _same(directory, now):
                return
            if silent and not self._heard:
                self._poll("a change was not reported")
                return
            unheard = now != known and not self._heard
            if unheard:
                self._changed()
            silent = unheard and known is not None
            known = now

    def _poll(self, why: str) -> None:
        self._gives_events = False
        logger.warning(
            "The file system gives no events for %s (%s); it is looked at every %s s instead.",
            clean_line(str(self._path), 1000),
            clean_line(why),
            _POLL_SECONDS,
        )


_Identity = tuple[int, int, int]


async def _look(path: Path) -> _Identity | None:
    # Given up when cancelled, since a dead network file system may never answer.
    return await anyio.to_thread.run_sync(_identity, path, abandon_on_cancel=True)


def _identity(path: Path) -> _Identity | None:
    """Device, inode and time of the last change of its entries; None if there is none to be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _same(one: _Identity, other: _Identity | None) -> bool:
    return other is not None and one[:2] == other[:2]
