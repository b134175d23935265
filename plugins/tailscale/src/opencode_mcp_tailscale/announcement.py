"""Announces an instance of this machine on the tailnet, together with the other announcers of the machine."""

import hashlib
import ipaddress
import logging
import random
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import httpx2

from opencode_mcp import Endpoint, Finding, TransportError, clean_line
from opencode_mcp_tailscale import serving
from opencode_mcp_tailscale.bus import Bus
from opencode_mcp_tailscale.index import Entry
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.serving import Member
from opencode_mcp_tailscale.settings import TailscaleSettings
from opencode_mcp_tailscale.sharing import ImpossibleError, Lasting, Sharing, is_final
from opencode_mcp_tailscale.status import login_key
from opencode_mcp_tailscale.telling import Teller

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.5
_TRYING_SECONDS = 10.0
"""For so long what is announced stays so though tailscaled, which serves it still, does not answer."""
_AWAY_SECONDS = 20.0
"""For so long it is waited for a tailscaled that was stopped."""
_AGAIN_SECONDS = 0.5
_LOSSES, _LOSSES_SECONDS = 3, 60.0
"""So often in so long it is announced again after tailscaled has withdrawn it."""
_LEAVE_SECONDS = 1.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class WithdrawnError(TransportError):
    """tailscaled has ended the session to which the announcement was bound."""


class Announcement:
    """The announcement of one instance.

    Args:
        endpoint: The instance.
        settings: Say at which port, and who is told.
        api: The tailscaled.
    """

    def __init__(self, endpoint: Endpoint, settings: TailscaleSettings, api: LocalApi) -> None:
        self._entry = entry_of(endpoint)
        self._port = settings.index_port
        self._allowed = tuple(sorted(_caller(one) for one in settings.allow_users))
        self._api = api
        self._woken = anyio.Event()
        self._status_changed = True
        self._begun = False
        self._announced = False
        self._losses: list[float] = []
        self._back_by = float("-inf")
        self._failing = Lasting()

    def woke(self) -> None:
        """Look at once whether it is announced still."""
        self._status_changed = True
        self._woken.set()

    async def keep(self, task_status: "TaskStatus[None]") -> None:
        """Keep it announced until cancelled; then tailscaled withdraws it, as it does if this process dies.

        Where tailscaled was started anew, or somebody reset what it serves, it is announced again.

        Raises:
            TransportError: It cannot be announced, or no longer is.
        """
        async with anyio.create_task_group() as group:
            teller = Teller(self._api, group)
            while True:
                try:
                    await self._keep_session(teller, task_status)
                except TransportError as error:
                    lost = self._announced and isinstance(error, WithdrawnError)
                    if lost:
                        self._lose()
                    if self._announced or anyio.current_time() >= self._back_by:
                        raise
                    if not lost:
                        await anyio.sleep(_AGAIN_SECONDS)

    def _lose(self) -> None:
        """Take note that it has to be announced again, unless that was so too often."""
        now = anyio.current_time()
        self._announced = False
        self._losses = [*(one for one in self._losses if now - one < _LOSSES_SECONDS), now]
        self._back_by = now
        if len(self._losses) <= _LOSSES:
            self._back_by += _AWAY_SECONDS
            logger.info("tailscaled has withdrawn %s: it is announced again.", self._entry.id)

    async def _keep_session(self, teller: Teller, task_status: "TaskStatus[None]") -> None:
        """Keep it announced for as long as one session of tailscaled's lasts.

        Raises:
            WithdrawnError: The session has ended.
            TransportError: It cannot be announced, or no longer is.
        """
        failure: TransportError = WithdrawnError(
            "tailscaled has withdrawn it: it was stopped, or somebody reset what it serves."
        )
        async with self._api.watch() as bus:
            if not bus.session:
                raise ImpossibleError("This tailscaled is too old to announce with: it takes 1.52 or newer.")
            member = Member(session=bus.session, entry=self._entry, allowed=self._allowed)
            sharing = Sharing(member, self._port, self._api, teller)
            self._status_changed = True
            async with anyio.create_task_group() as group:
                group.start_soon(_until_ended, bus, self._changed, group.cancel_scope)
                try:
                    await self._keep_looking(sharing, task_status)
                except TransportError as error:
                    failure = error
                    group.cancel_scope.cancel()
                finally:
                    with anyio.move_on_after(_LEAVE_SECONDS, shield=True), suppress(TransportError):
                        await sharing.leave()
        raise failure

    async def _keep_looking(self, sharing: Sharing, task_status: "TaskStatus[None]") -> None:
        while True:
            self._woken = anyio.Event()
            try:
                if self._status_changed:
                    self._status_changed = False
                    await sharing.check()
                served = await sharing.agree()
            except TransportError as error:
                self._status_changed = True
                tried = self._failing.seconds(True)
                if not self._announced or is_final(error) or tried > _TRYING_SECONDS:
                    raise
                logger.info("tailscaled does not answer as it should: %s", error)
            else:
                self._failing.seconds(None)
                if served and not self._announced:
                    self._announced = True
                    if not self._begun:
                        self._begun = True
                        task_status.started()
            with anyio.move_on_after(_LOOK_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load
                await self._woken.wait()

    def _changed(self) -> None:
        self._status_changed = True


async def _until_ended(bus: Bus, changed: Callable[[], None], scope: anyio.CancelScope) -> None:
    with suppress(httpx2.HTTPError):  # it died
        await bus.follow(changed)
    scope.cancel()


async def inspect(endpoint: Endpoint, settings: TailscaleSettings, api: LocalApi) -> Sequence[Finding]:
    """Look whether tailscaled serves an instance of this machine.

    Raises:
        TransportError: tailscaled cannot be asked.
    """
    config, _ = await api.serve_config()
    port, entry = settings.index_port, entry_of(endpoint)
    status = await api.status(peers=False)
    if status.problem or status.own is None:
        return [Finding(about="tailnet", ok=False, detail=status.problem)]
    if serving.serves(config, port, serving.holder(config, port), entry):
        return [Finding(about="served", ok=True, detail=f"at http://{status.own.name}:{port}{entry.path}")]
    return [Finding(about="served", ok=False, detail=f"tailscaled does not serve it at port {port}")]


def entry_of(endpoint: Endpoint) -> Entry:
    """Return an instance as it stands in the index.

    Raises:
        TransportError: It is at no address.
    """
    known = (
        endpoint.id if _ID.fullmatch(endpoint.id) else hashlib.sha256(endpoint.id.encode()).hexdigest()[:32]
    )
    parts = urlsplit(endpoint.url)
    try:
        address = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        shown = clean_line(endpoint.url, 100)
        raise TransportError(f"tailscale cannot announce {shown}: it must say an IP address.") from None
    if address.is_unspecified:  # everywhere, so here too
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    host = f"[{address}]" if address.version == 6 else str(address)
    return Entry(
        id=known,
        path=f"/i/{known}/",
        name=endpoint.name,
        version=endpoint.labels.get("version", ""),
        guarded={"basic": True, "none": False}.get(endpoint.labels.get("auth", "")),
        url=f"http://{host}:{parts.port or 80}",
    )


def _caller(word: str) -> str:
    """Return a login name in small letters, or a tag or capability as it is."""
    return word if word.startswith("tag:") or "/" in word else login_key(word)
