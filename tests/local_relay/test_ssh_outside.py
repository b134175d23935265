"""Another process's view of what is announced over ssh, and what is left of one that was killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from local_relay.relay_parts import put, register, relay
from local_relay.ssh_parts import announced, content, instance, over_ssh, ssh_of
from opencode_mcp import Endpoint, Finding, TransportError
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_local_relay.control import control_path
from support.fleets import until
from support.real_sshd import RealSshd

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ANNOUNCER = """
import sys, anyio
from opencode_mcp import Endpoint
from opencode_mcp_local_relay import LocalRelay, LocalRelaySettings
endpoint = Endpoint.model_validate_json(sys.argv[1])
async def main():
    await LocalRelay(LocalRelaySettings()).announce(endpoint, task_status=anyio.TASK_STATUS_IGNORED)
anyio.run(main)
"""


@asynccontextmanager
async def another_process(sshd: RealSshd | str, registry: Path, endpoint: Endpoint) -> AsyncGenerator[int]:
    """Announce in a process of its own, which is killed at the end of the block at the latest."""
    command = sshd if isinstance(sshd, str) else sshd.command
    process = await anyio.open_process(
        [sys.executable, "-c", ANNOUNCER, endpoint.model_dump_json()],
        env={**os.environ, "RELAY_SSH_CMD": command, "RELAY_REGISTRY_DIR": str(registry)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None,
        start_new_session=True,
    )
    try:
        await until(lambda: list(registry.glob("*.json")), 15)
        yield process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def facts(findings: Sequence[Finding]) -> dict[str, bool | None]:
    return {one.about: one.ok for one in findings}


async def test_what_is_announced_is_seen_over_its_own_connection(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    async with announced(over_ssh(sshd, registry), endpoint):
        port = content(registry / "laptop-project.json")["port"]
        for onlooker in (over_ssh(sshd, registry), relay(registry)):  # with RELAY_SSH_CMD, and without
            findings = await onlooker.inspect(endpoint)
            assert facts(findings) == {
                "tunnel": True,
                "registration on the relay": True,
                "health through the tunnel": True,
            }
            assert f"{registry}/laptop-project.json, port {port}, heartbeat 0 s ago" in findings[1].detail
        assert sshd.logins == 1


async def test_what_is_not_announced_is_seen_by_a_login_of_its_own(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    findings = await over_ssh(sshd, registry).inspect(instance(fake))
    assert facts(findings) == {"tunnel": None, "registration on the relay": False}
    assert str(registry) in findings[1].detail
    assert ssh_of(sshd) == []


async def test_a_registration_that_nobody_looks_after_is_seen_as_such(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    left = {"id": endpoint.id, "port": 1, "heartbeatAt": "2025-01-02T03:04:05.678Z"}
    put(registry, "laptop-project.json", json.dumps(left).encode())
    findings = await over_ssh(sshd, registry).inspect(endpoint)
    assert facts(findings) == {
        "tunnel": None,
        "registration on the relay": False,
        "health through the tunnel": False,
    }


async def test_a_relay_that_cannot_be_asked_is_an_error(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    sshd.distrust_user()
    for ask in (over_ssh(sshd, registry).inspect, over_ssh(sshd, registry).withdraw):
        with pytest.raises(TransportError, match="refused the login"):
            await ask(instance(fake))


@pytest.mark.parametrize("wrapped", [False, True])
async def test_killed_we_leave_no_ssh_and_what_is_left_can_be_withdrawn(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, wrapped: bool
) -> None:
    endpoint = instance(fake)
    command = sshd.wrapper("parent", 'exec 3<&0; $SSH "$@" <&3 3<&- & exec 3<&- 0<&-; wait $!')
    async with another_process(command if wrapped else sshd, registry, endpoint) as pid:
        assert ssh_of(sshd)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: ssh_of(sshd) == [])
    (path,) = registry.iterdir()
    others = [register(registry, f"laptop-project-{number}", id=f"other-{number}") for number in (2, 3)]
    assert await over_ssh(sshd, registry).withdraw(endpoint) == [f"registration {path}"]
    assert sorted(registry.iterdir()) == others
    assert await over_ssh(sshd, registry).withdraw(endpoint) == []
    socket = control_path(endpoint.id)
    assert socket is not None
    assert not socket.exists()


async def test_a_connection_kept_open_by_an_event_stream_ends_with_us_all_the_same(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    async with another_process(sshd, registry, endpoint) as pid:
        port = content(registry / "laptop-project.json")["port"]
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"GET /global/event HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await stream.receive()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: ssh_of(sshd) == [])
    assert len(await over_ssh(sshd, registry).withdraw(endpoint)) == 1


async def test_a_stale_control_socket_is_cleared_away(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    path = control_path(endpoint.id)
    assert path is not None
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text("")
    assert await over_ssh(sshd, registry).withdraw(endpoint) == [f"control socket {path}"]
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text("")
    async with announced(over_ssh(sshd, registry), endpoint):
        assert facts(await over_ssh(sshd, registry).inspect(endpoint))["tunnel"] is True


async def test_a_control_socket_that_others_could_have_put_there_is_not_talked_to(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = instance(fake)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr("tempfile.tempdir", short)
        async with announced(over_ssh(sshd, registry), endpoint):
            path = control_path(endpoint.id)
            assert path is not None
            assert path.is_relative_to(short)
            assert path.is_socket()
            path.parent.chmod(0o755)
            assert facts(await over_ssh(sshd, registry).inspect(endpoint))["tunnel"] is None
            assert sshd.logins == 2
        path.parent.mkdir(0o755)
        async with announced(over_ssh(sshd, registry), endpoint):  # nor is one put there
            assert facts(await over_ssh(sshd, registry).inspect(endpoint))["tunnel"] is None


async def test_on_this_machine_the_registration_is_seen_and_withdrawn_by_its_id(
    fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    assert facts(await relay(registry).inspect(endpoint)) == {"registration": False}
    async with announced(relay(registry), endpoint):
        (finding,) = await relay(registry).inspect(endpoint)
        path = registry / "laptop-project.json"
        assert finding == Finding(
            about="registration", ok=True, detail=f"{path}, port {fake.port}, heartbeat 0 s ago"
        )
    assert await relay(registry).withdraw(endpoint) == []
    mine = register(registry, "renamed", id=endpoint.id)
    other = register(registry, "laptop-project", id="other")
    assert await relay(registry).withdraw(endpoint) == [f"registration {mine}"]
    assert list(registry.iterdir()) == [other]
    assert await relay(registry / "none").withdraw(endpoint) == []


async def test_on_this_machine_too_a_directory_that_cannot_be_used_is_an_error(
    fake: FakeOpenCode, registry: Path
) -> None:
    registry.chmod(0o777)
    for ask in (relay(registry).inspect, relay(registry).withdraw):
        with pytest.raises(TransportError, match="everybody"):
            await ask(instance(fake))
