"""Which machines of the tailnet count, and which of them may have the password."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from opencode_mcp import Rejection
from opencode_mcp_tailscale.settings import TailscaleSettings
from opencode_mcp_tailscale.status import Machine, Status, login_key


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A machine on which instances are looked for.

    Attributes:
        machine: The machine.
        vouched: Whether the user vouches for it, as the user does for its owner or tag.
        own: Whether it is this one.
    """

    machine: Machine
    vouched: bool = True
    own: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Who counts of a status.

    Attributes:
        candidates: By node id; those that are offline too, since what was found there may come back.
        left_out: What is left out, and why.
    """

    candidates: Mapping[str, Candidate]
    left_out: Sequence[Rejection]


def choose(status: Status, settings: TailscaleSettings) -> Choice:
    """Choose the machines on which instances are looked for.

    Who a machine belongs to, and its tags, are the control plane's word, not the machine's.
    """
    own = status.own
    if own is None:
        return Choice(candidates={}, left_out=[])
    candidates = {own.id: Candidate(machine=own, own=True)}
    reasons: Counter[str] = Counter()
    named = frozenset(settings.peers)
    for machine in status.peers:
        if machine.mullvad or machine.sharee or (named and named.isdisjoint(_names(machine))):
            continue
        if reason := _refusal(machine, own, settings):
            reasons[reason] += 1
        else:
            candidates[machine.id] = Candidate(
                machine=_reachable_first(machine, own), vouched=_vouched(machine, own, settings)
            )
    known = set[str]().union(*map(_names, [own, *status.peers])) if named else set[str]()
    return Choice(candidates=candidates, left_out=[*_counted(reasons, status), *_missing(named - known)])


def _reachable_first(machine: Machine, own: Machine) -> Machine:
    """Put those addresses of a machine first that are of a kind which this machine has on the tailnet too."""
    kinds = {one.version for one in own.addresses}
    first, *_ = machine.addresses
    if first.version in kinds:
        return machine
    ordered = sorted(machine.addresses, key=lambda one: one.version not in kinds)
    return dataclasses.replace(machine, addresses=tuple(ordered))


def _refusal(machine: Machine, own: Machine, settings: TailscaleSettings) -> str:
    """Say why a machine does not count; or nothing."""
    if machine.expired:
        return "its key has expired: it has to log in again"
    if not machine.addresses:
        return "it has no address on the tailnet"
    if not set(own.addresses).isdisjoint(machine.addresses):
        return "it has an address of this machine"
    if _vouched(machine, own, settings):
        return ""
    if machine.shared:
        if not settings.allow_shared:
            return "it is shared with you by others: see TAILSCALE_ALLOW_SHARED"
        return f"it belongs to {machine.owner}, whom TAILSCALE_USERS does not name" if settings.users else ""
    if machine.tags:
        return f"it is tagged {', '.join(machine.tags)}: see TAILSCALE_TAGS"
    if own.tags and not settings.users:
        return (
            f"it belongs to {machine.owner}, and this machine, which is tagged, to nobody: "
            "see TAILSCALE_USERS"
        )
    return f"it belongs to {machine.owner}: see TAILSCALE_USERS"


def _vouched(machine: Machine, own: Machine, settings: TailscaleSettings) -> bool:
    """Whether the user vouches for a machine: it belongs to somebody, or has a tag, that the settings name.

    A tag means what the tailnet's administrators say, so that of another tailnet means nothing here.
    """
    if machine.shared and not settings.allow_shared:
        return False
    if machine.tags:
        return not machine.shared and bool(machine.name) and not settings.tags_set.isdisjoint(machine.tags)
    if settings.users:
        return login_key(machine.user) in settings.logins
    return not machine.shared and not own.tags and machine.user_id == own.user_id != 0


def _names(machine: Machine) -> set[str]:
    """The words by which TAILSCALE_PEERS can name a machine."""
    return {machine.id.lower(), machine.name, machine.short_name.lower(), *map(str, machine.addresses)}


def _counted(reasons: Mapping[str, int], status: Status) -> Iterable[Rejection]:
    for reason, count in sorted(reasons.items()):
        yield Rejection(
            source=f"{count} machine{'s' * (count != 1)} of the tailnet", reason=f"Left out: {reason}."
        )
    if status.malformed:
        yield Rejection(
            source="tailscaled", reason=f"It tells of {status.malformed} machines in words not understood."
        )


def _missing(names: Iterable[str]) -> Iterable[Rejection]:
    for name in sorted(names):
        yield Rejection(source=f"TAILSCALE_PEERS={name}", reason="No machine of the tailnet is called so.")
