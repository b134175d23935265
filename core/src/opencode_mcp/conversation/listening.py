"""Who hears an agent while it answers, and that nobody who waits is left without a sign of life."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio

from opencode_mcp.errors import OpenCodeMCPError

SIGN_OF_LIFE_SECONDS = 8.0
"""After this much silence a listener hears that there is still something to wait for."""

T = TypeVar("T")


class Listener(Protocol):
    """Hears an agent while it answers."""

    async def text(self, piece: str) -> None:
        """Take a piece of the answer."""
        ...

    async def sign_of_life(self, what: str) -> None:
        """Take a line about what goes on while no text comes."""
        ...


class Silent:
    """A listener that does not listen."""

    async def text(self, piece: str) -> None:
        """Ignore it."""

    async def sign_of_life(self, what: str) -> None:
        """Ignore it."""


async def accompanied(work: Callable[[], Awaitable[T]], listener: Listener) -> T:
    """Do `work`, with signs of life while it takes.

    Raises:
        OpenCodeMCPError: What `work` raised.
    """
    done: list[T] = []
    failure: OpenCodeMCPError | None = None

    async def tick() -> None:
        waited = 0.0
        while True:
            await anyio.sleep(SIGN_OF_LIFE_SECONDS)
            waited += SIGN_OF_LIFE_SECONDS
            await listener.sign_of_life(f"[waiting for the instance; {round(waited)} s]")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        try:
            done.append(await work())
        except OpenCodeMCPError as error:
            failure = error  # raised outside: the task group would wrap it
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return done[0]
