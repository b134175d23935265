"""Announcing over ssh where something is in the way: an open port, a taken name, a frozen connection."""

import getpass
import os
import signal
import socket
import subprocess
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from local_relay.relay_parts import put, relay
from local_relay.ssh_parts import announced, content, ended, healthy, instance, over_ssh, refused, ssh_of
from opencode_mcp import TransportError
from opencode_mcp.testing import FakeOpenCode
from support.fleets import until
from support.real_sshd import RealSshd

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def configured(sshd: RealSshd, *lines: str, alias: str = "relay") -> str:
    """A command that reads everything from a configuration file, as the user's own would."""
    path = sshd.home / "ssh_config"
    path.write_text(
        "\n".join(
            [
                f"Host {alias}",
                "HostName 127.0.0.1",
                f"Port {sshd.port}",
                f"User {getpass.getuser()}",
                f"IdentityFile {sshd.home / 'user'}",
                "IdentitiesOnly yes",
                "IdentityAgent none",
                f"UserKnownHostsFile {sshd.home / 'known_hosts'}",
                *lines,
                "",
            ]
        )
    )
    return f"ssh -F {path} -i {sshd.home / 'user'} {alias}"


async def restarted(sshd: RealSshd, *options: str) -> None:
    await anyio.to_thread.run_sync(sshd.stop)
    await anyio.to_thread.run_sync(sshd.start, *options)


def freeze(sshd: RealSshd) -> None:
    for pid in sshd.children:
        os.kill(pid, signal.SIGSTOP)


# A port that the whole network reaches.


