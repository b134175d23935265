"""What the tests of announcing over ssh share: instances, announcements, and what is on the relay."""

import json
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest

from opencode_mcp import Endpoint, TransportError
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_local_relay import LocalRelay, LocalRelaySettings
from opencode_mcp_local_relay.login import Ability
from opencode_mcp_local_relay.tunnel import Pace, Tunnel
from support.real_sshd import RealSshd, running_with

FAST = Pace(heartbeat=0.1, probe=0.1, again=0.1)
CALM = Pace()
NO_CONTROL = """
for word; do
  case $word in
    Control*) echo "command-line: line 0: Bad configuration option: ${word%%=*}" >&2; exit 255 ;;
  esac
done
exec $SSH "$@"
"""
"""The text of a wrapper: an ssh that knows no control sockets."""


def settings_for(sshd: RealSshd | str, directory: Path | str, **more: Any) -> LocalRelaySettings:
    command = sshd if isinstance(sshd, str) else sshd.command
    return LocalRelaySettings.model_validate({"ssh_cmd": command, "registry_dir": directory, **more})


def instance(fake: FakeOpenCode | str, name: str = "laptop-project", **fields: Any) -> Endpoint:
    url = fake if isinstance(fake, str) else fake.url
    described = {
        "id": f"server-{secrets.token_hex(6)}",
        "name": name,
        "url": url,
        "directory": "/home/me/project",
    }
    return Endpoint.model_validate({**described, **fields})


def over_ssh(sshd: RealSshd | str, directory: Path | str, **more: Any) -> LocalRelay:
    return LocalRelay(settings_for(sshd, directory, **more))


@asynccontextmanager
async def announced(transport: LocalRelay | Tunnel, endpoint: Endpoint | None = None) -> AsyncGenerator[None]:
    """Announce, and withdraw at the end of the block; an error of the announcement is raised as it is."""
    failure: TransportError | None = None

    async def run(*, task_status: Any) -> None:
        nonlocal failure
        try:
            if isinstance(transport, Tunnel):
                await transport.keep(task_status)
            else:
                assert endpoint is not None
                await transport.announce(endpoint, task_status=task_status)
        except TransportError as error:
            failure = error
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.fail_after(15):
            await group.start(run)
        yield
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def refused(transport: LocalRelay, endpoint: Endpoint) -> str:
    with anyio.fail_after(15), pytest.raises(TransportError) as error:
        await transport.announce(endpoint, task_status=anyio.TASK_STATUS_IGNORED)
    return str(error.value)


async def ended(transport: LocalRelay, endpoint: Endpoint, act: Callable[[], object]) -> str:
    """Announce, do something to it in a thread, and return what is said about the end that it brings."""

    async def until_the_end() -> None:
        async with announced(transport, endpoint):
            await anyio.to_thread.run_sync(act)
            await anyio.sleep(10)

    with pytest.raises(TransportError) as error:
        await until_the_end()
    return str(error.value)


def tunnel(
    sshd: RealSshd | str, directory: Path | str, endpoint: Endpoint, *, pace: Pace = CALM, **more: Any
) -> Tunnel:
    return Tunnel(settings_for(sshd, directory, **more), endpoint, Ability(), pace)


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


async def healthy(port: int) -> bool:
    async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
        response = await client.get(f"http://127.0.0.1:{port}/global/health")
    return response.json()["healthy"] is True


def ssh_of(sshd: RealSshd) -> list[int]:
    """The ssh processes of this test, and what was started around them."""
    return running_with(str(sshd.home / "user"))


def with_tools(sshd: RealSshd, *names: str) -> str:
    """A line for the configuration of sshd: on the relay there is nothing but what is needed, and these."""
    tools = sshd.home / "tools"
    tools.mkdir()
    for name in ("sh", "mkdir", "chmod", "mv", "ln", "rm", "dd", "ls", "id", *names):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"there is no {name}")
        (tools / name).symlink_to(found)
    return f"SetEnv HOME={sshd.user_home} PATH={tools}"
