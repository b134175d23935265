"""The contract for a transport: how OpenCode instances are found and reached.

A plugin implements `Transport` and describes it with a `TransportPlugin`. Finding is the plugin's work;
probing, timeouts, retries, credentials and name clashes are core's, once for all transports.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

import anyio

from opencode_mcp.errors import TransportError
from opencode_mcp.model import Endpoint, Finding, Rejection, Route
from opencode_mcp.settings import Settings

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

CONTRACT_VERSION = 1
"""The version of this contract. A plugin made for another one is refused with a message."""

LOOPBACK = "127.0.0.1"
_LONGEST_LOOK = 60.0

Publish = Callable[[Sequence[Endpoint]], None]
"""Takes the complete current set of endpoints, each time. It returns at once and never raises.

Of several with one id the first counts, and of more than 5,000 endpoints the first 5,000; users are told so.
"""


class Transport(ABC):
    """Finds OpenCode servers and opens routes to them.

    Only `discover` must be written. Every method runs in core's event loop: what blocks goes to a thread.

    Attributes:
        rescan_seconds: How long the default `watch` waits between two looks. Core sets it from
            `DISCOVERY_INTERVAL_MS` before it calls `watch`; a transport with a `watch` of its own
            looks again that often as a safety net.
        forget_after_seconds: After how long without one success core calls `forget`; None for never.
        invitation: A sentence or two on how to put an instance on this transport, for an empty list.
        vouching: A sentence on how the user makes it vouch for an instance, for one that wants a password.
    """

    rescan_seconds: float = 30.0
    forget_after_seconds: float | None = None
    invitation: str = ""
    vouching: str = ""

    @abstractmethod
    async def discover(self) -> Sequence[Endpoint]:
        """Look once and return the whole current set.

        Raises:
            TransportError: If the set cannot be learnt now; users read its words. Of any other exception they
                are told the type only, since its words might hold a secret. Never return an empty set
                instead: it would mean that every instance is gone.
        """

    async def watch(self, publish: Publish) -> None:
        """Publish the whole set, now and after every change, until cancelled.

        The default calls `discover` every `rescan_seconds`, and gives it 60 s. An exception ends the watch;
        core reports the transport as degraded, keeps the last set, opens the transport anew after a while,
        and calls `watch` again.

        Raises:
            TransportError: `discover` has not returned in time.
        """
        while True:
            found: Sequence[Endpoint] = ()
            with anyio.move_on_after(_LONGEST_LOOK) as look:
                found = await self.discover()
            if look.cancelled_caught:
                raise TransportError(f"Its discover() has not returned within {_LONGEST_LOOK:g} s.")
            publish(found)
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

    def woke(self) -> None:
        """Take note that this machine has slept, or that its clock was set; the default does nothing.

        Connections may be dead without anybody having noticed, so check at once what is announced.
        """

    async def inspect(self, endpoint: Endpoint) -> Sequence[Finding]:
        """Look from outside at what is announced of `endpoint`, for `opencode-connected status`.

        Another process announces it. The default finds nothing to tell.

        Raises:
            TransportError: If that cannot be found out now.
        """
        return ()

    async def withdraw(self, endpoint: Endpoint) -> Sequence[str]:
        """Remove what a process that was killed left behind of `endpoint`, and return what that was.

        Only what is recognised by the id of `endpoint`. The default leaves nothing behind.

        Raises:
            TransportError: If that cannot be done now.
        """
        return ()

    def registry(self) -> AbstractAsyncContextManager["Transport"]:
        """Open the place where `announce` announces, as a transport that finds who is announced there.

        That may be elsewhere than where this transport looks, for example on a relay. The default is
        this transport itself.

        Raises:
            TransportError: On entering, if it cannot be reached now.
        """
        return nullcontext(self)


@asynccontextmanager
async def _direct(endpoint: Endpoint) -> AsyncGenerator[Route]:
    yield Route(base_url=endpoint.url)


@runtime_checkable
class Announcer(Protocol):
    """The instance's side, a capability that a `Transport` may have as well: put a server on the map."""

    async def announce(self, endpoint: Endpoint, *, task_status: "TaskStatus[None]") -> None:
        """Keep `endpoint` visible until cancelled, and withdraw it on the way out, within 2 seconds.

        Calls `task_status.started()` once it is visible to others. Its labels may hold `version`,
        OpenCode's, and `auth`: `basic` if it wants a password, else `none`.

        Raises:
            TransportError: If it cannot be announced, or no longer is. Core reports that and calls it
                again, with the same endpoint: after a second at first, ever more rarely, at most after
                60 s. Also while it is cancelled, if it could not withdraw.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Announcing:
    """What a transport needs for announcing, and what people are told about it.

    Attributes:
        listen: The address an OpenCode must listen on, `127.0.0.1` if only this machine needs to reach
            it. Anything wider makes a password mandatory.
        facts: Lines for the banner, for example `{"Registry": "/tmp/opencode-relay"}`; never a secret.
        place: Tells one place of announcing from another, for example two registries. What was announced
            at one can only be looked at and withdrawn with settings that mean the same. Never a secret.
        reachable_by: Who else can reach the instance this way, for example `everybody with an account on
            the relay`; people are told so if it asks for no password.
    """

    listen: str = LOOPBACK
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    place: str = ""
    reachable_by: str = ""


S = TypeVar("S", bound=Settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransportPlugin(Generic[S]):
    """Describes a transport to core; returned by the hook `opencode_mcp_transports`.

    Attributes:
        name: What `TRANSPORT` says; the same as the entry point's name.
        summary: One line for `opencode-mcp transports`.
        settings: The plugin's environment variables.
        open: Makes the transport from its settings and closes it again. Must not wait for the network.
        announcing: What announcing takes with given settings, if the transport is an `Announcer`. It is
            asked before OpenCode is started, so it must be quick; it may raise `TransportError`.
        contract: The version of the contract it was written for.
        package: The distribution that brings it, with its version; core fills it in, for its messages.
    """

    name: str
    summary: str
    settings: type[S]
    open: Callable[[S], AbstractAsyncContextManager[Transport]]
    announcing: Callable[[S], Announcing] | None = None
    contract: int = CONTRACT_VERSION
    package: str = ""
