"""Decides what is listed: which instance is at which place, and who keeps it when several claim the same.

An instance that answers stays where it is, whatever is advertised about it: so neither a false goodbye nor a
false address takes anything away that works.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import anyio

from opencode_mcp import Endpoint, Recognised, clean_line
from opencode_mcp_mdns.advert import Advert, Place
from opencode_mcp_mdns.composing import folder_of
from opencode_mcp_mdns.listing import Listed, Listing
from opencode_mcp_mdns.service import Service

_SHARE = 4
_NAME_LENGTH = 140
_PATIENCE_SECONDS = 20.0
"""How long a proof that grew old while this machine slept is held to be good."""


class Roster:
    """The instances that are listed.

    Args:
        services: The services that are advertised, by key.
        places: Returns the places that a service may claim.
        answer: Returns what the OpenCode at a place said of itself; None if there is none.
        decided: Whether it is known by now whether there is an OpenCode at a place.
        vouched: Whether the user vouches for whoever is at a place.
        limit: How many are listed at most; a quarter of them at one address.
        identify: Whether to say of each whether it proved the secret.
        mark: Whether those whom nobody vouches for are to be told from others by their names.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        places: Callable[[Service], Sequence[Place]],
        answer: Callable[[Place], Recognised | None],
        decided: Callable[[Place], bool],
        vouched: Callable[[Place], bool],
        *,
        limit: int,
        identify: bool = False,
        mark: bool = False,
    ) -> None:
        self._services = services
        self._places_of = places
        self._answer = answer
        self._decided = decided
        self._vouched = vouched
        self._limit = limit
        self._identify = identify
        self._mark = mark
        self._listing = Listing()
        self._proven: set[str] = set()
        self._refused: dict[str, str] = {}
        self._patient_until = float("-inf")

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """What is to be published."""
        return [one.endpoint for one in self._listing]

    @property
    def places(self) -> set[Place]:
        """Where the listed ones are."""
        return self._listing.places

    def places_of(self, service: Service) -> Sequence[Place]:
        """Where instances of a service are listed."""
        return [one.place for one in self._listing.of(service.key)]

    def refusal(self, service: Service) -> str:
        """Return why a service is not listed though somebody answers there, as a clause; or nothing."""
        return self._refused.get(service.key, "")

    def lists(self, service: Service) -> bool:
        """Whether an instance that this service claims is listed."""
        return bool(self._listing.of(service.key))

    def is_doubtful(self, place: Place) -> bool:
        """Whether nobody says any more that who is listed at a place is there."""
        one = self._listing.at(place)
        return one is not None and not self._is_claimed(one)

    def slept(self) -> None:
        """Be patient with old proofs for a while: this machine has slept, and new ones are yet to come."""
        self._patient_until = anyio.current_time() + _PATIENCE_SECONDS

    def forget(self, endpoint: Endpoint) -> Place | None:
        """List it no more, unless it has changed meanwhile; return where it was."""
        one = self._listing.get(endpoint.id)
        if one is None or one.endpoint != endpoint:
            return None
        self._listing.remove(one)
        return one.place

    def review(self) -> None:
        """Bring the list up to date."""
        self._let_go()
        self._refused.clear()
        adverts = [(service, service.advert) for service in self._services.values()]
        claims = [(service, advert) for service, advert in adverts if advert and not self._is_expired(advert)]
        for service, advert in sorted(claims, key=lambda claim: (not claim[1].proven, not claim[1].id)):
            if advert.id:
                self._place(service, advert)
            else:
                self._place_bare(service, advert)
        self._renew()

    def _is_expired(self, advert: Advert) -> bool:
        return advert.expired and anyio.current_time() > self._patient_until

    def _let_go(self) -> None:
        """Drop who does not answer and has said goodbye, or without an id is somewhere else by now.

        Also whose proof is no more: who runs renews it in time.
        """
        for one in self._listing:
            service = self._services.get(one.service)
            gone = service is None or service.gone or not (one.advert.id or self._is_claimed(one))
            if self._is_expired(one.advert) or (gone and self._answer(one.place) is None):
                self._listing.remove(one)

    def _place(self, service: Service, advert: Advert) -> None:
        """List an instance with an id, at the first of its places where somebody answers."""
        if advert.proven:
            self._proven.add(advert.id)
        elif advert.id in self._proven:
            self._refused[service.key] = "it does not prove MDNS_SECRET, which the one with its id did before"
            return
        mine = [one for one in self._listing.of(service.key) if one.advert.id == advert.id]
        if any(self._answer(one.place) is not None for one in mine):
            return
        endpoint_id = mine[0].id if mine else self._id_for(service, advert)
        place = None if endpoint_id is None else self._free(service, advert)
        if endpoint_id is not None and place is not None:
            self._list(endpoint_id, service, advert, place)

    def _id_for(self, service: Service, advert: Advert) -> str | None:
        """Return the id for an endpoint that is not listed yet; None if it is, by another service."""
        one = self._listing.get(advert.id)
        if one is None or self._answer(one.place) is None or (advert.proven and not one.advert.proven):
            return advert.id
        if one.place in self._places_of(service):
            return advert.id if self._yields(one, advert) else None
        # Two say that they are it, and both answer: a copy of a machine, or an impostor.
        return f"{advert.id}~{hashlib.sha256(service.key.encode()).hexdigest()[:16]}"

    def _free(self, service: Service, advert: Advert) -> Place | None:
        """Return the first place where somebody answers who is not listed as another one already."""
        for place in self._places_of(service):
            if self._answer(place) is None:
                continue
            holder = self._listing.at(place)
            if holder is None:
                return place
            if self._yields(holder, advert):
                self._listing.remove(holder)
                return place
            name = holder.endpoint.name
            self._refused[service.key] = f"who answers there is listed already, as {name}"
        return None

    def _yields(self, holder: Listed, advert: Advert) -> bool:
        """Whether who is listed at a place gives way to another service that claims it."""
        if advert.proven != holder.advert.proven:
            return advert.proven
        service = self._services.get(holder.service)
        if service is None or service.abandoned:
            return True
        return not holder.advert.id and not self._vouched(holder.place)

    def _place_bare(self, service: Service, advert: Advert) -> None:
        """List whoever answers: without an id, two hosts cannot be told from two addresses of one.

        If somebody answers over IPv4, IPv6 is left out: mostly it is the same one.
        """
        places = self._places_of(service)
        v4 = [place for place in places if place.address.version == 4]
        if any(self._answer(place) is not None or not self._decided(place) for place in v4):
            places = v4
        for place in places:
            if self._listing.at(place) is None and self._answer(place) is not None:
                self._list(str(place), service, advert, place)

    def _list(self, endpoint_id: str, service: Service, advert: Advert, place: Place) -> None:
        answer = self._answer(place)
        if answer is None:
            return
        if self._listing.get(endpoint_id) is None and not self._has_room(advert, place):
            self._refused[service.key] = "MDNS_MAX_SERVICES leaves no room for it"
            return
        endpoint = self._endpoint(endpoint_id, place, advert, answer)
        self._listing.put(
            Listed(service=service.key, place=place, advert=advert, answer=answer, endpoint=endpoint)
        )

    def _has_room(self, advert: Advert, place: Place) -> bool:
        """Whether there is room for one more; one that proved the secret displaces one that did not."""
        share_is_used = self._listing.number_at(place.address) >= max(1, self._limit // _SHARE)
        if not share_is_used and len(self._listing) < self._limit:
            return True
        if not advert.proven:
            return False
        others = (one for one in self._listing if not one.endpoint.vouched)
        displaced = next(
            (one for one in others if not share_is_used or one.place.address == place.address), None
        )
        if displaced is not None:
            self._listing.remove(displaced)
        return displaced is not None

    def _renew(self) -> None:
        """Take over what is advertised now of those who are still where it says, and what they say."""
        for one in self._listing:
            answer = self._answer(one.place) or one.answer
            service = self._services.get(one.service)
            told = service.advert if service is not None and self._is_claimed(one) else None
            advert = one.advert if told is None or (one.advert.proven and not told.proven) else told
            endpoint = self._endpoint(one.id, one.place, advert, answer)
            if endpoint != one.endpoint or advert is not one.advert:
                self._listing.put(dataclasses.replace(one, advert=advert, answer=answer, endpoint=endpoint))

    def _is_claimed(self, one: Listed) -> bool:
        service = self._services.get(one.service)
        if service is None or service.gone or service.advert is None:
            return False
        return service.advert.id == one.advert.id and one.place in self._places_of(service)

    def _endpoint(self, endpoint_id: str, place: Place, advert: Advert, answer: Recognised) -> Endpoint:
        directory = answer.directory or advert.directory
        identity = "verified" if advert.proven else "not verified" if self._identify else ""
        labels = {"version": answer.version or advert.version, "identity": identity}
        vouched = advert.proven or self._vouched(place)
        name = advert.name or f"{place.address}-{folder_of(directory) or place.port}"
        if advert.name and self._mark and not vouched:
            # Lest it passes for one that the user knows.
            name = f"{clean_line(advert.name, _NAME_LENGTH)}@{place.address}"
        return Endpoint(
            id=endpoint_id,
            name=clean_line(name, 200),
            url=place.url,
            hostname=advert.host or str(place.address),
            directory=directory,
            labels={key: value for key, value in labels.items() if value},
            vouched=vouched,
        )
