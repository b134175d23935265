"""That the tailnet of `support.tailnet` can be trusted; what it is for is tested elsewhere."""

import json
import shutil
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import ByteStream, SocketAttribute

from support.require import skip_or_fail
from support.tailnet import Node, Tailnet, tailnet

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

_MASK = 36866  # initial state, changes and patches of peers
_SECONDS = 10
_PORT = 14096


@pytest.fixture
async def net() -> AsyncIterator[Tailnet]:
    async with tailnet() as one:
        yield one


@asynccontextmanager
async def local_api(node: Node) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(uds=str(node.socket))
    base = "http://local-tailscaled.sock/localapi/v0/"
    async with httpx2.AsyncClient(
        transport=transport, base_url=base, timeout=_SECONDS, trust_env=False
    ) as client:
        yield client


async def ask(node: Node, path: str) -> Any:
    async with local_api(node) as client:
        return (await client.get(path)).raise_for_status().json()


class Bus:
    """What a node's bus says, line by line."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.aiter_lines()

    async def until(self, key: str) -> Any:
        """Read on to the next line that says something of `key`, and return that."""
        with anyio.fail_after(_SECONDS):
            async for line in self._lines:
                if value := json.loads(line).get(key):
                    return value
        raise AssertionError(f"the bus ended before it said {key}")


@asynccontextmanager
async def watching(node: Node) -> AsyncGenerator[Bus]:
    async with local_api(node) as client, client.stream("GET", f"watch-ipn-bus?mask={_MASK}") as response:
        yield Bus(response)


async def peer(node: Node, other: Node) -> dict[str, Any]:
    """What the status of a node says of another; empty if nothing."""
    peers = (await ask(node, "status"))["Peer"] or {}
    return next((each for each in peers.values() if each["ID"] == other.id), {})


async def until_peer(node: Node, other: Node, **expected: Any) -> dict[str, Any]:
    """Wait until the status of a node says something of another."""
    with anyio.fail_after(_SECONDS):
        while True:
            seen = await peer(node, other)
            if expected.items() <= seen.items():
                return seen
            await anyio.sleep(0.01)


async def serve(node: Node, session: str, handlers: dict[str, Any]) -> None:
    """Serve HTTP on `_PORT` of a node for as long as the bus session lives."""
    name = f"{node.dns_name.rstrip('.')}:{_PORT}"
    config = {"TCP": {str(_PORT): {"HTTP": True}}, "Web": {name: {"Handlers": handlers}}}
    async with local_api(node) as client:
        tag = (await client.get("serve-config")).headers["etag"]
        posted = await client.post(
            "serve-config", json={"Foreground": {session: config}}, headers={"If-Match": tag}
        )
        assert posted.status_code == 200, posted.text


async def dial(node: Node, host: str, port: int) -> tuple[int, bytes]:
    """Ask for `/` of an HTTP server through a node's `dial`; returns the status of `dial`, and the answer."""
    with anyio.fail_after(_SECONDS):
        async with await anyio.connect_unix(str(node.socket)) as stream:
            await stream.send(
                b"POST /localapi/v0/dial HTTP/1.1\r\nHost: local-tailscaled.sock\r\nContent-Length: 0\r\n"
                b"Connection: upgrade\r\nUpgrade: ts-dial\r\nDial-Network: tcp\r\n"
                + f"Dial-Host: {host}\r\nDial-Port: {port}\r\n\r\n".encode()
            )
            head, rest = await _head(stream)
            status = int(head.split()[1])
            if status != 101:
                return status, rest
            await stream.send(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            async for piece in stream:
                rest += piece
            return status, rest


async def _head(stream: ByteStream) -> tuple[bytes, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive()
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


@asynccontextmanager
async def listening(answer: Callable[[ByteStream], Awaitable[None]]) -> AsyncGenerator[int]:
    """Listen on loopback; yields the port."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def test_the_status_shows_peers_with_user_tags_and_dns_name(net: Tailnet):
    b = await net.add("b", login="bob@example.com")
    c = await net.add("c", tags=["tag:x"], host_name="other")
    a = await net.add("a")

    status = await ask(a, "status")

    assert (status["BackendState"], status["Self"]["ID"]) == ("Running", a.id)
    assert status["CurrentTailnet"]["MagicDNSSuffix"] == "tail.test"
    seen_b, seen_c = await peer(a, b), await peer(a, c)
    assert (seen_b["DNSName"], seen_b["Online"], tuple(seen_b["TailscaleIPs"])) == (
        "b.tail.test.",
        True,
        b.ips,
    )
    assert status["User"][str(seen_b["UserID"])]["LoginName"] == "bob@example.com"
    assert (seen_c["DNSName"], seen_c["HostName"], seen_c["Tags"]) == ("c.tail.test.", "other", ["tag:x"])
    assert status["User"][str(seen_c["UserID"])]["LoginName"] == "tagged-devices"


async def test_the_bus_tells_who_comes_goes_and_is_removed(net: Tailnet):
    a = await net.add("a")
    async with watching(a) as bus:
        b = await net.add("b")
        [come] = await bus.until("PeersChanged")
        await net.stop(b)
        [gone] = await bus.until("PeerChangedPatch")
        assert not b.socket.exists()
        again = await net.start(b)
        await until_peer(a, again, Online=True)
        await net.remove(b)
        removed = await bus.until("PeersRemoved")

    assert (come["StableID"], come["Name"], come["Online"]) == (b.id, "b.tail.test.", True)
    assert (gone["NodeID"], gone["Online"]) == (b.node_id, False)
    assert (again.id, again.ips, again.node_key) == (b.id, b.ips, b.node_key)
    assert removed == [b.node_id]
    assert (await ask(b, "status"))["BackendState"] == "NeedsLogin"


async def test_the_control_server_changes_what_peers_see(net: Tailnet):
    a, b = await net.add("a"), await net.add("b")

    await net.set_online(b, False)
    await until_peer(a, b, Online=False)
    await net.set_online(b, None)
    await until_peer(a, b, Online=True)
    await net.expire(b)
    await until_peer(a, b, Expired=True)
    await net.expire(b, False)
    renamed = await net.rename(b, "bee")
    await until_peer(a, b, DNSName="bee.tail.test.", HostName="b")
    rotated = await net.rotate(b)
    await until_peer(a, b, PublicKey=rotated.node_key)

    assert renamed.dns_name == "bee.tail.test."
    assert (rotated.id, rotated.ips) == (b.id, b.ips)
    assert rotated.node_key != b.node_key


async def test_a_name_comes_back_as_another_machine(net: Tailnet):
    a, old = await net.add("a"), await net.add("b")
    await net.remove(old)

    new = await net.add("b")

    await until_peer(a, new, DNSName=old.dns_name)
    assert await peer(a, old) == {}
    assert new.ips != old.ips
    with pytest.raises(RuntimeError, match="there is one already"):
        await net.add("b")


async def test_served_through_a_session_until_it_ends_and_known_by_whois(net: Tailnet):
    a, b = await net.add("a", login="ann@example.com"), await net.add("b", login="bob@example.com")
    seen: list[str] = []

    async def answer(stream: ByteStream) -> None:
        async with stream:
            head, _ = await _head(stream)
            seen.append(head.decode())
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    async with listening(answer) as behind:
        async with watching(b) as bus:
            proxy = {"/": {"Proxy": f"http://127.0.0.1:{behind}"}, "/text": {"Text": "static"}}
            await serve(b, await bus.until("SessionID"), proxy)
            by_name, by_ip = await dial(a, "b.tail.test", _PORT), await dial(a, b.ips[0], _PORT)
            assert list(await ask(b, "serve-config")) == ["Foreground"]
        with anyio.fail_after(_SECONDS):
            while (await ask(b, "serve-config") or {}).get("Foreground"):
                await anyio.sleep(0.01)

    assert by_name[0] == 101
    assert by_name[1].endswith(b"\r\n\r\nhello")
    assert b"Tailscale-User-Login: ann@example.com" in seen[0].encode()
    assert by_ip[0] == 101
    assert b" 404 " in by_ip[1].splitlines()[0]  # serve goes by the Host header
    whois = await ask(b, f"whois?addr={a.ips[0]}:1")
    assert (whois["Node"]["StableID"], whois["UserProfile"]["LoginName"]) == (a.id, "ann@example.com")


async def test_what_is_not_served_is_refused_and_what_is_blocked_gets_no_answer(net: Tailnet):
    a, b = await net.add("a"), await net.add("b")

    async def hangs_up(stream: ByteStream) -> None:
        await stream.aclose()

    async with listening(hangs_up) as port:
        status, reason = await dial(a, b.ips[0], port)  # not forwarded to loopback, as tailscaled would
        await net.block(b, a)
        with anyio.fail_after(_SECONDS):
            answered = True
            while answered:
                with anyio.move_on_after(0.5) as waiting:
                    await dial(a, b.ips[0], port)
                answered = not waiting.cancelled_caught
        await net.block(b)
        assert (await dial(a, b.ips[0], port))[0] == 502

    assert status == 502
    assert b"refused" in reason


async def test_it_needs_no_network_but_loopback():
    alone = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        skip_or_fail("`unshare` or `ip` is missing: install util-linux and iproute2")
    if subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        skip_or_fail("no network namespace can be made here: run as root, or allow user namespaces")

    async with tailnet(within=alone) as net:
        a, b = await net.add("a"), await net.add("b")
        async with watching(b) as bus:
            await serve(b, await bus.until("SessionID"), {"/": {"Text": "hello"}})
            status, text = await dial(a, "b.tail.test", _PORT)

    assert (status, text.partition(b"\r\n\r\n")[2]) == (101, b"hello")
