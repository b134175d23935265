"""The registry on the relay as another process sees it: who is registered there, and a way to each."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import httpx2
import pytest

from local_relay.relay_parts import ORIGINAL, ids_of, put, register, relay
from local_relay.ssh_parts import NO_CONTROL, announced, instance, over_ssh, ssh_of, with_tools
from opencode_mcp import Endpoint, OpenCodeMCPError, Route, Transport, TransportError
from opencode_mcp.testing import FakeOpenCode
from support.connected import PROGRAM
from support.fleets import until
from support.real_sshd import RealSshd

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where directories for sockets are made; none may be left."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr("tempfile.tempdir", short)
        yield Path(short)
        assert list(Path(short).iterdir()) == []


async def answer(route: Route) -> bool:
    async with httpx2.AsyncClient(base_url=route.base_url, transport=route.transport, timeout=5) as client:
        response = await client.get("/global/health")
    return response.json()["healthy"] is True


async def test_without_a_relay_the_registry_is_the_transport_itself(registry: Path) -> None:
    transport = relay(registry)
    async with transport.registry() as opened_one:
        assert opened_one is transport


async def test_who_is_announced_on_the_relay_is_found_there_and_can_be_asked(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, rooms: Path
) -> None:
    by_hand = put(registry, "by-hand.json", json.dumps({**ORIGINAL, "port": fake.port}, indent=2).encode())
    one = instance(fake)
    async with (
        FakeOpenCode().serve() as second,
        announced(over_ssh(sshd, registry), one),
        announced(over_ssh(sshd, registry), instance(second, "other", id="id 'é\"")),
    ):
        logins = sshd.logins
        async with over_ssh(sshd, registry).registry() as there:
            found = {endpoint.id: endpoint for endpoint in await there.discover()}
            assert found.keys() == {"by-hand", one.id, "id 'é\""}
            assert found["by-hand"].name == "laptop-project"
            assert all(endpoint.vouched for endpoint in found.values())
            async with anyio.create_task_group() as group:
                for endpoint in found.values():
                    group.start_soon(ask, there, endpoint)
            (room,) = (path for path in rooms.iterdir() if (path / "m").exists())
            assert room.stat().st_mode & 0o777 == 0o700
            assert [path.name for path in room.iterdir()] == ["m"]  # no way is left once it is closed
            assert sshd.logins == logins + 1
    assert by_hand.exists()


async def ask(there: Transport, endpoint: Endpoint) -> None:
    async with there.connect(endpoint) as route:
        assert await answer(route)


async def ask_as_core_does(there: Transport, endpoint: Endpoint) -> None:
    async with there.connect(endpoint) as route:
        try:
            assert await answer(route)
        except httpx2.HTTPError as error:
            raise OpenCodeMCPError("The connection to it broke.") from error


async def test_names_and_contents_of_files_are_nothing_but_data(
    sshd: RealSshd, registry: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = json.dumps(ORIGINAL).encode()
    accepted = {
        "$(touch PWNED) `touch PWNED` ' \" \\ *.json": 1,
        "-rf.json": 2,
        "ü ☃.json": 3,
        "two  blanks.json": 4,
    }
    for name, port in accepted.items():
        put(registry, name, json.dumps({**ORIGINAL, "port": port}).encode())
    crlf = json.dumps({**ORIGINAL, "port": 5, "cwd": "/a\\b/%s/$HOME"}, indent=4).replace("\n", "\r\n")
    put(registry, "crlf.json", b"\xef\xbb\xbf" + crlf.encode() + b"\n\n")
    left_out = {
        "empty.json": b"",
        "large.json": b" " * 65536 + good,
        "no-json.json": b"$(touch PWNED)\n= ok safe\n\0\xff",
        "control\r.json": good.replace(b"41001", b"6"),
        "lines.json": b"\n" * 60000,
        "new\nline.json": good,
    }
    for name, content in left_out.items():
        put(registry, name, content)
    for name in (".hidden.json", "~x.json", "#x.json", "registration.txt"):
        put(registry, name, good)
    (registry / "link.json").symlink_to(put(tmp_path, "target.json", good))
    (registry / "nowhere.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(registry / "pipe.json")
    (registry / "folder.json").mkdir()
    async with over_ssh(sshd, registry).registry() as there:
        found = await there.discover()
        assert ids_of(found) == sorted([*(name.removesuffix(".json") for name in accepted), "crlf"])
        assert {endpoint.url for endpoint in found} == {f"http://127.0.0.1:{port}" for port in range(1, 6)}
        assert {endpoint.directory for endpoint in found} == {ORIGINAL["cwd"], "/a\\b/%s/$HOME"}
        reasons = {one.source.rpartition("/")[2]: one.reason for one in there.rejected()}
    assert reasons.keys() == {
        *(" ".join(name.splitlines()) for name in left_out),
        *("link.json", "nowhere.json", "pipe.json", "folder.json"),
    }
    assert "line break" in reasons["new line.json"]
    assert reasons["large.json"] == "it is larger than 64 KiB"
    assert reasons["pipe.json"] == reasons["link.json"] == "it is not a regular file"
    assert len(caplog.messages) == len(reasons)
    assert not list(sshd.home.rglob("PWNED"))
    assert not Path("PWNED").exists()
    assert not Path("~/PWNED").expanduser().exists()


async def test_of_two_files_for_one_server_the_newer_counts_as_on_this_machine(
    sshd: RealSshd, registry: Path
) -> None:
    register(registry, "old", id="same", port=1)
    register(registry, "new", id="same", port=2, connectedAt="2026-01-02T03:04:05.678Z")
    register(registry, "stem")
    register(registry, "states-it", id="stem", port=4)
    async with over_ssh(sshd, registry).registry() as there:
        assert await there.discover() == [*await relay(registry).discover()]


async def test_the_very_many_files_are_bounded(
    sshd: RealSshd, registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.relay._LIST_LIMIT", 3)
    for number in range(4):
        register(registry, f"i{number}", port=1 + number)
    async with over_ssh(sshd, registry).registry() as there:
        assert ids_of(await there.discover()) == ["i0", "i1", "i2"]
    assert "more than 3 registration files" in caplog.text


async def test_a_directory_that_is_missing_holds_nobody_and_one_below_the_home_is_found(
    sshd: RealSshd, registry: Path
) -> None:
    async with over_ssh(sshd, registry / "none").registry() as there:
        assert await there.discover() == []
    (sshd.user_home / "a b").mkdir(mode=0o700)
    register(sshd.user_home / "a b", "mine")
    async with over_ssh(sshd, "~/a b").registry() as there:
        assert ids_of(await there.discover()) == ["mine"]


async def test_what_others_can_write_is_refused_or_not_vouched_for(
    sshd: RealSshd, registry: Path, disown: Callable[[Path], None]
) -> None:
    register(registry, "mine", port=1)
    register(registry, "anybodys", port=2).chmod(0o666)
    foreign = 0
    if os.geteuid() == 0:
        disown(register(registry, "foreign", port=3))
        foreign = 1
    async with over_ssh(sshd, registry).registry() as there:
        assert {one.id: one.vouched for one in await there.discover()} == {"mine": True}
        assert len(there.rejected()) == 1 + foreign
    async with over_ssh(sshd, registry, trust_any_owner=True).registry() as there:
        found = await there.discover()
        assert len(found) == 2 + foreign
        assert [one.id for one in found if one.vouched] == ["mine"]
    registry.chmod(0o777)
    async with over_ssh(sshd, registry).registry() as there:
        with pytest.raises(TransportError, match="written by everybody"):
            await there.discover()
    async with over_ssh(sshd, registry, trust_any_owner=True).registry() as there:
        assert not any(one.vouched for one in await there.discover())
    if foreign:
        registry.chmod(0o700)
        disown(registry)
        async with over_ssh(sshd, registry).registry() as there:
            with pytest.raises(TransportError, match="belongs to another user"):
                await there.discover()


async def test_what_is_no_directory_is_an_error(sshd: RealSshd, tmp_path: Path) -> None:
    async with over_ssh(sshd, put(tmp_path, "file", b"")).registry() as there:
        with pytest.raises(TransportError, match="is not a directory"):
            await there.discover()


async def test_a_relay_with_hardly_any_tools_can_be_read(sshd: RealSshd, registry: Path) -> None:
    sshd.stop()
    sshd.start(with_tools(sshd))
    register(registry, "mine")
    async with over_ssh(sshd, registry).registry() as there:
        (endpoint,) = await there.discover()
        assert endpoint.vouched
    (sshd.home / "tools" / "ls").unlink()
    async with over_ssh(sshd, registry).registry() as there:
        (endpoint,) = await there.discover()
        assert not endpoint.vouched


async def test_a_relay_that_does_not_let_us_in_is_an_error(
    sshd: RealSshd, registry: Path, rooms: Path
) -> None:
    sshd.distrust_user()
    with pytest.raises(TransportError, match="refused the login"):
        async with over_ssh(sshd, registry).registry():
            pass


async def test_a_relay_that_says_nothing_is_waited_for_so_long_and_no_longer(
    sshd: RealSshd, registry: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp_local_relay.remote._ARRIVE_SECONDS", 0.2)
    with anyio.fail_after(3), pytest.raises(TransportError, match="has not answered"):
        async with over_ssh(sshd.wrapper("mute", "exec sleep 60"), registry).registry():
            pass


async def test_the_users_own_errors_pass_through(sshd: RealSshd, registry: Path, rooms: Path) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with over_ssh(sshd, registry).registry():
            raise TimeoutError("mine")
    assert ssh_of(sshd) == []


async def test_without_multiplexing_instances_are_found_and_it_is_said_that_they_cannot_be_asked(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, rooms: Path
) -> None:
    register(registry, "mine", port=fake.port)
    own = f"{sshd.command} -o ControlPath=none"
    for command in (sshd.wrapper("no-control", NO_CONTROL), own):
        async with over_ssh(command, registry).registry() as there:
            (endpoint,) = await there.discover()
            with pytest.raises(TransportError, match="need ssh's multiplexing"):
                async with there.connect(endpoint):
                    pass


async def test_a_relay_that_allows_no_forwarding_is_told_of(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, rooms: Path
) -> None:
    sshd.stop()
    sshd.start("AllowTcpForwarding remote")
    register(registry, "mine", port=fake.port)
    async with over_ssh(sshd, registry).registry() as there:
        (endpoint,) = await there.discover()
        with pytest.raises(TransportError, match="AllowTcpForwarding"):
            await ask_as_core_does(there, endpoint)


async def test_a_connection_that_breaks_is_an_error_and_leaves_nothing(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, rooms: Path
) -> None:
    register(registry, "mine", port=fake.port)
    async with over_ssh(sshd, registry).registry() as there:
        (endpoint,) = await there.discover()
        async with there.connect(endpoint) as route:
            assert await answer(route)
            sshd.stop()
            await until(lambda: ssh_of(sshd) == [])
        with pytest.raises(TransportError):
            async with there.connect(endpoint):
                pass
        with pytest.raises(TransportError, match="connection to the relay broke"):
            await there.discover()


@pytest.mark.parametrize("while_", ["logging in", "connecting", "connected"])
async def test_cancelled_at_any_time_nothing_is_left(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, rooms: Path, while_: str
) -> None:
    endpoint = instance(fake)

    async def use() -> None:
        async with over_ssh(sshd, registry).registry() as there:
            if while_ == "connecting":
                group.cancel_scope.cancel()
            async with there.connect(endpoint) as route:
                assert await answer(route)
                group.cancel_scope.cancel()
                await anyio.sleep(10)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            if while_ == "logging in":
                await until(lambda: list(rooms.iterdir()))
                group.cancel_scope.cancel()
    assert ssh_of(sshd) == []


async def test_the_command_lists_the_sessions_of_the_relays_instances(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, tmp_path: Path
) -> None:
    async with httpx2.AsyncClient(base_url=fake.url) as client:
        await client.post("/session", json={"title": "Mend the roof"})
    (session,) = fake.sessions
    here = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "PATH": os.environ["PATH"]}
    relayed = {"RELAY_SSH_CMD": sshd.command, "RELAY_REGISTRY_DIR": str(registry)}
    async with FakeOpenCode(password="s3cret").serve() as locked:
        register(registry, "roof", name="roof", port=fake.port, hostname="attic", cwd="/home/me/roof")
        register(registry, "cellar", name="cellar", port=locked.port)
        async with announced(over_ssh(sshd, registry), instance(fake, "tunnelled")):
            with anyio.fail_after(30):
                done = await anyio.run_process(
                    [*PROGRAM, "sessions"],
                    env={**here, **relayed, "TRANSPORT": "local-relay", "OPENCODE_SERVER_PASSWORD": "s3cret"},
                    stdin=subprocess.DEVNULL,
                    check=False,
                )
    said = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.findall(r"^\S+", said, re.MULTILINE) == ["cellar", "roof", "tunnelled"]
    assert "roof (attic, /home/me/roof, 1.18.33)" in said
    assert len(re.findall(rf"^  {session} \S+ \S+ Mend the roof$", said, re.MULTILINE)) == 2
    assert "  no session yet" in said  # of the one that wants a password, which it got
    assert ssh_of(sshd) == []
