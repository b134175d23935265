"""The instances that are listed, found by id, by place and by the service that claims them."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from opencode_mcp import Endpoint, Recognised
from opencode_mcp_mdns.advert import Advert, Place
from opencode_mcp_mdns.network import Address


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """One instance that is listed.

    Attributes:
        service: The key of the service that claims it.
        place: Where it is; nobody else is there.
        advert: What was advertised of it when that last fitted.
        answer: What it said of itself when it last answered.
        endpoint: What is published.
    """

    service: str
    place: Place
    advert: Advert
    answer: Recognised
    endpoint: Endpoint

    @property
    def id(self) -> str:
        """The id of what is published."""
        return self.endpoint.id


class Listing:
    """All that are listed, in the order in which they came."""

    def __init__(self) -> None:
        self._by_id: dict[str, Listed] = {}
        self._by_place: dict[Place, str] = {}
        self._by_service: defaultdict[str, set[str]] = defaultdict(set)
        self._at: Counter[Address] = Counter()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Listed]:
        return iter(list(self._by_id.values()))

    @property
    def places(self) -> set[Place]:
        """Where they are."""
        return set(self._by_place)

    def get(self, endpoint_id: str) -> Listed | None:
        """Return the one with an id."""
        return self._by_id.get(endpoint_id)

    def at(self, place: Place) -> Listed | None:
        """Return the one at a place."""
        endpoint_id = self._by_place.get(place)
        return None if endpoint_id is None else self._by_id[endpoint_id]

    def of(self, service: str) -> Sequence[Listed]:
        """Return those that a service claims, by its key."""
        return [self._by_id[one] for one in sorted(self._by_service.get(service, ()))]

    def number_at(self, address: Address) -> int:
        """Return how many are at an address."""
        return self._at[address]

    def put(self, one: Listed) -> None:
        """List one, in place of who had its id."""
        before = self._by_id.get(one.id)
        if before is not None:
            self._unlink(before)
        self._by_id[one.id] = one
        self._by_place[one.place] = one.id
        self._by_service[one.service].add(one.id)
        self._at[one.place.address] += 1

    def remove(self, one: Listed) -> None:
        """List one no more."""
        self._unlink(one)
        del self._by_id[one.id]

    def _unlink(self, one: Listed) -> None:
        del self._by_place[one.place]
        self._by_service[one.service].discard(one.id)
        if not self._by_service[one.service]:
            del self._by_service[one.service]
        self._at[one.place.address] -= 1
        if not self._at[one.place.address]:
            del self._at[one.place.address]
