"""Announcing over a real ssh: the registration on the relay, the port beside it, what is never touched."""

import json
import os
import pwd
import random
import signal
import socket
from pathlib import Path

import anyio
import pytest

from local_relay.relay_parts import put
from local_relay.ssh_parts import (
    FAST,
    announced,
    content,
    ended,
    healthy,
    instance,
    over_ssh,
    refused,
    ssh_of,
    tunnel,
)
from opencode_mcp.testing import FakeOpenCode, Fault
from opencode_mcp_local_relay.control import control_path
from support.fleets import until
from support.real_sshd import RealSshd

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HELL = (
    "x'; touch PWNED; '",
    '"quoted" $(touch PWNED) `touch PWNED`',
    "日本 ünï ✓",
    "-rf --help",
    "back\\slash \\n \\047 %s %n ! !! *",
    "x" * 200,
    "$HOME ${IFS} & | > PWNED < /dev/null # ; exit 1",
)


async def test_what_is_announced_stands_on_the_relay_and_can_be_reached_there(
    sshd: RealSshd, fake: FakeOpenCode, tmp_path: Path
) -> None:
    registry = tmp_path / "new" / "registry"
    endpoint = instance(fake, labels={"version": "1.18.33"})
    async with announced(over_ssh(sshd, registry), endpoint):
        written = content(registry / "laptop-project.json")
        assert (written["id"], written["name"], written["cwd"]) == (
            endpoint.id,
            "laptop-project",
            "/home/me/project",
        )
        assert (written["version"], written["transport"]) == ("1.18.33", "local-relay")
        assert written["localPort"] == fake.port != written["port"]
        assert written["hostname"] == socket.gethostname()
        assert await healthy(written["port"])
        modes = [path.stat().st_mode & 0o777 for path in (registry.parent, registry, *registry.iterdir())]
        assert modes == [0o700, 0o700, 0o600]
        (found,) = await over_ssh(sshd, registry).discover()
        assert (found.id, found.url) == (endpoint.id, f"http://127.0.0.1:{written['port']}")
    assert list(registry.iterdir()) == []


