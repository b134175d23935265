"""Notices that this machine has slept, or that its clock was set."""

import time
from collections.abc import Callable

import anyio

_LOOK_SECONDS = 5.0
_JUMP_SECONDS = 5.0


async def watch_clock(
    jumped: Callable[[float], None],
    *,
    wall: Callable[[], float] = time.time,
    look_seconds: float = _LOOK_SECONDS,
) -> None:
    """Call `jumped` with the seconds by which the wall clock went ahead of the monotonic one, or back.

    On Linux and macOS the monotonic clock stands still while the machine sleeps.
    """
    offset = wall() - time.monotonic()
    while True:
        await anyio.sleep(look_seconds)
        now = wall() - time.monotonic()
        if abs(now - offset) > _JUMP_SECONDS:
            jumped(now - offset)
        offset = now
