"""The instances of this machine: those that it announces on the tailnet, and who listens at its ports."""

import dataclasses

import anyio.to_thread

from opencode_mcp import (
    OpenCodeMCPError,
    Route,
    TransportError,
    UnreachableError,
    recognise,
)
from opencode_mcp_tailscale.asking import Answer, Outcome, found_at
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.own import is_mine
from opencode_mcp_tailscale.serving import members


async def ask_here(api: LocalApi, port: int) -> Answer:
    """Read what this machine announces at its index port, from tailscaled itself."""
    try:
        config, _ = await api.serve_config()
    except TransportError as error:
        return Answer(outcome=Outcome.SILENCE, problem=str(error))
    found = [member.entry for member in members(config, port)]
    mine = await anyio.to_thread.run_sync(lambda: {one.url for one in found if is_mine(one.url)})
    entries = [dataclasses.replace(one, mine=one.url in mine) for one in found]
    return Answer(outcome=Outcome.FOUND, entries=entries)


async def ask_port_here(url: str) -> Answer:
    """Ask whether an OpenCode answers at a URL of this machine."""
    try:
        found = await recognise(Route(base_url=url))
    except UnreachableError:
        return Answer(outcome=Outcome.NOBODY)
    except OpenCodeMCPError as error:
        return Answer(outcome=Outcome.OTHER, problem=str(error))
    mine = await anyio.to_thread.run_sync(is_mine, url)
    return Answer(outcome=Outcome.FOUND, entries=[dataclasses.replace(found_at("/", found), mine=mine)])
