"""Which process announces the background service: one at a time, the leader."""

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from opencode_mcp.connect.place import Place, endpoint_of
from opencode_mcp.connect.selection import Selection
from opencode_mcp.connect.slots import claim
from opencode_mcp.state.places import file_stem
from opencode_mcp.state.records import Record

_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Leadership:
    """The right to announce a service, until the block ends that this is the context of.

    The kernel takes it away however the process ends; then another one that waits can have it.

    Args:
        state: The state directory.
        name: What the service is to be called.
        selection: Who announces it.

    Attributes:
        place: The name it has got; None until we are the leader.
        log: The log; several processes may write it.
    """

    def __init__(self, state: Path, name: str, selection: Selection) -> None:
        self.place: Place | None = None
        self.log = state / f"{file_stem(name)}.log"
        self._state = state
        self._name = name
        self._selection = selection
        self._held = ExitStack()

    def take(self, file: str, url: str) -> Place | None:
        """Take the lead if nobody has it; then the service has a name, and is on record.

        Args:
            file: The name of its service file: each service has a leader of its own.
            url: Where it answers.

        Raises:
            OSError: The state directory cannot be used.
            StartError: Likewise.
        """
        with ExitStack() as held:
            lock = os.open(self._state / f".{file_stem(file)}.lock", _OPEN, 0o600)
            held.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            slot = held.enter_context(claim(self._state, self._name))
            endpoint = endpoint_of(slot, url, "")
            slot.write(Record.of(endpoint, url=url, log=self.log, places=self._selection.places))
            slot.keep = slot.written
            self._held = held.pop_all()
        self.place = Place(slot, endpoint, url)
        return self.place

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()
