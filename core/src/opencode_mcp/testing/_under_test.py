"""What an author tells the tests of a transport: which one it is, and how to make it find something."""

import dataclasses
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import cached_property
from typing import Any

import anyio.to_thread

from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import Settings, documented, read_settings
from opencode_mcp.transport import Transport, TransportPlugin


class Publisher(ABC):
    """Makes the transport find endpoints, as the world does for which the transport is made.

    It writes the file, registers at the server, or advertises on the network that the transport looks at.
    Each method returns once that is done; the transport is given time to notice.

    Attributes:
        host: The address at which the servers listen that the suite publishes.
    """

    host: str = "127.0.0.1"

    @abstractmethod
    async def publish(self, url: str, *, key: str = "one", name: str = "one") -> None:
        """Let an endpoint appear; one with the same key that is there already changes.

        Args:
            url: Where it answers. The suite also tries what no transport may pass on.
            key: What tells it from the others: 1 to 20 letters and digits.
            name: What people call it. The suite also tries what no transport may pass on.

        Raises:
            ValueError: Such a value cannot be published at all, for example since a port is all there is to
                say. Nothing is published then.
        """

    @abstractmethod
    async def withdraw(self, key: str = "one") -> None:
        """Let the endpoint go that was published with `key`."""

    def broken(self) -> AbstractAsyncContextManager[None]:
        """Let looking fail while the context is entered; what was published is there again afterwards.

        Take the server off the network, make the file unreadable, write half of it. The default cannot.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TransportUnderTest:
    """The transport that is tested.

    Attributes:
        name: What `TRANSPORT` says: the name of its entry point.
        environment: The environment variables with which it finds what the publisher publishes.
        announcing: Environment variables besides, or instead, with which it announces, if that is elsewhere
            than where it looks: on another machine, or at another server.
        canaries: Values for its secret variables in the test that looks for secrets, for those that do not
            take just any word. Each has to hold a word of 12 characters or more; it is looked for everywhere.
    """

    name: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    announcing: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str], kw_only=True)
    canaries: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str], kw_only=True)

    @cached_property
    def plugin(self) -> TransportPlugin[Any]:
        """The transport's descriptor, loaded by its entry point as core does.

        Raises:
            PluginError: It is not installed, or broken.
        """
        (plugin,) = Plugins().load_transports([self.name])
        return plugin

    async def read_settings(self, **more_environment: str) -> Settings:
        """Read its settings from `environment` and `more_environment`, and nothing else of the environment.

        Raises:
            SettingsError: They cannot be used.
        """
        with self._surroundings(more_environment):
            return await anyio.to_thread.run_sync(read_settings, self.plugin.settings)

    @asynccontextmanager
    async def open(self, **more_environment: str) -> AsyncGenerator[Transport]:
        """Open the transport as core does, in its environment, until the block ends.

        Args:
            **more_environment: Environment variables besides, or instead of, those of `environment`.

        Raises:
            PluginError: It is not installed, or broken.
            SettingsError: Its settings cannot be used.
        """
        plugin = self.plugin
        with self._surroundings(more_environment):
            # Core reads settings before there is an event loop, so they may look at files.
            settings = await anyio.to_thread.run_sync(read_settings, plugin.settings)
            async with plugin.open(settings) as transport:
                yield transport

    def surroundings(self, more: Mapping[str, str]) -> Mapping[str, str | None]:
        """What to set in the environment; None hides what a variable is outside of the test."""
        theirs = {documented(field).variable for field in self.plugin.settings.model_fields.values()}
        return {**dict.fromkeys(theirs - {""}), **self.environment, **more}

    @contextmanager
    def _surroundings(self, more: Mapping[str, str]) -> Generator[None]:
        wanted = self.surroundings(more)
        before = {name: os.environ.get(name) for name in wanted}
        _set(wanted)
        try:
            yield
        finally:
            _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def environment_for_children() -> dict[str, str]:
    """Return the environment with which another interpreter imports what this one does."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
