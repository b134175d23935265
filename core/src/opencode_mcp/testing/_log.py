"""What is logged meanwhile, for tests of what must not be."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager


@contextmanager
def logged() -> Generator[Sequence[str]]:
    """Collect what is logged meanwhile, from DEBUG on."""
    lines: list[str] = []
    handler = _Lines(lines)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))
