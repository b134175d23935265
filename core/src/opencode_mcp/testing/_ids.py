"""Ids as OpenCode makes them: sortable by time, newest last; those of sessions newest first."""

import secrets
import string
import time

_ALPHABET = string.digits + string.ascii_letters
_BITS = (1 << 48) - 1


class Ids:
    """Makes ids that never repeat and keep their order within a millisecond."""

    def __init__(self) -> None:
        self._last = 0

    def new(self, prefix: str) -> str:
        """Return an id such as `msg_2045fd264001bpjXP0IKkd1GP7`.

        Args:
            prefix: `ses`, `msg`, `prt`, `evt`, `per` or `que`.
        """
        self._last = max(self._last + 1, now_ms() * 0x1000 + 1)
        value = ~self._last if prefix == "ses" else self._last
        tail = "".join(secrets.choice(_ALPHABET) for _ in range(14))
        return f"{prefix}_{value & _BITS:012x}{tail}"


def now_ms() -> int:
    """Return the milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
