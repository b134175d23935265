"""The background service of OpenCode 2.x is listed without any set-up; what pretends to be it is not."""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from local_relay.relay_parts import register, relay, watching
from opencode_mcp import Endpoint, LocalService, Rejection, Route, TransportError
from opencode_mcp.errors import CredentialsError, ProtocolError
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http, warm_up
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_local_relay import LocalRelay, services
from support.services import register_fake, register_service

pytestmark = pytest.mark.anyio

HOST = socket.gethostname()
SHORT = HOST.partition(".")[0]
URL = "http://127.0.0.1:49374"


async def talked(transport: LocalRelay, endpoint: Endpoint) -> str:
    """Reach an endpoint as core does; return the version that answers."""
    async with transport.connect(endpoint) as route:
        return await asked(route, vouched=endpoint.vouched)


async def asked(route: Route, *, vouched: bool) -> str:
    await anyio.to_thread.run_sync(warm_up)
    async with Http(route, seconds=5, vouched=vouched, auth=route.auth) as http:
        return (await detect(http, pid=route.pid, version=route.version)).version


async def test_it_is_listed_under_the_machines_name_and_shows_no_password(
    state: Path, registry: Path
) -> None:
    register_service(state, url=URL, password="s3cret")
    [endpoint] = await relay(registry).discover()
    assert endpoint == Endpoint(
        id="service/service.json",
        name=SHORT,
        url=URL,
        hostname=HOST,
        vouched=True,
        labels={
            "service": "service.json",
            "pid": str(os.getpid()),
            "version": "2.1.2",
            "auth": "basic",
        },
    )
    assert "s3cret" not in repr(endpoint)


async def test_that_of_another_channel_has_a_name_of_its_own(state: Path, registry: Path) -> None:
    register_service(state, url=URL)
    register_service(state, "service-next.json", url="http://[::1]:49375", version=None)
    found = await relay(registry).discover()
    assert {one.name: one.url for one in found} == {SHORT: URL, f"{SHORT}-next": "http://[::1]:49375"}


async def test_it_can_be_turned_off(state: Path, registry: Path) -> None:
    register_service(state, url=URL)
    register_service(state, "service-bad.json", url="none")
    transport = relay(registry, local_service=False)
    assert list(await transport.discover()) == []
    assert transport.rejected() == ()
    async with watching(transport) as published:
        await published.until_ids()


async def test_it_is_reached_with_the_password_of_its_file(state: Path, registry: Path) -> None:
    async with FakeOpenCode(generation=2).serve() as fake:
        register_fake(state, fake)
        transport = relay(registry)
        [endpoint] = await transport.discover()
        assert await talked(transport, endpoint) == fake.version
        assert await talked(relay(registry), endpoint) == fake.version, "nor was it looked for before"
        assert str(fake.password) not in repr(transport) + repr(vars(transport))


async def test_each_connection_reads_the_file_anew(state: Path, registry: Path) -> None:
    transport = relay(registry)
    async with FakeOpenCode(generation=2, password="first").serve() as first:
        register_fake(state, first)
        [endpoint] = await transport.discover()
    async with FakeOpenCode(generation=2, version="2.2.0", password="second").serve() as second:
        register_fake(state, second)
        assert await talked(transport, endpoint) == "2.2.0"
    (state / "opencode" / "service.json").unlink()
    with pytest.raises(TransportError, match="not there: Its file is gone"):
        await talked(transport, endpoint)


async def test_another_process_or_version_than_the_file_says_is_not_talked_to(
    state: Path, registry: Path
) -> None:
    transport = relay(registry)
    async with FakeOpenCode(generation=2, pid=os.getppid()).serve() as fake:
        wrong: list[dict[str, Any]] = [{}, {"pid": os.getppid(), "version": "2.0.0"}]
        for change in wrong:
            register_fake(state, fake, **change)
            [endpoint] = await transport.discover()
            with pytest.raises(ProtocolError, match=f"Process {os.getppid()} with OpenCode 2.1.2 answers"):
                await talked(transport, endpoint)
        paths = {request.path for request in fake.requests}
    assert paths <= {"/global/health", "/api/info", "/api/health"}


