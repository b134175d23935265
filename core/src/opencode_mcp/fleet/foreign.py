"""Keeps a cancellation that nobody asked for from ending more than the plugin's code that lets it out."""

import math
from collections.abc import Generator
from contextlib import contextmanager

import anyio


class StrayCancellationError(Exception):
    """Foreign code let out a cancellation of its own, as by waiting for a task that it had cancelled."""


@contextmanager
def contained() -> Generator[None]:
    """Make an error of a cancellation that nobody asked for: a task group would take it for its own end.

    Raises:
        StrayCancellationError: Instead of it.
    """
    try:
        yield
    except anyio.get_cancelled_exc_class() as error:
        if anyio.current_effective_deadline() == -math.inf:  # somebody did ask for it
            raise
        raise StrayCancellationError("It was cancelled, and nobody asked for that.") from error
