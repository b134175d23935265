"""What a transport claims of itself in its tests, and how long the tests wait."""


class Claims:
    """What a subclass of `TransportSuite` says of its transport; each has a default."""

    @property
    def watches_natively(self) -> bool:
        """Whether `watch` learns of changes by itself, without looking again every `rescan_seconds`."""
        return False

    @property
    def announces(self) -> bool:
        """Whether the transport announces instances as well: is an `Announcer`."""
        return False

    @property
    def gone_within_seconds(self) -> float:
        """How long after its cancellation others find what was announced: 2 s, and time to notice it."""
        return 5.0

    @property
    def expires(self) -> bool:
        """Whether what is announced goes by itself once its announcer was killed."""
        return False

    @property
    def expires_within_seconds(self) -> float:
        """After how long it is gone at the latest, for a transport that `expires`."""
        return 30.0

    @property
    def patience_seconds(self) -> float:
        """How long to wait for what is to happen, before a test fails."""
        return 10.0

    @property
    def rescan_seconds(self) -> float:
        """How often the transport is told to look again; core says 30 s by default."""
        return 0.1
