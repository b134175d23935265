"""Names that are unique and stay, and finding an instance by what a person or a model calls it."""

from collections.abc import Collection, Hashable, Iterable

from opencode_mcp.errors import ConversationError
from opencode_mcp.text import clean_line

_REMEMBERED = 10_000
_LISTED = 20


class Names:
    """Gives each key a name of its own: the wanted one, or that with `-2`, `-3`, … behind it.

    A key that leaves and comes back has the same name again, unless another one took it meanwhile.
    """

    def __init__(self) -> None:
        self._present: dict[Hashable, tuple[str, str]] = {}  # what it wanted, and what it got
        self._former: dict[Hashable, tuple[str, str]] = {}
        self._taken: set[str] = set()

    def assign(self, key: Hashable, wanted: str) -> str:
        """Return the name of `key`, which would like to be called `wanted`."""
        self.release(key)
        wanted_before, name = self._former.pop(key, ("", ""))
        if wanted_before != wanted or name in self._taken:
            name, number = wanted, 1
            while name in self._taken:
                number += 1
                name = f"{wanted}-{number}"
        self._present[key] = (wanted, name)
        self._taken.add(name)
        return name

    def release(self, key: Hashable) -> None:
        """Take note that `key` has left."""
        left = self._present.pop(key, None)
        if left is not None:
            self._taken.remove(left[1])
            self._former[key] = left
            if len(self._former) > _REMEMBERED:
                del self._former[next(iter(self._former))]


def resolve(query: str, names: Collection[str]) -> str:
    """Find the one name meant by `query`: exact, then the same in another case, then as a part of it.

    Raises:
        ConversationError: None or several match; the message lists the candidates.
    """
    if query in names:
        return query
    folded = query.casefold().strip()
    found = [name for name in names if name.casefold() == folded]
    if not found and folded:
        found = [name for name in names if folded in name.casefold()]
    if len(found) == 1:
        return found[0]
    asked = clean_line(query, 80)
    if found:
        raise ConversationError(f"{asked!r} fits several instances: {listed(found)}. Say which one.")
    if not names:
        raise ConversationError(f"There is no instance {asked!r}: none is connected at present.")
    raise ConversationError(f"There is no instance {asked!r}. Known: {listed(names)}.")


def listed(names: Iterable[str]) -> str:
    """Join `names` in order, not more than a screenful."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more