async def test_it_is_withdrawn_in_time_and_nothing_is_left(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    endpoint = instance(fake)
    async with announced(over_ssh(sshd, registry), endpoint):
        port = content(registry / "laptop-project.json")["port"]
        began = anyio.current_time()
    assert anyio.current_time() - began < 1.5
    assert "could not be taken off" not in caplog.text
    assert list(registry.iterdir()) == []
    assert ssh_of(sshd) == []
    path = control_path(endpoint.id)
    assert path is not None
    assert not path.parent.exists()
    await until(lambda: _closed(port))


async def test_one_login_does_for_everything(sshd: RealSshd, fake: FakeOpenCode, registry: Path) -> None:
    path = registry / "laptop-project.json"
    async with announced(tunnel(sshd, registry, instance(fake), pace=FAST)):
        first = content(path)["heartbeatAt"]
        await until(lambda: content(path)["heartbeatAt"] > first and len(fake.requests) > 3)
    assert sshd.logins == 1


async def test_a_heartbeat_writes_the_file_anew_in_one_step(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    path = registry / "laptop-project.json"
    async with announced(tunnel(sshd, registry, instance(fake), pace=FAST)):
        first, inode = content(path), path.stat().st_ino
        await until(lambda: content(path)["heartbeatAt"] != first["heartbeatAt"])  # never missing, never half
        assert path.stat().st_ino != inode
        assert path.stat().st_mode & 0o777 == 0o600
        assert {**content(path), "heartbeatAt": ""} == {**first, "heartbeatAt": ""}
        path.unlink()
        await until(path.exists)
    assert list(registry.iterdir()) == []


async def test_woken_up_it_looks_at_once(sshd: RealSshd, fake: FakeOpenCode, registry: Path) -> None:
    path = registry / "laptop-project.json"
    transport = over_ssh(sshd, registry)
    async with announced(transport, instance(fake)):
        asked = len(fake.requests)
        path.unlink()
        transport.woke()
        await until(path.exists)
        assert len(fake.requests) > asked


async def test_a_tunnel_found_dead_on_waking_up_is_given_up(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    transport = over_ssh(sshd, registry)

    def cut() -> None:
        sshd.cut()
        transport.woke()

    await ended(transport, instance(fake), cut)


async def test_after_waking_up_a_silent_connection_gets_no_second_chance(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.control.PROBE_SECONDS", 0.5)
    transport = over_ssh(sshd, registry)

    def fall_silent() -> None:
        for pid in sshd.children:
            os.kill(pid, signal.SIGSTOP)
        transport.woke()

    with anyio.fail_after(4.5):
        assert "does not lead to" in await ended(transport, instance(fake), fall_silent)
    assert ssh_of(sshd) == []


async def test_an_instance_that_hangs_is_not_taken_for_a_dead_tunnel(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.control.PROBE_SECONDS", 0.2)
    path = registry / "laptop-project.json"
    async with announced(tunnel(sshd, registry, instance(fake), pace=FAST)):
        fake.fault = Fault.HANG
        asked = len(fake.requests)
        await until(lambda: len(fake.requests) > asked + 5)
        beat = content(path)["heartbeatAt"]
        await until(lambda: content(path)["heartbeatAt"] != beat)


async def test_an_instance_that_wants_a_password_is_announced_all_the_same(
    sshd: RealSshd, registry: Path
) -> None:
    async with (
        FakeOpenCode(password="secret").serve() as fake,
        announced(over_ssh(sshd, registry), instance(fake)),
    ):
        assert (registry / "laptop-project.json").exists()


async def test_nothing_is_registered_where_nothing_answers(sshd: RealSshd, registry: Path) -> None:
    said = await refused(over_ssh(sshd, registry), instance("http://127.0.0.1:1"))
    assert "Nothing answers at http://127.0.0.1:1" in said
    assert list(registry.iterdir()) == []
    assert ssh_of(sshd) == []


@pytest.mark.parametrize("name", HELL)
async def test_no_name_is_more_than_a_name(
    sshd: RealSshd, fake: FakeOpenCode, tmp_path: Path, name: str
) -> None:
    registry = tmp_path / name[:100]
    endpoint = instance(fake, name, directory=f"/home/{name}", hostname=name, id=f"{os.getpid()} {name}")
    async with announced(over_ssh(sshd, registry), endpoint):
        (path,) = registry.iterdir()
        written = content(path)
        assert [written[key] for key in ("id", "name", "cwd", "hostname")] == [
            endpoint.id,
            name,
            f"/home/{name}",
            name,
        ]
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(registry.iterdir()) == []
    _nothing_was_run(sshd, tmp_path)


async def test_a_path_below_the_home_means_the_home_on_the_relay(
    sshd: RealSshd, fake: FakeOpenCode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home of this machine"))
    async with announced(over_ssh(sshd, "~/a 'relay'; touch PWNED"), instance(fake)):
        assert (sshd.user_home / "a 'relay'; touch PWNED" / "laptop-project.json").exists()
    _nothing_was_run(sshd, tmp_path)
    assert not (tmp_path / "home of this machine").exists()


@pytest.mark.parametrize("taken", [b"", b"junk\0junk", b'{"id": "server-2", "port": 1}', b"x" * 1_000_000])
async def test_a_file_that_is_not_ours_is_never_overwritten(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, taken: bytes
) -> None:
    other = put(registry, "laptop-project.json", taken)
    async with announced(over_ssh(sshd, registry), instance(fake)):
        assert content(registry / "laptop-project-2.json")["name"] == "laptop-project-2"
    assert list(registry.iterdir()) == [other]
    assert other.read_bytes() == taken


async def test_an_id_in_another_place_of_a_file_does_not_make_it_ours(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    other = put(registry, "laptop-project.json", b'{"cwd": "", "x": {"id": "%s",}}' % endpoint.id.encode())
    async with announced(over_ssh(sshd, registry), endpoint):
        assert (registry / "laptop-project-2.json").exists()
    assert list(registry.iterdir()) == [other]


async def test_the_file_of_an_earlier_run_is_taken_over(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    endpoint = instance(fake)
    put(registry, "laptop-project.json", b'{"id": "%s", "port": 1}' % endpoint.id.encode())
    async with announced(over_ssh(sshd, registry), endpoint):
        (path,) = registry.iterdir()
        assert content(path)["localPort"] == fake.port


async def test_a_file_that_another_instance_took_over_is_left_to_it(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    path = registry / "laptop-project.json"
    async with announced(over_ssh(sshd, registry), instance(fake)):
        put(registry, path.name, b'{"id": "thief", "port": 1}')
    assert content(path)["id"] == "thief"


@pytest.mark.parametrize("planted", ["link", "link to an id", "dangling link", "directory", "fifo"])
async def test_what_is_planted_under_our_names_is_not_followed(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, tmp_path: Path, planted: str
) -> None:
    endpoint = instance(fake)
    target = tmp_path / "target"
    precious = json.dumps({"id": endpoint.id, "port": 1}) if planted == "link to an id" else "precious"
    if planted != "dangling link":
        target.write_text(precious)
    named = registry / "laptop-project.json"
    temporary = registry / _temporary_name(endpoint.id)
    if planted == "directory":
        named.mkdir()
    elif planted == "fifo":
        os.mkfifo(named)
    else:
        named.symlink_to(target)
        temporary.symlink_to(target)
    async with announced(over_ssh(sshd, registry), endpoint):
        assert content(registry / "laptop-project-2.json")["id"] == endpoint.id
    assert not target.exists() if planted == "dangling link" else target.read_text() == precious
    assert list(registry.iterdir()) == [named]


async def test_noise_of_the_login_is_not_listened_to(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    heard = sshd.user_home / "heard"
    noise = (
        f"touch {heard}; echo 'Allocated port x' >&2; yes | head -c 300000; printf '= ok\\nno line feed'\n"
    )
    for name in (".bashrc", ".profile", ".zshenv"):
        (sshd.user_home / name).write_text(noise)
    await anyio.to_thread.run_sync(sshd.stop)
    banner = registry.parent / "banner"
    banner.write_text("Allocated port 99999 for remote forward\n\x1b[31mBe\x07ware\n" * 50)
    await anyio.to_thread.run_sync(sshd.start, f"Banner {banner}")
    async with announced(over_ssh(sshd, registry), instance(fake)):
        assert await healthy(content(registry / "laptop-project.json")["port"])
    assert heard.exists() or Path(pwd.getpwuid(os.geteuid()).pw_shell).name not in ("bash", "zsh")


async def test_cancelled_at_any_moment_nothing_is_left(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    chance = random.Random(4)
    for _ in range(12):
        with anyio.move_on_after(chance.random() * 0.4):
            await over_ssh(sshd, registry).announce(instance(fake), task_status=anyio.TASK_STATUS_IGNORED)
        assert ssh_of(sshd) == []
        await until(lambda: list(registry.iterdir()) == [])


@pytest.mark.parametrize("owner", ["everybody", "another user"])
async def test_a_directory_that_others_decide_about_is_refused(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, owner: str
) -> None:
    if owner == "everybody":
        registry.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(registry, 54321, -1)
    else:
        pytest.skip("only root can give a directory away")
    said = await refused(over_ssh(sshd, registry), instance(fake))
    assert owner in said
    assert "on the relay" in said
    assert list(registry.iterdir()) == []
    async with announced(over_ssh(sshd, registry, trust_any_owner=True), instance(fake)):
        assert len(list(registry.iterdir())) == 1


def _closed(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def _nothing_was_run(sshd: RealSshd, *more: Path) -> None:
    for place in (Path.cwd(), Path(pwd.getpwuid(os.geteuid()).pw_dir), sshd.user_home, sshd.home, *more):
        assert not (place / "PWNED").exists()


def _temporary_name(instance_id: str) -> str:
    path = control_path(instance_id)
    assert path is not None
    return f".{path.parent.name[-16:]}.tmp"
