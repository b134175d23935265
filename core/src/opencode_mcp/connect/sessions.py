"""`opencode-connected sessions`: the sessions of every instance that is registered where ours are."""

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import anyio.to_thread
from pydantic import SecretStr

from opencode_mcp.connect.known import known_at
from opencode_mcp.connect.launch import known_password
from opencode_mcp.connect.report import endpoint_of, opened, sentence
from opencode_mcp.fleet.policies import Policies
from opencode_mcp.model import Endpoint, Route, Session
from opencode_mcp.opencode.credentials import opencode_auth
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http
from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import CoreSettings, read_settings
from opencode_mcp.state.places import state_directory
from opencode_mcp.state.records import Record, running
from opencode_mcp.text import clean_line
from opencode_mcp.transport import Transport

_AT_ONCE = 16
_LOOK_SECONDS = 30.0
_SHOWN = 20


@dataclasses.dataclass(kw_only=True)
class _Found:
    endpoint: Endpoint
    owner: int | None = None
    sessions: Sequence[Session] = ()
    version: str = ""
    problem: str = ""


def sessions() -> int:
    """Print the newest sessions of each instance; return 1 if not all could be asked."""
    plugins = Plugins()
    settings = read_settings(CoreSettings)
    if (password := known_password(settings, state_directory())) is not None:
        settings = settings.model_copy(update={"server_password": SecretStr(password)})
    plugins.load_instance_hooks()
    here = running(state_directory())
    found, problems = anyio.run(_Asking(settings, Policies(plugins.hook, settings)).everyone, here)
    for one in sorted(found, key=lambda one: one.endpoint.name):
        endpoint = one.endpoint
        about = ", ".join(filter(None, (endpoint.hostname, endpoint.directory, one.version)))
        print(clean_line(f"{endpoint.name} ({about})" if about else endpoint.name, 1000))
        if one.problem:
            _print(one.problem)
        for session in one.sessions[:_SHOWN]:
            when = datetime.fromtimestamp(session.updated / 1000, UTC).astimezone()
            _print(f"{session.id} {when:%Y-%m-%d %H:%M} {session.title}")
        if not one.sessions and not one.problem:
            _print("no session yet")
    for problem in problems:
        print(problem)
    if not found and not problems:
        print("No instance is registered.")
    return int(bool(problems) or any(one.problem for one in found))


class _Asking:
    def __init__(self, settings: CoreSettings, policies: Policies) -> None:
        self._settings = settings
        self._policies = policies
        self._limit = anyio.CapacityLimiter(_AT_ONCE)

    async def everyone(self, here: Sequence[Record]) -> tuple[list[_Found], list[str]]:
        """Ask the instances of this machine, and those that the selected transports know of."""
        found = {one.id: _Found(endpoint=endpoint_of(one), owner=one.owner) for one in here}
        problems: list[str] = []
        async with anyio.create_task_group() as group:
            for one in found.values():
                group.start_soon(self._ask, one, None)
            known = frozenset(found)
            for name in self._settings.transport:
                group.start_soon(self._through, name, known, found, problems)
        return list(found.values()), problems

    async def _through(
        self, name: str, known: frozenset[str], found: dict[str, _Found], problems: list[str]
    ) -> None:
        try:
            async with opened(name) as transport, transport.registry() as registry:
                with anyio.fail_after(_LOOK_SECONDS):
                    endpoints = await registry.discover()
                async with anyio.create_task_group() as group:
                    for endpoint in endpoints:
                        if endpoint.id not in known and await self._policies.admit(endpoint):
                            one = found[endpoint.id] = _Found(endpoint=endpoint)
                            group.start_soon(self._ask, one, registry)
        except TimeoutError:
            problems.append(f"Transport {name} has not answered within {_LOOK_SECONDS:g} s.")
        except Exception as error:  # foreign code: the others are to be asked all the same
            problems.append(f"Transport {name}: {sentence(error)}")

    async def _ask(self, one: _Found, registry: Transport | None) -> None:
        known = await self._policies.authenticate(one.endpoint)
        seconds = self._settings.health_check_timeout_ms / 1000
        try:
            async with self._limit:
                with anyio.fail_after(_LOOK_SECONDS):
                    way = registry.connect(one.endpoint) if registry else _direct(one.endpoint, one.owner)
                    async with (
                        way as route,
                        Http(
                            route, seconds=seconds, vouched=one.endpoint.vouched, auth=route.auth or known
                        ) as http,
                    ):
                        api = await detect(http, pid=route.pid, version=route.version)
                        one.version = api.version
                        one.sessions = await api.sessions()
        except TimeoutError:
            one.problem = f"no answer within {_LOOK_SECONDS:g} s"
        except Exception as error:  # foreign code, as above
            one.problem = sentence(error)


@asynccontextmanager
async def _direct(endpoint: Endpoint, owner: int | None) -> AsyncGenerator[Route]:
    """Go straight to an instance of this machine; to a background service with what its file says."""
    known = await anyio.to_thread.run_sync(known_at, endpoint.url, None, owner)
    auth = opencode_auth(known.password) if known.password else None
    yield Route(base_url=known.url, auth=auth, pid=known.pid, version=known.version, users=known.users)


def _print(line: str) -> None:
    print(f"  {clean_line(line, 400)}")
