"""Logging as a test found it."""

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress


@contextmanager
def logging_as_before() -> Generator[None]:
    """Let a test set logging up for the whole process, and undo it."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    quieted = logging.getLogger("httpx2")
    quiet = quieted.level
    root.handlers = []  # basicConfig(force=True) closes those it finds
    yield
    for handler in root.handlers:
        with suppress(OSError):  # it tries to write what could not be written
            handler.close()
    logging.captureWarnings(capture=False)
    root.handlers, logging.raiseExceptions = handlers, raising
    root.setLevel(level)
    quieted.setLevel(quiet)
