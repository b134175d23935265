"""What an examination found, as values: steps along a path, each with its outcome and the mend."""

import dataclasses
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from opencode_mcp.model import Rejection

SCHEMA = 1
"""The version of the JSON; it changes when a field is removed, or means something else."""


class State(StrEnum):
    """How a step went."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could; or there was nothing to find."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """It was not taken: one before it failed, or somebody wants it so."""


_SEVERITY = (State.SKIPPED, State.OK, State.WARNING, State.FAILED)


def worst(states: Iterable[State]) -> State:
    """Return the most serious of `states`; skipped if there are none."""
    return max(states, key=_SEVERITY.index, default=State.SKIPPED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a path.

    Attributes:
        name: What it is called.
        state: How it went.
        detail: What was found, one line; may be empty.
        fix: What to do about it, one line, with a command where there is one; empty if nothing is to be done.
        milliseconds: How long it took; None if it was not taken.
    """

    name: str
    state: State
    detail: str = ""
    fix: str = ""
    milliseconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """An environment variable that is read.

    Attributes:
        variable: Its name.
        value: What is in force; of a secret only `set` or `not set`.
        given: Whether the environment sets it; else it is the default.
        secret: Whether it holds a secret.
    """

    variable: str
    value: str
    given: bool
    secret: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointReport:
    """What was found out about one endpoint.

    Attributes:
        name: What its transport calls it.
        id: Its id within the transport.
        url: Where it is said to be.
        hostname: Its machine, as far as its transport knows.
        vouched: Whether its transport vouches for it.
        version: OpenCode's version; empty if it was not learnt.
        state: The most serious state of its steps; skipped if a plugin's policy keeps it out.
        first_event_ms: How long the first event took, from asking for the stream; None if there was none.
        round_trip_ms: How long a request takes, the median of several; None if that was not tried.
        steps: The path to it, in order.
    """

    name: str
    id: str
    url: str
    hostname: str
    vouched: bool
    version: str
    state: State
    first_event_ms: float | None
    round_trip_ms: float | None
    steps: Sequence[Step]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransportReport:
    """What was found out about one transport.

    Attributes:
        name: What `TRANSPORT` calls it.
        distribution: The package that brings it, or `?`.
        version: That package's version, or `?`.
        state: The most serious state of its own steps and of its endpoints.
        steps: From the installed package to what it finds, in order.
        settings: Its environment variables.
        rejected: What it found and left out, with reasons.
        endpoints: What it publishes.
    """

    name: str
    distribution: str
    version: str
    state: State
    steps: Sequence[Step]
    settings: Sequence[Setting]
    rejected: Sequence[Rejection]
    endpoints: Sequence[EndpointReport]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """Facts that often explain trouble.

    Attributes:
        python: Python's version.
        platform: The operating system and the processor.
        packages: The versions of the installed packages that matter, by name.
        proxies: The variables that name proxies; they are not used for instances.
        open_files: The soft limit of open files; None if there is none, or it is not known.
        open_files_most: The hard limit, alike.
    """

    python: str
    platform: str
    packages: dict[str, str]
    proxies: Sequence[str]
    open_files: int | None
    open_files_most: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that an examination found.

    Attributes:
        schema: The version of this structure, as JSON.
        state: The most serious state of anything in it.
        environment: Facts about this machine.
        steps: What concerns all transports: core's settings, and the plugins with instance hooks.
        settings: Core's environment variables.
        transports: The selected transports, in the order of `TRANSPORT`.
    """

    schema: int = SCHEMA
    state: State
    environment: Environment
    steps: Sequence[Step]
    settings: Sequence[Setting]
    transports: Sequence[TransportReport]

    @property
    def endpoints(self) -> Sequence[EndpointReport]:
        """Those of all transports."""
        return [endpoint for transport in self.transports for endpoint in transport.endpoints]

    def as_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        return dataclasses.asdict(self)
