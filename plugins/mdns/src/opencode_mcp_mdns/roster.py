"""Decides what is listed: which instance is at which place, and who keeps it when several claim the same.

An instance that answers stays where it is, whatever is advertised about it: so neither a false goodbye nor a
false address takes anything away that works.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath

from opencode_mcp import Endpoint, Recognised, Rejection, clean_line
from opencode_mcp_mdns.advert import Advert, Place
from opencode_mcp_mdns.services import Service

_REJECTIONS = 100
_SHARE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """One instance that is listed.

    Attributes:
        service: The key of the service that claims it.
        place: Where it is.
        advert: What was advertised of it when that last fitted.
        answer: What it said of itself when it last answered.
        endpoint: What is published.
    """

    service: str
    place: Place
    advert: Advert
    answer: Recognised
    endpoint: Endpoint


class Roster:
    """The instances that are listed.

    Args:
        services: The services that are advertised, by key.
        answer: Returns what the OpenCode at a place said of itself; None if there is none.
        vouched: Whether the user vouches for whoever is at a place.
        limit: How many are listed at most; a quarter of them at one address.
        identify: Whether to say of each whether it proved the secret.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        answer: Callable[[Place], Recognised | None],
        vouched: Callable[[Place], bool],
        *,
        limit: int,
        identify: bool,
    ) -> None:
        self._services = services
        self._answer = answer
        self._vouched = vouched
        self._limit = limit
        self._identify = identify
        self._listed: dict[str, Listed] = {}
        self._proven: set[str] = set()

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """What is to be published."""
        return [one.endpoint for one in self._listed.values()]

    @property
    def places(self) -> Iterable[Place]:
        """Where the listed ones are."""
        return {one.place for one in self._listed.values()}

    def lists(self, service: Service) -> bool:
        """Whether an instance that this service claims is listed."""
        return any(one.service == service.key for one in self._listed.values())

    def doubtful(self, service: Service) -> Iterable[Place]:
        """Where instances are listed of which this service says no more that they are there."""
        listed = [one for one in self._listed.values() if one.service == service.key]
        return [one.place for one in listed if not self._is_claimed(one)]

    def is_doubtful(self, place: Place) -> bool:
        """Whether nobody says any more that who is listed at a place is there."""
        return any(one.place == place and not self._is_claimed(one) for one in self._listed.values())

    def forget(self, endpoint: Endpoint) -> Place | None:
        """List it no more, unless it has changed meanwhile; return where it was."""
        one = self._listed.get(endpoint.id)
        if one is None or one.endpoint != endpoint:
            return None
        return self._listed.pop(endpoint.id).place

    def review(self) -> None:
        """Bring the list up to date."""
        self._let_go()
        claims = [(service, service.advert) for service in self._services.values() if service.advert]
        for service, advert in sorted(claims, key=lambda claim: (not claim[1].proven, not claim[1].id)):
            if advert.id:
                self._place(service, advert)
            else:
                self._place_bare(service, advert)
        self._renew()

    def _let_go(self) -> None:
        """Drop who does not answer and has said goodbye; or who without an id is somewhere else by now."""
        for endpoint_id, one in list(self._listed.items()):
            if self._answer(one.place) is not None:
                continue
            service = self._services.get(one.service)
            if service is None or service.gone or not (one.advert.id or self._is_claimed(one)):
                del self._listed[endpoint_id]

    def _place(self, service: Service, advert: Advert) -> None:
        """List an instance with an id, at the first of its places where somebody answers."""
        if advert.proven:
            self._proven.add(advert.id)
        elif advert.id in self._proven:
            return  # it proved the secret before, so this is somebody else
        own = next((known for known, one in self._listed.items() if one.service == service.key), None)
        if own is not None and self._answer(self._listed[own].place) is not None:
            return
        endpoint_id = own or self._id_for(service, advert)
        place = self._free(service, advert)
        if endpoint_id is not None and place is not None:
            self._list(endpoint_id, service, advert, place)

    def _id_for(self, service: Service, advert: Advert) -> str | None:
        """Return the id for an endpoint that is not listed yet; None if it is, by another service."""
        one = self._listed.get(advert.id)
        if one is None or self._answer(one.place) is None or (advert.proven and not one.advert.proven):
            return advert.id
        if one.place in advert.places:
            return advert.id if self._yields(one, advert) else None
        # Two say that they are it, and both answer: a copy of a machine, or an impostor.
        return f"{advert.id}~{hashlib.sha256(service.key.encode()).hexdigest()[:6]}"

    def _free(self, service: Service, advert: Advert) -> Place | None:
        """Return the first place where somebody answers who is not listed as another one already."""
        holders = {one.place: known for known, one in self._listed.items()}
        for place in advert.places:
            if self._answer(place) is None:
                continue
            holder = holders.get(place)
            if holder is None or self._listed[holder].service == service.key:
                return place
            if self._yields(self._listed[holder], advert):
                del self._listed[holder]
                return place
        return None

    def _yields(self, holder: Listed, advert: Advert) -> bool:
        """Whether who is listed at a place gives way to another service that claims it."""
        if advert.proven != holder.advert.proven:
            return advert.proven
        service = self._services.get(holder.service)
        return not holder.advert.id or service is None or service.gone or service.stale

    def _place_bare(self, service: Service, advert: Advert) -> None:
        """List whoever answers: without an id, two hosts cannot be told from two addresses of one.

        If somebody answers over IPv4, IPv6 is left out: mostly it is the same one.
        """
        answering = [place for place in advert.places if self._answer(place) is not None]
        if any(place.address.version == 4 for place in answering):
            answering = [place for place in answering if place.address.version == 4]
        taken = self.places
        for place in answering:
            if place not in taken:
                self._list(str(place), service, advert, place)

    def _list(self, endpoint_id: str, service: Service, advert: Advert, place: Place) -> None:
        answer = self._answer(place)
        there = sum(one.place.address == place.address for one in self._listed.values())
        full = len(self._listed) >= self._limit or there >= max(1, self._limit // _SHARE)
        if answer is None or (full and endpoint_id not in self._listed):
            return
        endpoint = self._endpoint(endpoint_id, place, advert, answer)
        self._listed[endpoint_id] = Listed(
            service=service.key, place=place, advert=advert, answer=answer, endpoint=endpoint
        )

    def _renew(self) -> None:
        """Take over what is advertised now of those who are still where it says, and what they say."""
        for endpoint_id, one in self._listed.items():
            answer = self._answer(one.place) or one.answer
            service = self._services.get(one.service)
            told = service.advert if service is not None and self._is_claimed(one) else None
            advert = one.advert if told is None or (one.advert.proven and not told.proven) else told
            endpoint = self._endpoint(endpoint_id, one.place, advert, answer)
            if endpoint != one.endpoint or advert is not one.advert:
                self._listed[endpoint_id] = dataclasses.replace(
                    one, advert=advert, answer=answer, endpoint=endpoint
                )

    def _is_claimed(self, one: Listed) -> bool:
        service = self._services.get(one.service)
        if service is None or service.gone or service.advert is None:
            return False
        return service.advert.id == one.advert.id and one.place in service.advert.places

    def _endpoint(self, endpoint_id: str, place: Place, advert: Advert, answer: Recognised) -> Endpoint:
        directory = answer.directory or advert.directory
        identity = "verified" if advert.proven else "not verified" if self._identify else ""
        labels = {"version": answer.version or advert.version, "identity": identity}
        return Endpoint(
            id=endpoint_id,
            name=advert.name or clean_line(f"{place.address}-{_folder(directory) or place.port}", 190),
            url=place.url,
            hostname=advert.host or str(place.address),
            directory=directory,
            labels={key: value for key, value in labels.items() if value},
            vouched=advert.proven or self._vouched(place),
        )


def _folder(directory: str) -> str:
    kind = PureWindowsPath if "\\" in directory else PurePosixPath
    return kind(directory).name


def rejections(
    services: Iterable[Service], roster: Roster, problem: Callable[[Place], str]
) -> Sequence[Rejection]:
    """Say which services are not listed, and why.

    Args:
        services: All that are advertised.
        roster: What is listed.
        problem: Returns why there is no OpenCode at a place, as a sentence; or nothing.
    """
    found: list[Rejection] = []
    for service in services:
        if len(found) >= _REJECTIONS:
            break
        if roster.lists(service) or not service.resolved:
            continue
        reason = service.problem
        if not reason and service.advert is not None:
            problems = [f"{place}: {why}" for place in service.advert.places if (why := problem(place))]
            reason = " ".join(problems) or service.advert.left_out
        if reason:
            reason = f"{reason[0].upper()}{reason[1:].rstrip('.')}."
            found.append(Rejection(source=f"service {service.label}", reason=reason))
    return found