async def test_a_registration_of_it_counts_instead_and_gets_the_password_too(
    state: Path, registry: Path
) -> None:
    async with FakeOpenCode(generation=2).serve() as fake:
        register_fake(state, fake)
        port = int(fake.url.rpartition(":")[2])
        register(registry, "laptop", id="a1", port=port)
        transport = relay(registry)
        [endpoint] = await transport.discover()
        assert (endpoint.id, endpoint.name) == ("a1", "laptop-project")
        assert await talked(transport, endpoint) == fake.version
        assert await talked(relay(registry), endpoint) == fake.version
        # The same, by somebody whom nobody vouches for, counts for nothing.
        registry.chmod(0o777)
        careless = relay(registry, trust_any_owner=True)
        listed = {one.id: one for one in await careless.discover()}
        assert listed.keys() == {"a1", "service/service.json"}
        with pytest.raises(CredentialsError):
            await talked(careless, listed["a1"])
        assert await talked(careless, listed["service/service.json"]) == fake.version


async def test_other_registrations_go_their_own_way(state: Path, registry: Path, fake: FakeOpenCode) -> None:
    register_service(state, url=URL, password="s3cret")
    register(registry, "a", port=int(fake.url.rpartition(":")[2]))
    transport = relay(registry)
    [endpoint, _] = await transport.discover()
    async with transport.connect(endpoint) as route:
        assert (route.auth, route.pid, route.base_url) == (None, None, fake.url)


async def test_no_registration_can_take_the_id_of_a_service(state: Path, registry: Path) -> None:
    register_service(state, url=URL)
    register(registry, "a", id="service/service.json")
    assert [one.url for one in await relay(registry).discover()] == [URL]


@pytest.fixture
def ended() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"url": "http://127.0.0.1:1", "pi', "half written"),
        (b"", "half written"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "larger than 65536 bytes"),
        (b"[" * 60_000, "no JSON"),
        (b'{"url": "http://127.0.0.1:1"}', "no pid"),
        (b'{"pid": 1}', "no url"),
        (b'{"pid": -1, "url": "http://127.0.0.1:1"}', "no pid"),
        (b'{"pid": "1", "url": "http://127.0.0.1:1"}', "no pid"),
        (b'{"pid": 1, "url": "http://192.0.2.1:1"}', "not http on loopback"),
        (b'{"pid": 1, "url": "https://127.0.0.1:1"}', "not http on loopback"),
        (b'{"pid": 1, "url": "http://127.0.0.1"}', "not http on loopback"),
        (b'{"pid": 1, "url": "http://evil.example:1"}', "url is none"),
        (b'{"pid": 1, "url": "http://u:hunter2@127.0.0.1:1"}', "url is none"),
        (b'{"pid": 1, "url": "http://127.0.0.1:1", "version": 2}', "no text"),
        (b'{"pid": 1, "url": "http://127.0.0.1:1", "password": []}', "no text"),
        (b'{"pid": 1, "url": "http://127.0.0.1:1", "password": "\xff"}', "no JSON"),
    ],
)
async def test_what_is_no_service_file_is_left_out_told_once_and_stops_nobody(
    state: Path, registry: Path, content: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = register_service(state, "service-bad.json")
    path.write_bytes(content)
    register_service(state, url=URL)
    register(registry, "a")
    transport = relay(registry)
    for _ in range(3):
        assert [one.id for one in await transport.discover()] == ["a", "service/service.json"]
        [rejection] = transport.rejected()
        assert rejection.source == str(path)
        assert why in rejection.reason
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert why in record.message
    assert "hunter2" not in record.message


async def test_files_that_only_look_alike_are_no_service_files(state: Path, registry: Path) -> None:
    for name in ("service.json.lock", "service.json.tmp", "model.json", "lock.service.json"):
        register_service(state, name, url=URL)
    transport = relay(registry)
    assert list(await transport.discover()) == []
    assert transport.rejected() == ()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o620])
async def test_a_file_that_others_can_read_or_write_is_not_used(
    state: Path, registry: Path, mode: int
) -> None:
    register_service(state, url=URL, mode=mode)
    transport = relay(registry, trust_any_owner=True)
    assert list(await transport.discover()) == []
    assert "chmod 600" in transport.rejected()[0].reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
async def test_a_file_of_another_user_is_not_used(state: Path, registry: Path) -> None:
    os.chown(register_service(state, url=URL), 54321, -1)
    transport = relay(registry, trust_any_owner=True)
    assert list(await transport.discover()) == []
    assert "another user (uid 54321)" in transport.rejected()[0].reason


