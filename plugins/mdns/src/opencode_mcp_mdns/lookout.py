"""Looks out for instances on the network: what is advertised, who answers there, and what is listed of it."""

import logging
from collections.abc import Collection, Sequence
from itertools import chain
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from opencode_mcp import Endpoint, Publish, Recognised, Rejection, announced_here
from opencode_mcp_mdns.advert import Place
from opencode_mcp_mdns.composing import public_id
from opencode_mcp_mdns.network import Network
from opencode_mcp_mdns.places import Outlook, Places
from opencode_mcp_mdns.rejections import rejections
from opencode_mcp_mdns.roster import Roster
from opencode_mcp_mdns.service import Service, Worth
from opencode_mcp_mdns.services import Services
from opencode_mcp_mdns.session import Session
from opencode_mcp_mdns.settings import MDnsSettings
from opencode_mcp_mdns.vouching import Vouching

logger = logging.getLogger(__name__)

_BREATH_SECONDS = 0.02
"""Between two reviews, however much happens on the network."""
_FIRST_SECONDS = 1.0
"""How long to wait with the first publication for somebody to answer: most do within 0.3 s."""
_REVIEW_SECONDS = 5.0
"""At the latest after so long it is looked whether a proof has grown old, or somebody is gone for good."""
_OWN_SECONDS = 1.0


class Lookout:
    """One look-out for instances; it is run once.

    Args:
        session: Zeroconf.
        settings: Say what counts, and whom the user vouches for.
    """

    def __init__(self, session: Session, settings: MDnsSettings) -> None:
        self._session = session
        self._vouching = Vouching(settings, changed=self._wake)
        self._services = Services(session, settings, changed=self._service_changed, worth=self._worth)
        self._places = Places(changed=self._wake, uneasy=lambda place: self._roster.is_doubtful(place))
        self._roster = Roster(
            self._services.known,
            lambda service: self._allowed.get(service.key, ()),
            self._answer,
            self._is_decided,
            self._vouching.vouched,
            limit=settings.max_services,
            identify=settings.secret is not None,
            mark=settings.secret is not None or bool(settings.credentials_for),
        )
        self._allowed: dict[str, Sequence[Place]] = {}
        self._told: dict[str, Sequence[Place | str]] = {}
        self._seen: dict[str, object] = {}
        self._own: frozenset[tuple[str, int | None]] = frozenset()
        self._own_read = float("-inf")
        self._dirty = anyio.Event()
        self._dirty.set()

    async def run(self, publish: Publish, rescan_seconds: float) -> None:
        """Publish what is there, now and after each change, until cancelled."""
        self._session.slept = self._slept
        async with anyio.create_task_group() as group:
            await group.start(self._places.run)
            group.start_soon(self._services.run, rescan_seconds)
            group.start_soon(self._vouching.run, rescan_seconds)
            await self._publish_changes(publish)

    @property
    def network(self) -> Network:
        """The networks that it looks at."""
        return self._session.network

    def forget(self, endpoint: Endpoint) -> None:
        """List an instance no more until it answers again."""
        place = self._roster.forget(endpoint)
        visit = self._places.get(place) if place is not None else None
        if visit is not None:
            visit.give_up()
        self._wake()

    @property
    def rejections(self) -> Sequence[Rejection]:
        """What is advertised and not listed, and why."""
        return rejections(self._services.known.values(), self._roster, self._problem)

    async def _publish_changes(self, publish: Publish) -> None:
        published: Sequence[Endpoint] | None = None
        began = anyio.current_time()
        while True:
            patience = began + _FIRST_SECONDS
            until = patience if published is None else anyio.current_time() + _REVIEW_SECONDS
            with anyio.CancelScope(deadline=until):
                await self._dirty.wait()
            self._dirty = anyio.Event()
            await self._review()
            endpoints = self._roster.endpoints
            early = published is None and anyio.current_time() < patience
            settled = self._services.settled and self._places.settled
            if endpoints != published and not (early and not (endpoints and settled)):
                publish(endpoints)
                published = endpoints
            await anyio.sleep(_BREATH_SECONDS)

    async def _review(self) -> None:
        self._session.look_at_clock()  # before proofs are found to be old
        for service in [one for one in self._services.known.values() if one.gone]:
            if not self._roster.lists(service):
                self._services.drop(service)
        self._places.keep(await self._wanted())
        self._roster.review()

    async def _wanted(self) -> set[Place]:
        """Return the places to ask at, and note which service may claim which.

        At this machine there are only its own instances: see `Network.refusal`.
        """
        allowed: dict[str, Sequence[Place]] = {}
        for service in list(self._services.known.values()):
            if (advert := service.advert) is None:
                continue
            own = [place for place in advert.places if self._session.network.is_own(place.address)]
            if own:
                here = await self._announced_here()
                own = [place for place in own if (advert.id, place.port) not in here]
            allowed[service.key] = [place for place in advert.places if place not in own]
        self._allowed = allowed
        self._seen = {key: seen for key, seen in self._seen.items() if key in self._services.known}
        self._told = {key: told for key, told in self._told.items() if key in allowed}
        return {*self._roster.places, *chain.from_iterable(allowed.values())}

    async def _announced_here(self) -> Collection[tuple[str, int | None]]:
        """Return the ids and ports of the instances of this machine; not read anew at every turn."""
        if anyio.current_time() - self._own_read > _OWN_SECONDS:
            found = await anyio.to_thread.run_sync(announced_here)
            self._own = frozenset((public_id(one), urlsplit(url).port) for one, url in found.items())
            self._own_read = anyio.current_time()
        return self._own

    def _service_changed(self, service: Service) -> None:
        advert = None if service.gone else service.advert
        claimed = () if advert is None else (advert.id, *advert.places)
        if self._told.get(service.key) != claimed:
            self._told[service.key] = claimed
            for place in self._roster.places_of(service):
                visit = self._places.get(place)
                if visit is not None:
                    visit.doubt()
        standing = (advert, service.problem, service.stale, service.resolved)
        if self._seen.get(service.key) != standing:
            self._seen[service.key] = standing
            self._wake()

    def _worth(self, service: Service) -> Worth:
        if self._roster.lists(service):
            return Worth.LISTED
        if service.problem:
            return Worth.NOTHING
        if service.advert is None:
            return Worth.UNKNOWN
        listed = self._roster.places
        outlooks = [self._outlook(place) for place in service.advert.places if place not in listed]
        if outlooks and (service.advert.proven or Outlook.GOOD in outlooks):
            return Worth.LIKELY
        return Worth.UNKNOWN if Outlook.OPEN in outlooks else Worth.NOTHING

    def _outlook(self, place: Place) -> Outlook:
        visit = self._places.get(place)
        if visit is not None and visit.asked and visit.answer is None:
            return Outlook.BAD
        return self._places.outlook(place.address)

    def _is_decided(self, place: Place) -> bool:
        visit = self._places.get(place)
        return visit is not None and visit.decided

    def _answer(self, place: Place) -> Recognised | None:
        visit = self._places.get(place)
        return None if visit is None else visit.answer

    def _problem(self, place: Place) -> str:
        visit = self._places.get(place)
        if visit is None:
            return "This is an address of this machine, where nothing of yours is announced."
        return visit.problem

    def _slept(self) -> None:
        logger.info("This machine slept, or its clock was set: everything is asked for anew.")
        self._roster.slept()
        self._services.slept()

    def _wake(self) -> None:
        self._dirty.set()
