"""What is to be announced, and how: what `start` makes out for `supervise`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opencode_mcp.connect.place import Place
from opencode_mcp.connect.presence import Presence
from opencode_mcp.settings import Settings
from opencode_mcp.transport import TransportPlugin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be announced, and how.

    Attributes:
        place: The name, held, and what the transports are told; None if another process announces the same
            at present.
        take_place: Takes it then, once it answers, if that other process is gone; it blocks.
        presence: Where it answers.
        transports: The selected ones, with their settings.
        places: Where each of them announces, in its own words.
        log: Where the log is.
        comes_and_goes: Whether it was not started here, so that it may go and be back.
        exposed: Whether the network can reach what was started here.
        interactive: Whether a person uses the OpenCode that runs here, so that it goes on if its port
            does not answer, and decides itself what a Ctrl-C means.
    """

    place: Place | None
    take_place: Callable[[], Place | None] = lambda: None
    presence: Presence
    transports: Sequence[tuple[TransportPlugin[Any], Settings]]
    places: Mapping[str, str]
    log: Path
    comes_and_goes: bool
    exposed: bool
    interactive: bool
