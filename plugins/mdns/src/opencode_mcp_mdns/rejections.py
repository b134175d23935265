"""Says which services are not listed, and why, in sentences for a person."""

from collections.abc import Callable, Iterable, Sequence

from opencode_mcp import Rejection
from opencode_mcp_mdns.advert import Place
from opencode_mcp_mdns.roster import Roster
from opencode_mcp_mdns.service import Service

_MOST = 100


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
    listed = roster.places
    for service in services:
        if len(found) >= _MOST:
            break
        if roster.lists(service) or not service.resolved:
            continue
        advert = service.advert
        if advert is not None and not advert.id and not listed.isdisjoint(advert.places):
            continue  # the same one, as OpenCode itself advertises it
        reason = service.problem or roster.refusal(service)
        if not reason and advert is not None:
            problems = [f"{place}: {why}" for place in advert.places if (why := problem(place))]
            reason = " ".join(problems) or advert.left_out
        if reason:
            reason = f"{reason[0].upper()}{reason[1:].rstrip('.')}."
            found.append(Rejection(source=f"service {service.label}", reason=reason))
    return found
