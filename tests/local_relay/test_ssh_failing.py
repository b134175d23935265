"""What goes wrong over ssh: noticed quickly, told in a sentence, and tried again by who called."""

import os
import signal
from pathlib import Path

import anyio
import pytest

from local_relay.ssh_parts import announced, content, ended, healthy, instance, over_ssh, refused, ssh_of
from opencode_mcp.testing import FakeOpenCode
from support.fleets import until
from support.real_sshd import RealSshd, processes, running_with

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_a_killed_ssh_is_noticed_and_the_next_try_registers_under_the_same_name(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    transport, endpoint, path = over_ssh(sshd, registry), instance(fake), registry / "laptop-project.json"

    def kill() -> None:
        for pid in ssh_of(sshd):
            os.kill(pid, signal.SIGKILL)

    began = anyio.current_time()
    assert "ended by signal 9" in await ended(transport, endpoint, kill)
    assert anyio.current_time() - began < 3
    before = content(path)
    async with announced(transport, endpoint):
        (only,) = registry.iterdir()
        now = content(path)
        assert only == path
        assert now["id"] == before["id"]
        assert await healthy(now["port"])
    assert list(registry.iterdir()) == []


async def test_an_sshd_that_is_restarted_is_used_again(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    transport, endpoint = over_ssh(sshd, registry), instance(fake)
    assert "connection to the relay broke" in await ended(transport, endpoint, sshd.stop)
    assert "cannot be reached" in await refused(transport, endpoint)
    await anyio.to_thread.run_sync(sshd.start)
    async with announced(transport, endpoint):
        assert await healthy(content(registry / "laptop-project.json")["port"])


async def test_a_shell_that_ends_on_the_relay_ends_the_announcement(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    def kill() -> None:
        for pid in (child for served in sshd.children for child in _descendants(served)):
            os.kill(pid, signal.SIGKILL)

    await ended(over_ssh(sshd, registry), instance(fake), kill)
    assert ssh_of(sshd) == []


async def test_a_host_key_that_has_changed_is_never_accepted(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    await anyio.to_thread.run_sync(sshd.stop)
    await anyio.to_thread.run_sync(sshd.change_host_key)
    await anyio.to_thread.run_sync(sshd.start)
    said = await refused(over_ssh(sshd, registry), instance(fake))
    assert "host key is unknown or has changed" in said
    (sshd.home / "known_hosts").write_text("")
    said = await refused(over_ssh(sshd, registry), instance(fake))
    assert "host key is unknown or has changed" in said
    assert "by hand" in said


async def test_a_refused_login_is_told_without_the_command(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sshd.distrust_user()
    said = await refused(over_ssh(sshd, registry), instance(fake))
    assert "refused the login" in said
    assert "`ssh …`" in said
    for word in sshd.words[1:]:
        assert len(word) < 4 or word not in said + caplog.text


async def test_a_relay_that_forwards_no_port_is_told_after_one_login(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    sshd.trust_user("no-port-forwarding")
    said = await refused(over_ssh(sshd, registry), instance(fake))
    assert "AllowTcpForwarding" in said
    assert sshd.logins == 1
    assert ssh_of(sshd) == []


async def test_a_name_that_does_not_exist_and_a_port_that_is_closed_are_told(
    fake: FakeOpenCode, registry: Path
) -> None:
    said = await refused(over_ssh("ssh -F none user@relay.invalid", registry), instance(fake))
    assert "name is not known" in said
    said = await refused(over_ssh("ssh -F none -p 1 127.0.0.1", registry), instance(fake))
    assert "cannot be reached" in said


@pytest.mark.parametrize("command", ["/nowhere/ssh me@relay", "no-such-program-at-all me@relay"])
async def test_a_program_that_is_not_there_is_told(fake: FakeOpenCode, registry: Path, command: str) -> None:
    said = await refused(over_ssh(command, registry), instance(fake))
    assert command.split()[0] in said
    assert "RELAY_SSH_CMD" in said
    assert "me@relay" not in said


async def test_a_program_that_is_no_program_is_told(
    fake: FakeOpenCode, registry: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF rubbish")
    program.chmod(0o755)
    assert "exit code" in await refused(over_ssh(f"{program} me@relay", registry), instance(fake))


async def test_a_directory_that_cannot_be_had_is_told(
    sshd: RealSshd, fake: FakeOpenCode, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing/here")):
        said = await refused(over_ssh(sshd, directory), instance(fake))
        assert f"The registry directory {directory} on the relay cannot be created: mkdir" in said
        assert "RELAY_REGISTRY_DIR" in said


async def test_a_directory_that_cannot_be_written_is_told(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    directory = Path("/proc/self/fdinfo") if os.geteuid() == 0 else registry
    registry.chmod(0o500)
    said = await refused(over_ssh(sshd, directory, trust_any_owner=True), instance(fake))
    assert f"The registry directory {directory} on the relay cannot be written: " in said
    assert len(said) < 400
    registry.chmod(0o700)


async def test_a_program_that_never_says_a_word_is_given_up_and_ended(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.tunnel.ARRIVE_SECONDS", 0.3)
    wrapper = sshd.wrapper("silent", f"trap '' TERM; sleep 1{sshd.port} & while :; do wait; done")
    assert "has not let us in" in await refused(over_ssh(wrapper, registry), instance(fake))
    await until(lambda: running_with(wrapper) + running_with(f"sleep 1{sshd.port}") == [])


async def test_a_flood_neither_fills_the_memory_nor_stops_anything(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    (sshd.user_home / ".bashrc").write_text(
        "(yes 2>/dev/null | head -c 30000000; head -c 30000000 /dev/zero) &\n"
    )
    async with announced(over_ssh(sshd, registry), instance(fake)):
        assert (registry / "laptop-project.json").exists()


def _descendants(pid: int) -> list[int]:
    children = [child for child, parent, _ in processes() if parent == pid]
    return [*children, *(deeper for child in children for deeper in _descendants(child))]
