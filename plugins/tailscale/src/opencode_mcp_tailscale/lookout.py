"""Looks out for instances on the tailnet: who is on it, what they have, and what is published of it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import anyio
from pydantic import ValidationError

from opencode_mcp import Endpoint, Publish, Rejection, TransportError, clean_line
from opencode_mcp_tailscale.choosing import Candidate, Choice, choose
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.logins import Logins
from opencode_mcp_tailscale.peers import Listed, Peer
from opencode_mcp_tailscale.reach import Reach
from opencode_mcp_tailscale.rounds import Rounds
from opencode_mcp_tailscale.settings import TailscaleSettings
from opencode_mcp_tailscale.status import Machine, Status

logger = logging.getLogger(__name__)

_STATUS_SECONDS = 60.0
_DEBOUNCE_SECONDS = 0.3
_MOST_DEBOUNCE_SECONDS = 1.2
_SHARE = 1 / 25
"""Of the time, at most so much goes into reading the status; with thousands of machines it is megabytes."""
_BREATH_SECONDS = 0.05
_FIRST_SECONDS = 2.0
_RETRIES = (0.2, 0.5, 1.0, 2.0, 5.0)
_MOST_REJECTIONS = 50


class Lookout:
    """One look-out for instances; it is run once.

    Args:
        api: The tailscaled.
        settings: Say who counts.
        rescan_seconds: How long to wait between two looks where nobody is.
    """

    def __init__(self, api: LocalApi, settings: TailscaleSettings, rescan_seconds: float) -> None:
        self._api = api
        self._settings = settings
        self.reach = Reach(api)
        self._rounds = Rounds(rescan_seconds)
        self._logins = Logins(api)
        self._peers: dict[str, Peer] = {}
        self._listed: dict[str, Mapping[str, Listed]] = {}
        self._left_out: Sequence[Rejection] = ()
        self._problem = ""
        self._was_online = True
        self._status_dirty = anyio.Event()
        self._changed = anyio.Event()
        self._settled = anyio.Event()

    async def begin(self) -> None:
        """Find out who is on the tailnet.

        Raises:
            TransportError: tailscaled cannot be asked, or is not on a tailnet.
        """
        self._take(await self._status())

    async def run(self, publish: Publish) -> None:
        """Publish what is there, now and after each change, until cancelled.

        A tailscaled that cannot be asked any more is told of among the rejections, and what is published
        stays: it may well go on running.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._rounds.run)
            group.start_soon(self._follow_bus)
            group.start_soon(self._follow_status)
            await self._publish_changes(publish)

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """What is there, as far as is known."""
        return [
            one.endpoint for one in chain.from_iterable(listed.values() for listed in self._listed.values())
        ]

    async def settled(self) -> None:
        """Wait until everybody has been asked."""
        await self._settled.wait()

    def listed(self, endpoint: Endpoint) -> Listed | None:
        """Return what is known of an endpoint by now."""
        for one in self._listed.values():
            if endpoint.id in one:
                return one[endpoint.id]
        return None

    def forget(self, endpoint: Endpoint) -> None:
        """List an instance no more until it answers again."""
        listed = self.listed(endpoint)
        if listed is not None:
            self._peers[listed.candidate.machine.id].forget(listed)

    @property
    def rejections(self) -> Sequence[Rejection]:
        """What is wrong, and what is left out."""
        here = [Rejection(source="tailscaled", reason=self._problem)] if self._problem else []
        there = chain.from_iterable(peer.rejected() for peer in self._peers.values())
        return [*here, *self._left_out, *there][:_MOST_REJECTIONS]

    async def _follow_bus(self) -> None:
        failures = 0
        while True:
            began = anyio.current_time()
            try:
                async with self._api.watch() as bus:
                    self._status_changed()
                    await bus.follow(self._status_changed)
                logger.info("tailscaled ended its bus.")
            except TransportError as error:
                logger.info("The bus of tailscaled: %s", error)
            self._status_dirty.set()
            failures = 0 if anyio.current_time() - began > _RETRIES[-1] else failures
            await anyio.sleep(_RETRIES[min(failures, len(_RETRIES) - 1)])
            failures += 1

    def _status_changed(self) -> None:
        self._status_dirty.set()  # which is another event after each reading

    async def _follow_status(self) -> None:
        failures = 0
        early = anyio.current_time()
        while True:
            with anyio.move_on_after(_STATUS_SECONDS):
                await self._status_dirty.wait()
            await anyio.sleep(max(_DEBOUNCE_SECONDS, early - anyio.current_time()))
            self._status_dirty = anyio.Event()
            began = anyio.current_time()
            try:
                self._take(await self._status())
                failures = 0
            except TransportError as error:
                self._fail(str(error))
                await anyio.sleep(_RETRIES[min(failures, len(_RETRIES) - 1)])
                failures += 1
                self._status_dirty.set()
            early = anyio.current_time()
            early += min((early - began) / _SHARE, _MOST_DEBOUNCE_SECONDS)

    async def _status(self) -> Status:
        status = await self._api.status()
        return await self._logins.complete(status) if self._settings.users else status

    def _take(self, status: Status) -> None:
        """Take note of a status.

        Raises:
            TransportError: This machine is on no tailnet at present.
        """
        self.reach.take(status)
        if status.problem or status.own is None:
            raise TransportError(status.problem)
        if self._problem:
            logger.warning("Tailscale runs again.")
        back = bool(self._problem) or (status.own.online and not self._was_online)
        self._problem, self._was_online = "", status.own.online
        choice = choose(status, self._settings)
        if self.reach.elsewhere:
            choice = _without(choice, status.own)
        self._left_out = choice.left_out
        for gone in [known for known in self._peers if known not in choice.candidates]:
            self._peers.pop(gone).retire()
            self._listed.pop(gone, None)
        for known, candidate in choice.candidates.items():
            peer = self._peers.get(known)
            if peer is None:
                self._peers[known] = self._peer(candidate)
            elif peer.candidate != candidate:
                peer.take(candidate)
                self._peer_changed(peer)
        self._rounds.pause(False)
        if back:  # for nobody's silence meanwhile was their own
            self._rounds.hurry_all()
        self._changed.set()

    def _fail(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("%s What was found stays listed.", clean_line(problem, 500))
        self._problem = problem
        self._rounds.pause(True)

    def _peer(self, candidate: Candidate) -> Peer:
        return Peer(
            candidate,
            api=self._api,
            reach=self.reach,
            settings=self._settings,
            rounds=self._rounds,
            changed=self._peer_changed,
        )

    def _peer_changed(self, peer: Peer) -> None:
        known = peer.candidate.machine.id
        if self._peers.get(known) is not peer:
            return
        try:
            listed = {one.endpoint.id: one for one in peer.listed()}
        except ValidationError as error:  # of one machine; the others are to be listed all the same
            logger.warning("What %s has cannot be listed: %s", clean_line(known), clean_line(str(error)))
            return
        if listed:
            self._listed[known] = listed
        else:
            self._listed.pop(known, None)
        self._changed.set()

    async def _publish_changes(self, publish: Callable[[Sequence[Endpoint]], None]) -> None:
        published: Sequence[Endpoint] | None = None
        began = anyio.current_time()
        while True:
            with anyio.CancelScope(deadline=began + _FIRST_SECONDS if published is None else float("inf")):
                await self._changed.wait()
            self._changed = anyio.Event()
            self._count()
            endpoints = self.endpoints
            waited = self._settled.is_set() or anyio.current_time() - began >= _FIRST_SECONDS
            if endpoints != published and (endpoints or published or waited):
                publish(endpoints)
                published = endpoints
            await anyio.sleep(_BREATH_SECONDS)

    def _count(self) -> None:
        asked = sum(not question.retired for peer in self._peers.values() for question in peer.questions)
        self._rounds.take(asked, sum(peer.has_index for peer in self._peers.values()))
        if not self._settled.is_set() and all(peer.settled for peer in self._peers.values()):
            self._settled.set()


def _without(choice: Choice, own: Machine) -> Choice:
    """Leave out this machine, whose instances would be looked for on another loopback."""
    reason = "tailscaled runs in another network namespace: what this machine itself has is not looked for."
    return Choice(
        candidates={known: one for known, one in choice.candidates.items() if known != own.id},
        left_out=[Rejection(source=clean_line(own.name or own.id), reason=reason), *choice.left_out],
    )
