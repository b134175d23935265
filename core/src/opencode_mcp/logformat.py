"""How log lines are written: libraries log names from the network as they came, so each line is made safe."""

import logging

from opencode_mcp.text import clean_line, clean_text

_MOST = 4_000
"""Characters of a message."""
_MOST_TRACE = 16_000
"""Characters of a traceback; of a longer one the middle is left out, since the end says what happened."""


class SafeFormatter(logging.Formatter):
    """A formatter whose lines steer no terminal, hide nothing and cannot be mistaken for one another.

    A message is one line of bounded length. The lines of a traceback follow it, indented: so each line that
    is not is a message of its own, whatever an error says.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format `record`."""
        message, feed, trace = super().format(record).partition("\n")
        if len(trace) > _MOST_TRACE:
            trace = f"{trace[: _MOST_TRACE // 2]}\n…\n{trace[-_MOST_TRACE // 2 :]}"
        return message + clean_text(_encodable(feed + trace)).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Format what stands before a traceback."""
        return clean_line(_encodable(super().formatMessage(record)), _MOST)


def _encodable(text: str) -> str:
    """Show lone surrogates, as in names of files that are no UTF-8, by their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
