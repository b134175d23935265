"""The whole transport on loopback, which takes no rights: multicast DNS works there too, within seconds."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_interface
from typing import Any

import anyio
import pytest
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from opencode_mcp import Endpoint, Transport, TransportError
from opencode_mcp.testing import FakeOpenCode
from opencode_mcp_mdns import MDns, MDnsSettings
from opencode_mcp_mdns.network import Attached, Network

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PEER = "127.0.0.2"
"""Not an address of this machine, as far as the transport knows, and yet in reach."""
SECONDS = 20
LOOPBACK = Network([Attached("lo", 1, ip_interface("127.0.0.1/8"))])


def transport(**settings: Any) -> MDns:
    return MDns(MDnsSettings(**settings), read_network=lambda: LOOPBACK)


def endpoint(fake: FakeOpenCode, **more: Any) -> Endpoint:
    """Return an instance of this machine as core describes it."""
    fields = {
        "id": secrets.token_hex(16),
        "name": f"web-{secrets.token_hex(4)}",
        "url": fake.url,
        "hostname": "laptop",
        "directory": "/home/me/shop",
        "labels": {"auth": "basic", "version": "1.18.33"},
        **more,
    }
    return Endpoint.model_validate(fields)


class Picture:
    """What a transport has published."""

    def __init__(self) -> None:
        self.published: list[Sequence[Endpoint]] = []
        self._changed = anyio.Event()

    def publish(self, endpoints: Sequence[Endpoint]) -> None:
        self.published.append(endpoints)
        self._changed.set()
        self._changed = anyio.Event()

    def named(self, name: str) -> Endpoint | None:
        now = self.published[-1] if self.published else ()
        return next((one for one in now if one.name == name), None)

    async def until(self, name: str, *, there: bool = True) -> Endpoint | None:
        with anyio.fail_after(SECONDS):
            while not self.published or (self.named(name) is not None) is not there:
                await self._changed.wait()
        return self.named(name)


@asynccontextmanager
async def watched(one: Transport) -> AsyncGenerator[Picture]:
    picture = Picture()
    async with anyio.create_task_group() as group:
        group.start_soon(one.watch, picture.publish)
        yield picture
        group.cancel_scope.cancel()


@asynccontextmanager
async def announced(one: MDns, instance: Endpoint) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as group:
        with anyio.fail_after(SECONDS):
            await group.start(partial(one.announce, instance))
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def advertised(name: str, port: int, address: str = PEER) -> AsyncGenerator[None]:
    """Advertise with zeroconf alone."""
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    info = AsyncServiceInfo(
        "_opencode._tcp.local.",
        f"{name}._opencode._tcp.local.",
        port=port,
        properties={"id": name, "name": name},
        server=f"{name}.local.",
        parsed_addresses=[address],
    )
    untyped: Any = zeroconf
    await (await untyped.async_register_service(info, cooperating_responders=True))
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await zeroconf.async_close()


@asynccontextmanager
async def browsing(name: str) -> AsyncGenerator[tuple[list[ServiceStateChange], AsyncServiceInfo]]:
    """Look with zeroconf alone for a service whose name begins so; begin once it has been resolved."""
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    heard: list[ServiceStateChange] = []
    names: list[str] = []

    def hear(zeroconf: Any, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if name.startswith(wanted):
            heard.append(state_change)
            names.append(name)

    wanted = name
    browser = AsyncServiceBrowser(zeroconf.zeroconf, "_opencode._tcp.local.", handlers=[hear])
    try:
        with anyio.fail_after(SECONDS):
            while not names:
                await anyio.sleep(0.02)
            info = AsyncServiceInfo("_opencode._tcp.local.", names[0])
            assert await info.async_request(zeroconf.zeroconf, 5000)
        yield heard, info
    finally:
        with anyio.CancelScope(shield=True):
            await browser.async_cancel()
            await zeroconf.async_close()


async def test_an_advertised_instance_is_published_and_goes_when_it_leaves() -> None:
    name = f"peer-{secrets.token_hex(4)}"
    async with watched(transport()) as picture, FakeOpenCode("/srv/shop").serve(host=PEER) as fake:
        async with advertised(name, fake.port):
            found = await picture.until(name)
            assert found is not None
            assert (found.id, found.url) == (name, fake.url)
            assert found.directory == "/srv/shop"
            assert not found.vouched
        assert picture.named(name) is not None  # a goodbye is but a hint: it answers
        await fake.kill()
        await picture.until(name, there=False)


async def test_what_does_not_answer_as_an_opencode_is_left_out_with_the_reason() -> None:
    name = f"peer-{secrets.token_hex(4)}"
    one = transport()
    async with watched(one) as picture, advertised(name, 9):
        with anyio.fail_after(SECONDS):
            while not [left for left in one.rejected() if name in left.source]:
                await anyio.sleep(0.02)
        assert picture.named(name) is None


async def test_an_announced_instance_can_be_read_by_anybody_and_goes_with_a_goodbye() -> None:
    async with FakeOpenCode(password="pw").serve() as fake:
        instance = endpoint(fake)
        async with announced(transport(), instance), browsing(instance.name) as (heard, info):
            assert info.name == f"{instance.name}-{instance.id[:6]}._opencode._tcp.local."
            assert info.parsed_addresses() == ["127.0.0.1"]
            assert info.port == fake.port
            assert info.server != "opencode.local."
            assert info.properties[b"id"] == instance.id.encode()
            assert info.properties[b"cwd"] == b"shop"
            assert info.properties[b"auth"] == b"basic"
            assert len(info.text) <= 400
        async with browsing_until_gone(instance.name, transport(), instance) as heard:
            assert heard[-1] is ServiceStateChange.Removed


@asynccontextmanager
async def browsing_until_gone(
    name: str, one: MDns, instance: Endpoint
) -> AsyncGenerator[list[ServiceStateChange]]:
    """Announce, look, withdraw, and wait for the goodbye."""
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def announce(*, task_status: Any) -> None:
            with scope:
                await one.announce(instance, task_status=task_status)

        await group.start(announce)
        async with browsing(name) as (heard, _):
            scope.cancel()
            with anyio.fail_after(SECONDS):
                while ServiceStateChange.Removed not in heard:
                    await anyio.sleep(0.02)
            yield heard


async def test_our_own_machine_is_looked_at_only_for_what_we_announce_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours: dict[str, str] = {}
    monkeypatch.setattr("opencode_mcp_mdns.lookout.announced_here", lambda: ours)
    async with FakeOpenCode(password="pw").serve() as fake:
        mine, other_port, stranger = (endpoint(fake) for _ in range(3))
        ours |= {mine.id: fake.url, other_port.id: "http://127.0.0.1:1"}
        one = transport()
        async with watched(one) as picture, announced(one, other_port), announced(one, stranger):
            async with announced(one, mine):
                found = await picture.until(mine.name)
                assert found is not None
                assert found.id == mine.id
            assert picture.named(other_port.name) is None
            assert picture.named(stranger.name) is None
            assert fake.url not in {seen.url for seen in picture.published[-1] if seen.id != mine.id}


async def test_cancelling_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    async with FakeOpenCode(password="pw").serve() as fake:
        instance = endpoint(fake)
        running = asyncio.all_tasks()
        one = transport()
        async with watched(one), announced(one, instance):
            pass
        await anyio.sleep(0)
        assert asyncio.all_tasks() == running
    assert asyncio.all_tasks() - before == set()


async def test_discover_and_inspect_look_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeOpenCode(password="pw").serve() as fake:
        instance = endpoint(fake)
        monkeypatch.setattr("opencode_mcp_mdns.lookout.announced_here", lambda: {instance.id: fake.url})
        one = transport()
        [missing] = await one.inspect(instance)
        assert missing.ok is False
        async with announced(one, instance):
            [found] = await one.inspect(instance)
            assert found.ok
            assert fake.url in found.detail
            with anyio.fail_after(SECONDS):
                while instance.id not in {each.id for each in await one.discover()}:
                    pass  # it looks for 3 s, and a busy machine may take longer to answer


async def test_without_a_network_it_waits_for_one(caplog: pytest.LogCaptureFixture) -> None:
    now = Network([])
    one = MDns(MDnsSettings(), read_network=lambda: now)
    caplog.set_level(logging.WARNING)
    async with FakeOpenCode(password="pw").serve() as fake, anyio.create_task_group() as group:
        instance = endpoint(fake)
        group.start_soon(partial(group.start, partial(one.announce, instance)))
        with anyio.fail_after(SECONDS):
            while "no network" not in caplog.text:
                await anyio.sleep(0.02)
        now = LOOPBACK
        one.woke()
        async with browsing(instance.name):
            group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"labels": {"auth": "none"}}, "asks for no password"),
        ({"url": "http://127.0.0.1:9"}, "does not listen there on port 9"),
        ({"url": "http://laptop:4096"}, "must say an IP address"),
        ({"url": "http://192.0.2.7:4096"}, "does not listen there"),
    ],
)
async def test_what_nobody_should_or_could_reach_is_not_announced(more: dict[str, Any], why: str) -> None:
    async with FakeOpenCode(password="pw").serve() as fake:
        with pytest.raises(TransportError, match=why):
            await transport().announce(endpoint(fake, **more), task_status=anyio.TASK_STATUS_IGNORED)


async def test_a_machine_without_multicast_dns_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("opencode_mcp_mdns.session.AsyncZeroconf", refuse)
    with pytest.raises(TransportError, match=r"Address already in use.*5353"):
        await transport().watch(lambda _: None)
