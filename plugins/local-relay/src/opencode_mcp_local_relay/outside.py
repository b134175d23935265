"""What another process finds of an announced instance, and what it removes of one that was killed."""

import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio.to_thread

from opencode_mcp import Endpoint, Finding, clean_line
from opencode_mcp_local_relay import control
from opencode_mcp_local_relay.directory import Directory
from opencode_mcp_local_relay.file import read_registration
from opencode_mcp_local_relay.login import logged_in, ways
from opencode_mcp_local_relay.registration import SUFFIX, Registration, UnusableError
from opencode_mcp_local_relay.registry import COUNT_LIMIT
from opencode_mcp_local_relay.relay import Found, Relay
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.tunnel import through

_LOOK_SECONDS = 15.0
_STALE_SECONDS = 90.0
"""Three heartbeats."""
_ANYTHING = re.compile("")


async def inspect(settings: LocalRelaySettings, endpoint: Endpoint) -> Sequence[Finding]:
    """Look at the registration of `endpoint`, and at its tunnel if it has one.

    Raises:
        TransportError: If the relay or the directory cannot be looked at.
    """
    socket = await _live_socket(endpoint)
    if socket is None and not settings.ssh_words:
        found = await anyio.to_thread.run_sync(_find_here, settings, endpoint.id, abandon_on_cancel=True)
        return [_about_registration("registration", settings.local_dir.as_posix(), found)]
    tunnel = (
        Finding(about="tunnel", ok=True, detail="the ssh connection to the relay stands")
        if socket is not None
        else Finding(about="tunnel", ok=None, detail="no ssh of this machine says that it stands")
    )
    async with _relay(settings, endpoint, socket) as relay:
        found = await relay.find()
        findings = [tunnel, _about_registration("registration on the relay", settings.relay_dir, found)]
        port = next((one.registration.port for one in found if one.registration), None)
        if port is not None:
            findings.append(_about_health(port, await through(socket, relay, port)))
    return findings


async def withdraw(settings: LocalRelaySettings, endpoint: Endpoint) -> Sequence[str]:
    """Remove what a killed process left of `endpoint`: registrations with its id, its ssh.

    Raises:
        TransportError: If the relay or the directory cannot be used.
    """
    removed: list[str] = []
    socket = await _live_socket(endpoint)
    if socket is None and not settings.ssh_words:
        found = await anyio.to_thread.run_sync(_remove_here, settings, endpoint.id)
    else:
        async with _relay(settings, endpoint, socket) as relay:
            found = await relay.find(remove=True)
    removed += [f"registration {one.path}" for one in found]
    if socket is not None and await control.request(socket, "exit"):
        removed.append("the ssh of its tunnel")
    path = await anyio.to_thread.run_sync(control.control_path, endpoint.id)
    if path is not None and await anyio.to_thread.run_sync(control.clear_away, path):
        removed.append(f"control socket {path}")
    return removed


async def _live_socket(endpoint: Endpoint) -> Path | None:
    """The control socket of the instance's ssh, if there is somebody behind it."""
    path = await anyio.to_thread.run_sync(control.control_path, endpoint.id)
    if path is None or not await anyio.to_thread.run_sync(control.is_ours, path):
        return None
    return path if await control.request(path, "check") else None


@asynccontextmanager
async def _relay(
    settings: LocalRelaySettings, endpoint: Endpoint, socket: Path | None
) -> AsyncGenerator[Relay]:
    """A shell on the relay: over the connection that stands, or one of its own.

    The former may be denied, for example by `MaxSessions 1`.
    """
    tried = [*ways(settings)] if settings.ssh_words else []
    if socket is not None:
        tried.insert(0, (control.over(socket, "relay", "sh"), _ANYTHING))
    async with logged_in(settings, tried, _LOOK_SECONDS, endpoint.id) as (relay, _, _):
        yield relay


def _remove_here(settings: LocalRelaySettings, instance_id: str) -> Sequence[Found]:
    return _find_here(settings, instance_id, remove=True)


def _find_here(settings: LocalRelaySettings, instance_id: str, *, remove: bool = False) -> Sequence[Found]:
    """Find the registrations of an instance on this machine, and remove them if so wished."""
    found: list[Found] = []
    path = settings.local_dir
    try:
        with Directory(path, trust_any_owner=settings.trust_any_owner) as directory:
            try:
                for name in directory.names(suffix=SUFFIX, limit=COUNT_LIMIT)[0]:
                    with suppress(FileNotFoundError, UnusableError):
                        registration = read_registration(directory, name)
                        if registration.explicit_id and registration.endpoint.id == instance_id:
                            if remove:
                                directory.remove(name)
                            shown = clean_line((path / name).as_posix(), 1000)
                            found.append(Found(path=shown, name=name, registration=registration))
            except OSError as error:
                raise directory.failure("written" if remove else "read", error) from None
    except FileNotFoundError:
        pass
    return found


def _about_registration(about: str, directory: str, found: Sequence[Found]) -> Finding:
    if not found:
        where = clean_line(directory, 1000)
        return Finding(about=about, ok=False, detail=f"no file in {where} holds the id of this instance")
    said = found[0].registration
    if said is None:
        return Finding(about=about, ok=False, detail=f"{found[0].path} is damaged")
    age = _age(said)
    beat = "it tells no heartbeat" if age is None else f"heartbeat {age:.0f} s ago"
    return Finding(
        about=about,
        ok=None if age is None else age < _STALE_SECONDS,
        detail=f"{found[0].path}, port {said.port}, {beat}",
    )


def _age(said: Registration) -> float | None:
    return max(0.0, time.time() - said.heartbeat_at) if said.heartbeat_at else None


def _about_health(port: int, works: bool | None) -> Finding:
    detail = {
        True: f"port {port} of the relay leads to it",
        False: f"nothing answers at port {port} of the relay",
        None: f"the relay has neither curl nor wget to look at its port {port} with",
    }
    return Finding(about="health through the tunnel", ok=works, detail=detail[works])
