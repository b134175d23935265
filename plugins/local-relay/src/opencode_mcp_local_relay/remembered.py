"""What is known of announcing an instance from one call to the next."""

import dataclasses


@dataclasses.dataclass
class Remembered:
    """What is kept of announcing an instance from one call to the next.

    Attributes:
        name: Of its registration file, the last one.
        stands: Whether that may be on the relay at present.
        why: Why it could not be withdrawn from there.
        told_exposed: Whether it was told that the relay opens its port to the network.
        refused: Why it must not be announced, and until when, by the clock of the event loop.
    """

    name: str | None = None
    stands: bool = False
    why: str = ""
    told_exposed: bool = False
    refused: tuple[str, float] = ("", 0.0)
