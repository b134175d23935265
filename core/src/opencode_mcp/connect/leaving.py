"""The ways out: signals, the end of OpenCode, the end of whoever started us; and the bound on all of them."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import anyio

_BOUND_SECONDS = 2.8
_AT_ONCE_SECONDS = 2.0
_LOOK_SECONDS = 1.0

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


def is_ignored(number: int) -> bool:
    """Whether whoever started us wants this signal ignored, as `nohup` does with SIGHUP."""
    return signal.getsignal(number) is signal.SIG_IGN


class Early:
    """Takes note of signals until the event loop listens to them."""

    def __init__(self) -> None:
        self.numbers = [number for number in ENDING if not is_ignored(number)]
        self.received: list[int] = []
        for number in self.numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)


def bound_the_end(last: Callable[[], int]) -> None:
    """End this process in a few seconds, whatever still hangs then, with the code that `last` returns."""

    def strike() -> None:
        code = 1
        try:
            code = last()
        finally:
            os._exit(code if code >= 0 else 128 - code)

    timer = threading.Timer(_BOUND_SECONDS, strike)
    timer.daemon = True
    timer.start()


async def parent_gone() -> None:
    """Return when the process that started us has ended, unless that was to be expected.

    It was if we lead a session (`setsid`), if SIGHUP is ignored (`nohup`), or if it ended at once.
    """
    parent = os.getppid()
    if parent <= 1 or os.getsid(0) == os.getpid() or is_ignored(signal.SIGHUP):
        await anyio.sleep_forever()
    began = anyio.current_time()
    await _ended(parent)
    if anyio.current_time() - began < _AT_ONCE_SECONDS:
        await anyio.sleep_forever()


async def _ended(parent: int) -> None:
    if sys.platform == "linux":
        try:
            fd = os.pidfd_open(parent)
        except OSError:  # gone already, or a kernel before 5.3
            pass
        else:
            try:
                await anyio.wait_readable(fd)
            finally:
                os.close(fd)
            return
    while os.getppid() == parent:  # noqa: ASYNC110 - there is no event for it
        await anyio.sleep(_LOOK_SECONDS)


def end_as(code: int) -> NoReturn:
    """End this process the way OpenCode ended, so that a shell sees no difference.

    Args:
        code: As `subprocess.Popen.returncode`: negative for a signal.
    """
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code if code >= 0 else 128 - code)
