"""How long each step of an examination may take, in one place."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """The bounds of an examination, in seconds.

    Attributes:
        route: How long a transport may take to open, to close, and to open a route.
        look: How long a transport may take until it publishes for the first time.
        complete: How long it may then take until it has found all there is.
        blocked: After how long a transport is given up whose code blocks, and so cannot be interrupted.
        stalled: After how long without any progress one is given up that ignores being cancelled; more than
            all other steps may take.
    """

    route: float = 10.0
    look: float = 15.0
    complete: float = 12.0
    blocked: float = 15.0
    stalled: float = 60.0
