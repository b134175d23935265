"""The pluggy hooks that plugins implement; `hookimpl` marks an implementation.

Hooks are plain functions (async ones, generators and wrappers are refused) and quick: they are called on the
event loop. What takes time belongs into a `Transport`, which has async methods and types.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import httpx2

    from opencode_mcp.model import Endpoint, Instance
    from opencode_mcp.transport import TransportPlugin

PROJECT = "opencode_mcp"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class TransportSpec:
    """Hooks of the entry-point group `opencode_mcp.transports`: ways to find instances."""

    @hookspec
    def opencode_mcp_transports(self) -> "Sequence[TransportPlugin[Any]]":
        """Return descriptors of the transports that this plugin brings.

        Example:
            ```python
            from opencode_mcp import TransportPlugin, hookimpl

            @hookimpl
            def opencode_mcp_transports():
                return [TransportPlugin(name="mine", summary="…", settings=MySettings, open=open_mine)]
            ```
        """
        raise NotImplementedError


class InstanceSpec:
    """Hooks of the entry-point group `opencode_mcp.plugins`, always loaded: policies about instances."""

    @hookspec(firstresult=True)
    def opencode_mcp_instance_admit(self, endpoint: "Endpoint") -> bool | None:
        """Decide whether `endpoint` may join the fleet; None leaves it to others. First answer wins.

        An implementation that raises keeps the endpoint out: a policy that fails must not let through.
        """

    @hookspec(firstresult=True)
    def opencode_mcp_instance_auth(self, endpoint: "Endpoint") -> "httpx2.Auth | None":
        """Return the credentials for `endpoint`; None leaves it to others. First answer wins."""

    @hookspec
    def opencode_mcp_instance_changed(self, before: "Instance | None", after: "Instance | None") -> None:
        """Take note of a change. `before` is None when it joined, `after` is None when it left."""
