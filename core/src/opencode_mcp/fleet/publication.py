"""What counts of a set that a transport publishes: foreign code may publish any object as an endpoint."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice

from opencode_mcp.model import Endpoint

MOST = 5_000
"""Endpoints of one transport."""


def sound(endpoints: Iterable[Endpoint], known: Mapping[str, Endpoint]) -> tuple[Sequence[Endpoint], str]:
    """Return what counts of a publication, and what is wrong with the rest, in sentences; or nothing.

    Each endpoint is checked anew: `model_construct` and `model_copy` make some that never were.

    Args:
        endpoints: What is published.
        known: What was found sound before, by its id.

    Raises:
        Exception: It is no collection.
    """
    given: Sequence[object] = list(islice(endpoints, MOST + 1))
    found: dict[str, Endpoint] = {}
    doubled = strange = False
    for one in given[:MOST]:
        endpoint = _checked(one, known)
        if endpoint is None:
            strange = True
        elif endpoint.id in found:
            doubled = True
        else:
            found[endpoint.id] = endpoint
    flaws: list[str] = []
    if len(given) > MOST:
        many = len(endpoints) if isinstance(endpoints, Sized) else f"more than {MOST}"
        flaws.append(f"It publishes {many} endpoints; only the first {MOST} count.")
    if strange:
        flaws.append("It publishes something else than sound endpoints, which does not count.")
    if doubled:
        flaws.append("It publishes several endpoints with the same id; only the first of each counts.")
    return list(found.values()), " ".join(flaws)


def _checked(one: object, known: Mapping[str, Endpoint]) -> Endpoint | None:
    try:
        if not isinstance(one, Endpoint):
            return None
        same = known.get(one.id)
        return same if same is not None and same == one else Endpoint.model_validate(one.model_dump())
    except Exception:  # foreign objects: an attribute may be missing, or anything
        return None
