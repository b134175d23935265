"""The selected transports, and what announcing on them takes."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from opencode_mcp.errors import OpenCodeMCPError, StartError
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import Settings, read_settings, secret_variables
from opencode_mcp.transport import Announcing, TransportPlugin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Transports that announce.

    Attributes:
        transports: Each with its settings.
        needs: What announcing takes, by the transport's name.
    """

    transports: Sequence[tuple[TransportPlugin[Any], Settings]]
    needs: Mapping[str, Announcing]

    @property
    def addresses(self) -> set[str]:
        """Where an OpenCode has to listen for all of them."""
        return {need.listen for need in self.needs.values()}

    @property
    def facts(self) -> Mapping[str, str]:
        """What they have to say for the banner."""
        return {name: value for need in self.needs.values() for name, value in need.facts.items()}

    @property
    def places(self) -> Mapping[str, str]:
        """Where each of them announces, in its own words."""
        return {name: need.place for name, need in self.needs.items()}

    @property
    def secrets(self) -> Collection[str]:
        """The environment variables with their secrets."""
        return {name for plugin, _ in self.transports for name in secret_variables(plugin.settings)}

    @property
    def reachable_by(self) -> str:
        """Who else can reach an instance by way of them."""
        return ", ".join(need.reachable_by for need in self.needs.values() if need.reachable_by)


def select(names: Iterable[str]) -> Selection:
    """Load transports, with their settings.

    Raises:
        OpenCodeMCPError: One is missing, broken, misconfigured, or announces nothing.
    """
    plugins = Plugins(bounded=False)  # somebody waits at the terminal, and this process is to stay small
    transports = [(plugin, read_settings(plugin.settings)) for plugin in plugins.load_transports(names)]
    needs = {plugin.name: _needs(plugin, settings) for plugin, settings in transports}
    return Selection(transports=transports, needs=needs)


def _needs(plugin: TransportPlugin[Any], settings: Settings) -> Announcing:
    if plugin.announcing is None:
        raise StartError(
            f"Transport {plugin.name!r} finds instances, but announces none. Set TRANSPORT to another.", 2
        )
    try:
        return plugin.announcing(settings)
    except OpenCodeMCPError:
        raise
    except Exception as error:  # foreign code
        raise StartError(
            f"Transport {plugin.name!r} cannot say what announcing takes: {type(error).__name__}. "
            "Update the package that brings it, or report it there.",
            2,
        ) from error
