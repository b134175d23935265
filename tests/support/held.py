"""Foreign code that gets stuck, for as long as a test wants and no longer, and the threads it runs in."""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

_LONGEST_SECONDS = 60.0


class Held:
    """Where code stays that calls it, until the test lets it go."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._free = threading.Event()

    def __call__(self) -> None:
        self._entered.set()
        self._free.wait(_LONGEST_SECONDS)

    @property
    def entered(self) -> bool:
        """Whether somebody has come here."""
        return self._entered.is_set()

    def release(self) -> None:
        """Let everybody go, now and from now on."""
        self._free.set()


@contextmanager
def held() -> Generator[Held]:
    """Hold code up at most until the block ends, so that no thread is left behind."""
    one = Held()
    try:
        yield one
    finally:
        one.release()


def hook_threads() -> Callable[[], Sequence[str]]:
    """Return what says which threads of hooks are there that were not there yet."""
    before = set(threading.enumerate())

    def new() -> Sequence[str]:
        since = [one.name for one in threading.enumerate() if one not in before]
        return [name for name in since if name.startswith(("asks ", "tells "))]

    return new
