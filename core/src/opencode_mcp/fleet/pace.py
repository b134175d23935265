"""How often the fleet looks, and how patient it is."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """The waits of the fleet, in seconds.

    Attributes:
        probe: How long a probe may take, as a whole.
        route: How long a transport may take to open a route.
        deaf: How long after its first event a stream may still miss some. `/global/event` of OpenCode
            1.18.33 was seen to lose events for up to 160 ms.
        restock: How long before a snapshot is taken again, after an event that is not understood without.
        silence: After how much silence on its stream an instance is probed. OpenCode 1.18 sends a
            heartbeat every 10 s, old versions every 30 s.
        mute: After how much silence a stream is given up, though the instance answers probes.
        silence_of_2, mute_of_2: The same for OpenCode 2.x, which sends a comment every 15 s.
        poll: How often an instance without a usable stream is asked.
        restream: How long it is polled before a stream is tried again.
        retries: The waits after the first, second, … failure; the last one stays.
        stable: How long a connection must have lasted for the waits to start afresh.
        failures_to_offline: After how many failures in a row an instance is called offline.
    """

    probe: float = 3.0
    route: float = 10.0
    deaf: float = 0.3
    restock: float = 2.0
    silence: float = 12.0
    mute: float = 40.0
    silence_of_2: float = 18.0
    mute_of_2: float = 45.0
    poll: float = 2.0
    restream: float = 60.0
    retries: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
    stable: float = 5.0
    failures_to_offline: int = 3
