"""Puts settings, plugins and fleet together, for the MCP server and the command line alike."""

import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from opencode_mcp.errors import SettingsError
from opencode_mcp.fleet import Fleet
from opencode_mcp.logformat import SafeFormatter
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings, Settings, read_settings
from opencode_mcp.transport import TransportPlugin


def start_logging(settings: CoreSettings) -> None:
    """Log to stderr: stdout belongs to MCP, or to what was asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request


class Runtime:
    """Everything that must be right before anything starts.

    Raises:
        SettingsError: Variables of core, or else of the selected transports, cannot be used; with a line
            for each.
        PluginError: Selected transports are missing or broken; with a line for each.
    """

    def __init__(self) -> None:
        self.settings = read_settings(CoreSettings)
        start_logging(self.settings)
        self._plugins = Plugins()
        selected = self._plugins.load_transports(self.settings.transport)
        problems: list[str] = []
        self._transports: list[tuple[TransportPlugin[Any], Settings]] = []
        for plugin in selected:
            try:
                self._transports.append((plugin, read_settings(plugin.settings)))
            except SettingsError as error:
                problems.append(str(error))
        if problems:
            raise SettingsError("\n".join(problems))
        self._plugins.load_instance_hooks()

    @asynccontextmanager
    async def fleet(self) -> AsyncGenerator[Fleet]:
        """Run the fleet; entering waits for nothing."""
        _allow_many_connections()
        async with Fleet(self._transports, self._plugins.hook, self.settings).running() as fleet:
            yield fleet


def _allow_many_connections() -> None:
    """Raise the soft limit of open files as far as allowed: each instance holds a connection for its events.

    macOS refuses more than OPEN_MAX, 10240, whatever the hard limit says (its setrlimit(2)).
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (65_536, 10_240):
        wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return
