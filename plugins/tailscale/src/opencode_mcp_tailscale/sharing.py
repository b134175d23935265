"""What an announcer does with the serve config, which it shares with the other announcers of the machine."""

import logging
import random
from typing import Any

import anyio

from opencode_mcp import TransportError
from opencode_mcp_tailscale import serving
from opencode_mcp_tailscale.index import MOST_BYTES, MOST_INSTANCES
from opencode_mcp_tailscale.localapi import ConflictError, LocalApi, LocalApiError
from opencode_mcp_tailscale.own import is_here
from opencode_mcp_tailscale.serving import Member
from opencode_mcp_tailscale.telling import Teller, answers

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 4.0
"""An announcer that serves the index, and changes nothing that it has to change for so long, hands over."""
_ATTEMPTS = 8
_CONFLICT_SECONDS = 0.1
_FORBIDDEN = (401, 403)


class ImpossibleError(TransportError):
    """An instance cannot be announced as things are, however often it is tried."""


class Sharing:
    """The part of one announcer in the serve config, for as long as its session lasts.

    Args:
        member: What it announces.
        port: The index port.
        api: The tailscaled.
        teller: Tells the index to some, if this announcer serves it and not everybody may know.
    """

    def __init__(self, member: Member, port: int, api: LocalApi, teller: Teller) -> None:
        self._member = member
        self._port = port
        self._api = api
        self._teller = teller
        self._name = ""
        self._idle, self._doubled = Lasting(), Lasting()

    async def check(self) -> None:
        """Find out whether anybody can reach this machine, and by which name.

        Raises:
            ImpossibleError: Nobody can.
            TransportError: tailscaled cannot be asked.
        """
        status = await self._api.status(peers=False)
        if status.problem or status.own is None:
            raise ImpossibleError(status.problem)
        if not status.own.name:
            raise ImpossibleError(
                "This machine has no name on the tailnet, and tailscaled serves by name: turn on MagicDNS."
            )
        if await self._api.shields_up():
            raise ImpossibleError(
                "This machine accepts no connections from the tailnet: run "
                "`tailscale set --shields-up=false`."
            )
        if status.kernel:
            elsewhere = bool(status.own.addresses) and not any(map(is_here, status.own.addresses))
        else:
            elsewhere = await self._api.elsewhere()
        if elsewhere:
            raise ImpossibleError(
                "tailscaled is outside of this container, or network namespace, and would forward to what "
                "listens there: announce from there, run tailscaled in here, or let both share the network "
                "(`network_mode: service:...`)."
            )
        self._name = status.own.name

    async def agree(self) -> bool:
        """Bring the serve config into agreement; return whether the instance is served now.

        Raises:
            ImpossibleError: It cannot be served as things are.
            TransportError: tailscaled does not take it.
        """
        for attempt in range(_ATTEMPTS):
            config, tag = await self._api.serve_config()
            if problem := serving.obstacle(config, self._port):
                raise ImpossibleError(problem)
            wanted = await self._wanted(config)
            if wanted == config:
                holder = serving.holder(config, self._port)
                served = serving.serves(config, self._port, holder, self._member.entry)
                if problem := self._hindrance(config, served):
                    raise ImpossibleError(problem)
                return served
            try:
                await self._api.set_serve_config(wanted, tag)
            except ConflictError:
                await _wait(attempt)
            except LocalApiError as error:
                await self.check()  # which may know better what is wrong
                raise _explained(error) from None
        raise ConflictError("Others change what this machine serves all the time.", 412)

    def _hindrance(self, config: dict[str, Any], served: bool) -> str:
        """Say why waiting does not help who is not served; or nothing."""
        own = self._member.entry
        same = [one.session for one in serving.members(config, self._port) if one.entry.id == own.id]
        doubled = not served and same != [self._member.session]
        if self._doubled.seconds(True if doubled else None) > _IDLE_SECONDS:
            return f"Another process of this machine announces the same instance, {own.id}."
        if served or serving.has_room(config, self._port, own):
            return ""
        return (
            f"This machine announces too many instances: others read {MOST_INSTANCES} of them, and "
            f"{MOST_BYTES // 1000} kB in all."
        )

    async def _wanted(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return what the serve config should be."""
        own = self._member.session
        holder = serving.holder(config, self._port)
        if holder not in ("", own) and await self._hangs(config, holder):
            logger.warning("The announcer that serves the index of this machine does not answer: taken over.")
            config = serving.changed(config, holder, None)
            holder = ""
        if holder not in ("", own):
            return serving.changed(config, own, serving.part_of(self._member, self._port))
        others = [one for one in serving.members(config, self._port) if one.entry.id != self._member.entry.id]
        everybody = [self._member, *others]
        index = await self._teller.told_by(everybody)
        part = serving.part_of_holder(self._member, everybody, port=self._port, name=self._name, index=index)
        return serving.changed(config, own, part)

    async def _hangs(self, config: dict[str, Any], holder: str) -> bool:
        """Whether who serves the index has left undone for so long what it has to do that it must hang."""
        idle = not serving.is_current(config, self._port, holder)
        if not idle and (url := serving.asked_at(config, self._port, holder)):
            idle = not await answers(url)
        return self._idle.seconds(config["Foreground"][holder] if idle else None) > _IDLE_SECONDS

    async def leave(self) -> None:
        """Take it out of the index if another announcer serves that, which might hang.

        Raises:
            TransportError: tailscaled does not take it.
        """
        for attempt in range(_ATTEMPTS):
            config, tag = await self._api.serve_config()
            if serving.holder(config, self._port) in ("", self._member.session):
                return  # tailscaled does it all, once the session ends
            left = serving.without(config, self._member, self._port)
            if left == config:
                return
            try:
                await self._api.set_serve_config(left, tag)
            except ConflictError:  # others leave at the same time, for one
                await _wait(attempt)
            else:
                return


class Lasting:
    """How long something has been as it is."""

    def __init__(self) -> None:
        self._what: object = None
        self._since = 0.0

    def seconds(self, what: object) -> float:
        """Return for how long it has been the same; None is nothing, and lasts for no time."""
        now = anyio.current_time()
        if what is None or what != self._what:
            self._what, self._since = what, now
        return now - self._since


async def _wait(attempt: int) -> None:
    """Wait after a conflict; longer, the more others there seem to be."""
    pause = _CONFLICT_SECONDS * (attempt + 1)
    await anyio.sleep(pause * random.uniform(0.2, 2))  # noqa: S311 - spreads load


def is_final(error: TransportError) -> bool:
    """Whether an error is more than that tailscaled fails to answer at the moment."""
    forbidden = isinstance(error, LocalApiError) and error.status in _FORBIDDEN
    return forbidden or isinstance(error, ImpossibleError)


def _explained(error: LocalApiError) -> TransportError:
    if error.status in _FORBIDDEN:
        return ImpossibleError(
            "tailscaled lets only root and its operator announce: run `sudo tailscale set --operator=$USER`."
        )
    return error
