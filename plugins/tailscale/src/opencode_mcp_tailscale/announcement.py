"""Announces an instance of this machine on the tailnet, together with the other announcers of the machine."""

import hashlib
import ipaddress
import logging
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import httpx2

from opencode_mcp import Endpoint, Finding, TransportError, clean_line
from opencode_mcp_tailscale import serving
from opencode_mcp_tailscale.bus import Bus
from opencode_mcp_tailscale.index import Entry
from opencode_mcp_tailscale.localapi import ConflictError, LocalApi, LocalApiError
from opencode_mcp_tailscale.serving import Member
from opencode_mcp_tailscale.settings import TailscaleSettings

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

    from opencode_mcp_tailscale.telling import Telling

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.5
_IDLE_SECONDS = 4.0
"""An announcer that serves the index, and does not take in a new one for so long, has to hand over."""
_ATTEMPTS = 8
_CONFLICT_SECONDS = 0.1
_FORBIDDEN = (401, 403)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Announcement:
    """The announcement of one instance.

    Args:
        endpoint: The instance.
        settings: Say at which port, and who is told.
        api: The tailscaled.
    """

    def __init__(self, endpoint: Endpoint, settings: TailscaleSettings, api: LocalApi) -> None:
        self._endpoint = endpoint
        self._entry = entry_of(endpoint)
        self._port = settings.index_port
        self._allowed = tuple(sorted(_caller(one) for one in settings.allow_users))
        self._api = api
        self._name = ""
        self._member: Member
        self._telling: Telling | None = None
        self._woken = anyio.Event()
        self._status_changed = True
        self._passed_over: float | None = None

    def woke(self) -> None:
        """Look at once whether it is announced still."""
        self._status_changed = True
        self._woken.set()

    async def keep(self, task_status: "TaskStatus[None]") -> None:
        """Keep it announced until cancelled; then tailscaled withdraws it, as it does if this process dies.

        Raises:
            TransportError: It cannot be announced, or no longer is.
        """
        async with self._api.watch() as bus:
            if not bus.session:
                raise TransportError("This tailscaled is too old to announce with: it takes 1.52 or newer.")
            self._member = Member(session=bus.session, entry=self._entry, allowed=self._allowed)
            async with anyio.create_task_group() as group:
                group.start_soon(self._follow, bus)
                started = False
                while True:
                    self._woken = anyio.Event()
                    if self._status_changed:
                        self._status_changed = False
                        await self._check()
                    served = await self._agree(group)
                    if served and not started:
                        started = True
                        task_status.started()
                    with anyio.move_on_after(_LOOK_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load
                        await self._woken.wait()

    async def _follow(self, bus: Bus) -> None:
        with suppress(httpx2.HTTPError):  # it died
            await bus.follow(self._changed)
        raise TransportError("tailscaled has withdrawn it: it was stopped, or somebody reset what it serves.")

    def _changed(self) -> None:
        self._status_changed = True

    async def _check(self) -> None:
        """Find out whether anybody can reach this machine, and by which name.

        Raises:
            TransportError: Nobody can.
        """
        status = await self._api.status(peers=False)
        if status.problem or status.own is None:
            raise TransportError(status.problem)
        if not status.own.name:
            raise TransportError(
                "This machine has no name on the tailnet, and tailscaled serves by name: turn on MagicDNS."
            )
        if await self._api.shields_up():
            raise TransportError(
                "This machine accepts no connections from the tailnet: run "
                "`tailscale set --shields-up=false`."
            )
        self._name = status.own.name

    async def _agree(self, group: "TaskGroup") -> bool:
        """Bring the serve config into agreement; return whether the instance is served now.

        Raises:
            TransportError: tailscaled does not take it.
        """
        for attempt in range(_ATTEMPTS):
            config, tag = await self._api.serve_config()
            if problem := serving.obstacle(config, self._port):
                raise TransportError(problem)
            wanted = await self._wanted(config, group)
            if wanted == config:
                return serving.serves(config, self._port, serving.holder(config, self._port), self._entry)
            try:
                await self._api.set_serve_config(wanted, tag)
            except ConflictError:
                pause = _CONFLICT_SECONDS * (attempt + 1)  # longer, the more others there seem to be
                await anyio.sleep(pause * random.uniform(0.2, 2))  # noqa: S311 - spreads load
            except LocalApiError as error:
                await self._check()  # which may know better what is wrong
                raise _explained(error) from None
        raise ConflictError("Others change what this machine serves all the time.", 412)

    async def _wanted(self, config: dict[str, Any], group: "TaskGroup") -> dict[str, Any]:
        """Return what the serve config should be."""
        own = self._member.session
        holder = serving.holder(config, self._port)
        others = serving.members(serving.changed(config, own, None), self._port)
        # Where two have the same id, one of them is not taken in, through no fault of the holder.
        doubled = any(one.entry.id == self._entry.id for one in others)
        now = anyio.current_time()
        if holder in ("", own) or doubled or serving.serves(config, self._port, holder, self._entry):
            self._passed_over = None
        else:
            self._passed_over = self._passed_over or now
        if self._passed_over is not None and now - self._passed_over > _IDLE_SECONDS:
            logger.warning("The announcer that serves the index of this machine does not answer: taken over.")
            config = serving.changed(config, holder, None)
            others = [one for one in others if one.session != holder]
            holder, self._passed_over = "", None
        if holder and holder != own:
            return serving.changed(config, own, serving.part_of(self._member, self._port))
        everybody = [self._member, *(one for one in others if one.entry.id != self._entry.id)]
        part = serving.part_of_holder(
            self._member,
            everybody,
            port=self._port,
            name=self._name,
            index=await self._told_by(everybody, group),
        )
        return serving.changed(config, own, part)

    async def _told_by(self, everybody: Sequence[Member], group: "TaskGroup") -> str:
        """Return the URL at which this process tells who may know of what; none if everybody may."""
        if self._telling is None and any(one.allowed for one in everybody):
            from opencode_mcp_tailscale.telling import Telling  # seldom needed

            self._telling = Telling(self._api)
            await group.start(self._telling.run)
        if self._telling is None:
            return ""
        self._telling.members = everybody
        return self._telling.url


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
    """Return a login name in small letters, or a tag as it is."""
    return word if word.startswith("tag:") else word.lower()


def _explained(error: LocalApiError) -> TransportError:
    if error.status in _FORBIDDEN:
        return TransportError(
            "tailscaled lets only root and its operator announce: run `sudo tailscale set --operator=$USER`."
        )
    return error