async def test_a_port_that_the_network_reaches_is_none_for_an_instance_without_a_password(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    await restarted(sshd, "GatewayPorts yes")
    said = await refused(over_ssh(sshd, registry), instance(fake, labels={"auth": "none"}))
    for word in (
        "opens port",
        "to the network",
        "no password",
        "clientspecified",
        "OPENCODE_SERVER_PASSWORD",
    ):
        assert word in said
    assert list(registry.iterdir()) == []
    assert not fake.requests
    assert ssh_of(sshd) == []


async def test_a_port_that_the_network_reaches_is_not_opened_again_at_every_attempt(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    await restarted(sshd, "GatewayPorts yes")
    transport, endpoint = over_ssh(sshd, registry), instance(fake, labels={"auth": "none"})
    said = await refused(transport, endpoint)
    logins = sshd.logins
    assert await refused(transport, endpoint) == said
    assert sshd.logins == logins


async def test_with_a_password_it_is_told_once(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await restarted(sshd, "GatewayPorts yes")
    transport, endpoint = over_ssh(sshd, registry), instance(fake, labels={"auth": "basic"})
    for _ in range(2):
        async with announced(transport, endpoint):
            assert (registry / "laptop-project.json").exists()
    assert caplog.text.count("only its password protects the instance") == 1


async def test_a_relay_that_leaves_it_to_us_opens_the_port_to_itself_only(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    await restarted(sshd, "GatewayPorts clientspecified")
    async with announced(over_ssh(sshd, registry), instance(fake)):
        assert (registry / "laptop-project.json").exists()


# Names over reconnections.


async def test_a_reconnection_keeps_the_name_though_a_better_one_is_free_by_then(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    other = put(registry, "laptop-project.json", b"{}")
    transport, endpoint = over_ssh(sshd, registry), instance(fake)
    await ended(transport, endpoint, sshd.cut)
    other.unlink()
    (registry / "laptop-project-2.json").unlink()
    async with announced(transport, endpoint):
        assert [path.name for path in registry.iterdir()] == ["laptop-project-2.json"]


async def test_after_a_kill_the_name_is_found_on_the_relay_and_no_other_file_of_ours_stays(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    ours = b'{"id": "%s", "port": 1}' % endpoint.id.encode()
    for name in ("laptop-project-2.json", "laptop-project-3.json", "an earlier\nname.json", "x.json"):
        put(registry, name, ours)
    other = put(registry, "zz.json", b'{"id": "other", "port": 1}')
    async with announced(over_ssh(sshd, registry), endpoint):
        assert sorted(registry.iterdir()) == [registry / "laptop-project-2.json", other]
        assert content(registry / "laptop-project-2.json")["localPort"] == fake.port
    assert list(registry.iterdir()) == [other]


# A withdrawal that fails.


async def test_a_withdrawal_over_a_frozen_connection_is_an_error_in_time(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    async def freeze_and_cancel() -> None:
        nonlocal began
        async with announced(over_ssh(sshd, registry), instance(fake)):
            freeze(sshd)
            began = anyio.current_time()

    began = 0.0
    with pytest.raises(TransportError, match="has not answered") as error:
        await freeze_and_cancel()
    assert anyio.current_time() - began < 2
    assert "laptop-project.json could not be taken off the relay" in str(error.value)
    assert ssh_of(sshd) == []


async def test_it_comes_out_of_a_cancelled_scope_and_a_task_group(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    transport, endpoint = over_ssh(sshd, registry), instance(fake)

    async def announce(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        await transport.announce(endpoint, task_status=task_status)

    with pytest.RaisesGroup(pytest.RaisesExc(TransportError, match="taken off")):
        async with anyio.create_task_group() as group:
            await group.start(announce)
            freeze(sshd)
            group.cancel_scope.cancel()


async def test_what_an_earlier_connection_left_is_told_when_the_next_one_is_cancelled(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    transport, endpoint = over_ssh(sshd.wrapper("slow", SLOW), registry), instance(fake)
    await ended(transport, endpoint, sshd.cut)
    stuck = sshd.home / "slow.stuck"
    stuck.touch()

    async def cancel_while_logging_in() -> None:
        with anyio.move_on_after(0.3):
            await transport.announce(endpoint, task_status=anyio.TASK_STATUS_IGNORED)

    with pytest.raises(TransportError, match="taken off the relay: the connection is gone"):
        await cancel_while_logging_in()
    stuck.unlink()
    async with announced(transport, endpoint):
        pass
    assert list(registry.iterdir()) == []


SLOW = 'while [ -e "$0.stuck" ]; do sleep 0.05; done; exec $SSH "$@"'


# What the user's configuration holds.


async def test_a_port_allocated_for_a_forward_of_the_users_is_not_taken_for_ours(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        line = f"RemoteForward 127.0.0.1:0 127.0.0.1:{elsewhere.getsockname()[1]}"
        async with announced(over_ssh(configured(sshd, line), registry), instance(fake)):
            assert await healthy(content(registry / "laptop-project.json")["port"])
    assert sshd.logins == 1


async def test_a_connection_of_the_users_is_never_shared(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.control.control_path", lambda _: None)
    own = sshd.home / "own"
    command = configured(sshd, "ControlMaster auto", f"ControlPath {own}", "ControlPersist 60")
    subprocess.run([*command.split(), "true"], check=True, stderr=subprocess.DEVNULL)
    try:
        assert own.exists()
        async with announced(over_ssh(command, registry), instance(fake)):
            port = content(registry / "laptop-project.json")["port"]
            assert sshd.logins == 2
        await until(lambda: _closed(port))
    finally:
        subprocess.run([*command.split(), "-O", "exit"], check=True, stderr=subprocess.DEVNULL)
        await until(lambda: ssh_of(sshd) == [])


async def test_what_ssh_says_is_judged_before_the_words_of_the_command_are_hidden(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sshd.trust_user("no-port-forwarding")
    said = await refused(over_ssh(configured(sshd, alias="remote"), registry), instance(fake))
    assert "AllowTcpForwarding" in said
    assert "remote port forwarding" not in said + caplog.text


# What the relay is like.


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
async def test_a_link_of_another_user_to_a_directory_of_ours_is_refused(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    link = registry.parent / "link"
    link.symlink_to(registry)
    async with announced(over_ssh(sshd, link), instance(fake)):
        assert len(list(registry.iterdir())) == 1
    os.chown(link, 54321, -1, follow_symlinks=False)
    assert "another user (uid 54321)" in await refused(over_ssh(sshd, link), instance(fake))
    async with over_ssh(sshd, link).registry() as there:
        with pytest.raises(TransportError, match="another user"):
            await there.discover()


async def test_a_relay_that_allows_one_session_a_connection_is_looked_at_by_a_login_of_its_own(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    await restarted(sshd, "MaxSessions 1")
    endpoint = instance(fake)
    async with announced(over_ssh(sshd, registry), endpoint):
        findings = await over_ssh(sshd, registry).inspect(endpoint)
        assert [one.ok for one in findings] == [True, True, True]
        with pytest.raises(TransportError, match="MaxSessions"):
            await relay(registry).inspect(endpoint)


async def test_and_is_cleaned_up_by_one(sshd: RealSshd, fake: FakeOpenCode, registry: Path) -> None:
    await restarted(sshd, "MaxSessions 1")
    endpoint = instance(fake)

    async def withdraw_meanwhile() -> None:
        async with announced(over_ssh(sshd, registry), endpoint):
            removed = await over_ssh(sshd, registry).withdraw(endpoint)
            assert removed[:2] == [f"registration {registry}/laptop-project.json", "the ssh of its tunnel"]
            await anyio.sleep(10)

    with pytest.raises(TransportError):
        await withdraw_meanwhile()
    assert list(registry.iterdir()) == []


def _closed(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0
