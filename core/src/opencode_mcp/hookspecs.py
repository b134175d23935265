"""The pluggy hooks that plugins implement; `hookimpl` marks an implementation.

Hooks are plain functions: async ones, generators and wrappers are refused. Those for instances are called in
threads that the plugin has for itself, so one may block, and one that hangs stops nobody else.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import httpx2

    from opencode_mcp.model import Action, Endpoint, Instance
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
    """Hooks of the entry-point group `opencode_mcp.plugins`, always loaded: policies about instances.

    Each plugin has two threads: `admit` and `auth` are asked in one, `changed` and `audit` told in the other;
    within a thread one call follows the other. What a hook raises is logged with the plugin's name and goes
    no further. While one hangs, its plugin's questions count as failed and its news wait.
    """

    @hookspec(firstresult=True)
    def opencode_mcp_instance_admit(self, endpoint: "Endpoint") -> bool | None:
        """Decide whether `endpoint` may join the fleet; None leaves it to others. First answer wins.

        Asked again whenever the transport publishes, so a policy may change its mind. It has 5 s to answer.
        One that raises keeps the endpoint out: a policy that fails must not let through. While one hangs,
        nobody new joins, and whoever is in stays.
        """

    @hookspec(firstresult=True)
    def opencode_mcp_instance_auth(self, endpoint: "Endpoint") -> "httpx2.Auth | None":
        """Return the credentials for `endpoint`; None leaves it to others. First answer wins.

        Asked with each connection, also for one that no transport vouches for: look at `endpoint.vouched`,
        and at its address rather than its name, before a secret is given away. `opencode_mcp.opencode_auth`
        makes one that answers only to the challenge of an OpenCode. It has 10 s to answer. Where it fails,
        the next plugin is asked, and in the end `OPENCODE_SERVER_PASSWORD` serves for those vouched for.
        """

    @hookspec
    def opencode_mcp_instance_changed(self, before: "Instance | None", after: "Instance | None") -> None:
        """Take note of a change. `before` is None when it joined, `after` is None when it left.

        Told in the order in which it happened, a moment later. What is more than 1,000 behind is left out.
        """

    @hookspec
    def opencode_mcp_instance_audit(self, action: "Action") -> None:
        """Take note of an `action` on an instance: told as it begins, and again once it is over.

        The first is told before anything is sent, and neither waits for the hook. As the process ends, what
        was not yet told is, for up to 2 s. What is more than 1,000 behind is left out.
        """
