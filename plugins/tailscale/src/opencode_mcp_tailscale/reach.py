"""How a machine of the tailnet is reached: over the network interface, or through tailscaled."""

from collections.abc import Callable, Mapping, Sequence

import httpcore2
import httpx2

from opencode_mcp import Route
from opencode_mcp_tailscale.choosing import Candidate
from opencode_mcp_tailscale.localapi import Dialling, LocalApi, RefusedError
from opencode_mcp_tailscale.own import Mine, is_here
from opencode_mcp_tailscale.status import Status
from opencode_mcp_tailscale.through import Backend, Once, Through, network_backend

LOOPBACK = "127.0.0.1"
_KEEP_SECONDS = 2.0


class Reach(Backend):
    """The way to the machines; as a network backend it opens connections to their addresses.

    Args:
        api: The tailscaled.

    Attributes:
        direct: Whether this machine has an interface on the tailnet, so that its routes lead there.
        elsewhere: Whether tailscaled has an interface in another network namespace: its loopback is not ours.
    """

    def __init__(self, api: LocalApi) -> None:
        self._dialling = Dialling(api)
        self._interface = Interface()
        self._loopback = network_backend()
        self._mine = Mine()
        self._problem = ""
        self.direct = False
        self.elsewhere = False

    def take(self, status: Status) -> None:
        """Find out which way it is; none while Tailscale does not run.

        A container, or another network namespace, may have tailscaled's socket and not its interface. One of
        its addresses may be somebody else's there, hardly both.
        """
        addresses = status.own.addresses if status.own else ()
        here = [is_here(one) for one in addresses]
        self._problem = status.problem
        self._interface.own = [str(one) for one in addresses]
        self.direct = status.kernel and all(here) and bool(here)
        self.elsewhere = status.kernel and bool(here) and not any(here)

    async def connect(self, candidate: Candidate, port: int, timeout: float) -> httpcore2.AsyncNetworkStream:
        """Open a connection.

        Raises:
            RefusedError: The machine accepts none at this port.
            httpcore2.ConnectError: It cannot be reached, for a reason that may lie here.
            httpcore2.ConnectTimeout: Nobody answers.
        """
        backend = self._loopback if candidate.own else self
        try:
            return await backend.connect_tcp(_host(candidate), port, timeout)
        except httpcore2.ConnectError as error:
            if _refused(error):
                raise RefusedError("It accepts no connections there.") from None
            raise

    async def open(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection to an address of the tailnet, on the way that is right at present.

        Raises:
            httpcore2.ConnectError: It is refused, or Tailscale does not run.
            httpcore2.ConnectTimeout: Nobody answers.
        """
        if self._problem:  # an old tailscaled would connect by whatever way there is
            raise httpcore2.ConnectError(self._problem)
        backend = self._interface if self.direct else self._dialling
        return await backend.connect_tcp(host, port, timeout)

    def route(self, url: str, *, own: bool, vouched: bool, host: Callable[[], str]) -> Route:
        """Return the route to an instance.

        Args:
            url: Where it is.
            own: Whether it is on this machine.
            vouched: Whether it may get the password, so that somebody else there must not.
            host: Returns what its machine is called at present, with the port.
        """
        if not own:
            return Route(base_url=url, transport=Through(self, keep_seconds=_KEEP_SECONDS, host=host))
        mine = Through(self._mine, keep_seconds=_KEEP_SECONDS) if vouched else None
        return Route(base_url=url, transport=mine)


class Interface(Backend):
    """Opens connections over the network interface that this machine has on the tailnet, and over no other.

    The addresses of a tailnet are also those that internet providers use behind translation of their own:
    without Tailscale's interface, somebody else there might answer.

    Attributes:
        own: The addresses of this machine on the tailnet.
    """

    def __init__(self) -> None:
        self.own: Sequence[str] = ()
        self._backend = network_backend()

    async def open(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection; see `Backend`.

        Raises:
            httpcore2.ConnectError: It is refused, or this machine has no such interface at present.
            httpcore2.ConnectTimeout: Nobody answers.
        """
        own = next((one for one in self.own if (":" in one) == (":" in host)), None)
        if own is None:
            raise httpcore2.ConnectError("This machine has no address on the tailnet at present.")
        return await self._backend.connect_tcp(host, port, timeout, own)


def over(stream: httpcore2.AsyncNetworkStream) -> httpx2.AsyncBaseTransport:
    """Return a transport that uses a connection that is open."""
    return Through(Once(stream), keep_seconds=_KEEP_SECONDS)


def origin(candidate: Candidate, port: int) -> str:
    """Return `http://address:port` of a machine."""
    host = _host(candidate)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def host_header(candidate: Candidate, port: int) -> Mapping[str, str]:
    """Return the Host header by which a machine knows itself: tailscaled serves names, not addresses."""
    name = candidate.machine.name
    return {} if candidate.own or not name else {"Host": f"{name}:{port}"}


def _host(candidate: Candidate) -> str:
    return LOOPBACK if candidate.own else str(candidate.machine.addresses[0])


def _refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, RefusedError | ConnectionRefusedError | ConnectionResetError):
            return True
        error = error.__cause__
    return False
