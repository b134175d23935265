"""One advertised service: what is known of it."""

import dataclasses
import time
from enum import IntEnum

from opencode_mcp_mdns.advert import Advert, label

_CONTRADICTED_SECONDS = 4.0
"""It is asked again 0.2 and 1.2 s after a goodbye."""


class Worth(IntEnum):
    """What a service is worth when there are too many, best first: a better one displaces a worse."""

    LISTED = 0
    """An instance of it is listed."""
    LIKELY = 1
    """It proved the secret, or is at an address where another instance answers."""
    UNKNOWN = 2
    NOTHING = 3
    """It cannot be used, or nobody answers."""


@dataclasses.dataclass(eq=False)
class Service:
    """An advertised service that may be an instance.

    Attributes:
        type: Its type, a DNS name.
        name: Its whole name, as it came: not safe to show.
        advert: What it says; None as long as that is unknown or of no use.
        problem: Why there is no advert, as a clause about `it`; or empty.
        resolved: Whether it was tried to learn what it says.
        gone_at: When it said goodbye, or had not been heard of for too long; None if neither.
        stale: Whether nobody answers for it any more.
    """

    type: str
    name: str
    advert: Advert | None = None
    problem: str = ""
    resolved: bool = False
    gone_at: float | None = None
    stale: bool = False

    @property
    def gone(self) -> bool:
        """Whether it said goodbye, which may have been somebody else."""
        return self.gone_at is not None

    @property
    def abandoned(self) -> bool:
        """Whether nobody contradicts that it is gone, though there was time to."""
        late = self.gone_at is not None and time.monotonic() - self.gone_at > _CONTRADICTED_SECONDS
        return late or self.stale

    @property
    def key(self) -> str:
        """Its name for comparing: case does not count in DNS."""
        return self.name.lower()

    @property
    def label(self) -> str:
        """Its own part of its name, as safe text."""
        return label(self.type, self.name)