async def test_a_service_that_was_killed_is_told_with_how_to_start_it(
    state: Path, registry: Path, ended: int
) -> None:
    register_service(state, url=URL, pid=ended)
    transport = relay(registry)
    assert list(await transport.discover()) == []
    assert "opencode service start" in transport.rejected()[0].reason
    listed = Endpoint(id="service/service.json", name="x", url=URL)
    with pytest.raises(TransportError, match=f"process {ended} is gone"):
        await talked(transport, listed)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
async def test_a_process_that_ended_and_was_not_asked_how_is_gone_too(state: Path, registry: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        register_service(state, url=URL, pid=process.pid)
        transport = relay(registry)
        assert list(await transport.discover()) == []
        assert f"process {process.pid} is gone" in transport.rejected()[0].reason


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
async def test_something_else_than_a_file_is_left_out_and_nothing_waits_for_it(
    state: Path, registry: Path, kind: str
) -> None:
    path = state / "opencode" / "service.json"
    path.parent.mkdir(parents=True)
    if kind == "link":
        path.symlink_to(register_service(state, "elsewhere", url=URL))
    else:
        os.mkfifo(path, 0o600) if kind == "pipe" else path.mkdir()
    transport = relay(registry)
    with anyio.fail_after(5):
        assert list(await transport.discover()) == []
    assert [one.source for one in transport.rejected()] == [str(path)]


async def test_service_files_that_cannot_be_listed_stop_nobody(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(services, "local_services", refused)
    register(registry, "a")
    transport = relay(registry)
    assert [one.id for one in await transport.discover()] == ["a"]
    assert "Permission denied" in transport.rejected()[0].reason


async def test_a_file_system_that_hangs_keeps_the_service_and_stops_nobody(
    state: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_PATIENCE_SECONDS", 0.1)
    register_service(state, url=URL)
    transport = relay(registry)
    await transport.discover()
    released, hanging = threading.Event(), 0

    def hangs() -> tuple[Sequence[LocalService], Sequence[Rejection]]:
        nonlocal hanging
        hanging += 1
        released.wait(30)
        return [], []

    monkeypatch.setattr(services, "local_services", hangs)
    register(registry, "a")
    try:
        for _ in range(3):
            assert [one.id for one in await transport.discover()] == ["a", "service/service.json"]
            assert "does not answer" in transport.rejected()[0].reason
    finally:
        released.set()
    assert hanging == 1, "no more threads than one wait for it"
    with anyio.fail_after(5):
        while len(await transport.discover()) > 1:
            await anyio.sleep(0.01)
    assert transport.rejected() == ()


@pytest.mark.slow
async def test_its_directory_appears_its_file_is_replaced_and_goes(state: Path, registry: Path) -> None:
    register(registry, "a")
    async with watching(relay(registry)) as published:
        await published.until_ids("a")
        path = register_service(state, url=URL)
        await published.until_ids("a", "service/service.json")
        register_service(state, url="http://127.0.0.1:49380")
        await published.until(lambda found: found[-1].url.endswith(":49380"))
        register_service(state, url="http://127.0.0.1:49380", pid=os.getppid())
        await published.until(lambda found: found[-1].labels.get("pid") == str(os.getppid()))
        register(registry, "b", id="b", port=49380)
        await published.until_ids("a", "b")
        path.unlink()
        register(registry, "b", id="b", port=49381)
        await published.until(lambda found: found[-1].url.endswith(":49381"))


@pytest.mark.slow
async def test_what_opencode_writes_beside_it_publishes_nothing(state: Path, registry: Path) -> None:
    register_service(state, url=URL)
    async with watching(relay(registry)) as published:
        await published.until_ids("service/service.json")
        for number in range(20):
            (state / "opencode" / f"model{number}.json").write_text("{}")
        register(registry, "a")
        await published.until_ids("a", "service/service.json")
        assert len(published.sets) == 2


async def test_without_a_home_the_registry_is_read_all_the_same(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Path:
        raise OSError("Could not determine home directory.")

    monkeypatch.setattr(services, "local_services", none)
    monkeypatch.setattr(services, "services_directory", none)
    monkeypatch.setattr("opencode_mcp_local_relay.transport.services_directory", none)
    register(registry, "a")
    async with watching(relay(registry)) as published:
        await published.until_ids("a")
