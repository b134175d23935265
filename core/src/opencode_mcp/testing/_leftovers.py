"""What is left in this process after something has ended: tasks, sockets and open files."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import anyio

_LISTINGS = ("/proc/self/fd", "/dev/fd")
"""On Linux, and on macOS; elsewhere only the tasks are known."""


class Leftovers:
    """Remembers what there is now, and tells later what has been added since."""

    def __init__(self) -> None:
        self._tasks = {task.id for task in anyio.get_running_tasks()}
        self._files = _open_files()

    @property
    def now(self) -> list[str]:
        """What is there that was not, in words."""
        tasks = [
            f"the task {task.name!r}" for task in anyio.get_running_tasks() if task.id not in self._tasks
        ]
        files = [shown for key, shown in _open_files().items() if key not in self._files]
        return [*tasks, *files]


def _open_files() -> Mapping[tuple[int, int, int], str]:
    """Return what is open: descriptor, device and number of each, and what to call it."""
    listing = next((Path(one) for one in _LISTINGS if Path(one).is_dir()), None)
    if listing is None:
        return {}
    found: dict[tuple[int, int, int], str] = {}
    for path in listing.iterdir():
        try:
            status = os.fstat(int(path.name))
        except (OSError, ValueError):  # the one that listed them is closed by now
            continue
        kind = "the socket" if stat.S_ISSOCK(status.st_mode) else "the open file"
        found[int(path.name), status.st_dev, status.st_ino] = f"{kind} {_target(path)}"
    return found


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return path.name
