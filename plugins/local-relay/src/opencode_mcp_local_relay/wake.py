"""An event for one task that does something again and again."""

import anyio


class Wake:
    """An event that can be cleared, so that what happens during a look leads to another."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Let who waits go on."""
        self._event.set()

    def clear(self) -> None:
        """Have who comes next wait."""
        if self._event.is_set():
            self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait until it is set."""
        await self._event.wait()
