"""The contract for a transport: how OpenCode instances are found and reached.

A plugin implements `Transport` and describes it with a `TransportPlugin`. Finding is the plugin's work;
probing, timeouts, retries, credentials and name clashes are core's, once for all transports.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

import anyio

from opencode_mcp.model import Endpoint, Rejection, Route
from opencode_mcp.settings import Settings

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

CONTRACT_VERSION = 1
"""The version of this contract. A plugin made for another one is refused with a message."""

Publish = Callable[[Sequence[Endpoint]], None]
"""Takes the complete current set of endpoints, each time. It returns at once and never raises."""


class Transport(ABC):
    """Finds OpenCode servers and opens routes to them.

    Only `discover` must be written. Every method runs in core's event loop: what blocks goes to a thread.

    Attributes:
        rescan_seconds: How long the default `watch` waits between two looks. Core sets it from
            `DISCOVERY_INTERVAL_MS` before it calls `watch`; a transport with a `watch` of its own
            looks again that often as a safety net.
        forget_after_seconds: After how long without one success core calls `forget`; None for never.
        invitation: A sentence or two on how to put an instance on this transport, for an empty list.
    """

    rescan_seconds: float = 30.0
    forget_after_seconds: float | None = None
    invitation: str = ""

    @abstractmethod
    async def discover(self) -> Sequence[Endpoint]:
        """Look once and return the whole current set.

        Raises:
            Exception: If the set cannot be learnt now. Never return an empty set for that: it would
                mean that every instance is gone.
        """

    async def watch(self, publish: Publish) -> None:
        """Publish the whole set, now and after every change, until cancelled.

        The default calls `discover` every `rescan_seconds`. An exception ends the watch; core reports
        the transport as degraded, keeps the last set, and calls `watch` again after a while.
        """
        while True:
            publish(await self.discover())
            await anyio.sleep(self.rescan_seconds)

    def connect(self, endpoint: Endpoint) -> AbstractAsyncContextManager[Route]:
        """Open a route to `endpoint` for as long as the context is entered.

        The default goes straight to `endpoint.url`.

        Raises:
            TransportError: On entering, if there is no route now.
        """
        return _direct(endpoint)

    async def forget(self, endpoint: Endpoint) -> None:
        """Take note that `endpoint` is gone for good; the default does nothing.

        Called once `forget_after_seconds` have passed without a single success. A transport that keeps
        records removes the one behind `endpoint`, provided that it is unchanged since it was published.
        """

    def rejected(self) -> Sequence[Rejection]:
        """What the last look found and left out, with reasons; the default leaves nothing out."""
        return ()


@asynccontextmanager
async def _direct(endpoint: Endpoint) -> AsyncGenerator[Route]:
    yield Route(base_url=endpoint.url)


@runtime_checkable
class Announcer(Protocol):
    """The instance's side, a capability that a `Transport` may have as well: put a server on the map."""

    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        """Keep `endpoint` visible until cancelled, and withdraw it on the way out.

        Calls `task_status.started()` once it is visible to others.

        Raises:
            TransportError: If it cannot be announced.
        """
        ...


S = TypeVar("S", bound=Settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransportPlugin(Generic[S]):
    """Describes a transport to core; returned by the hook `opencode_mcp_transports`.

    Attributes:
        name: What `TRANSPORT` says; the same as the entry point's name.
        summary: One line for `opencode-mcp transports`.
        settings: The plugin's environment variables.
        open: Makes the transport from its settings and closes it again. Must not wait for the network.
        contract: The version of the contract it was written for.
    """

    name: str
    summary: str
    settings: type[S]
    open: Callable[[S], AbstractAsyncContextManager[Transport]]
    contract: int = CONTRACT_VERSION
