"""The fake tailscaled answers as the real one does, as far as the source of the real one says."""

import contextlib
import functools
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from opencode_mcp.testing import FakeOpenCode
from support.answering import answering
from support.fake_tailscaled import FakeTailscaled, RefusedError, ServedWeb, Stream, join
from support.fake_tailscaled_wire import chunk, connect_unix, head, read_head
from support.fleets import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # all together

ALL = 2 | 4096 | 32768
PORT = 14096
SECONDS = 5


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
    async with FakeTailscaled(tmp_path / "s") as one:
        yield one


@pytest.fixture
async def client(fake: FakeTailscaled) -> AsyncGenerator[httpx2.AsyncClient]:
    async with local_client(fake) as one:
        yield one


def local_client(fake: FakeTailscaled, **options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.AsyncHTTPTransport(uds=str(fake.socket)),
        base_url="http://local-tailscaled.sock/localapi/v0/",
        timeout=SECONDS,
        trust_env=False,
        **options,
    )


class Watch:
    """The bus, as a client reads it."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.aiter_lines()

    async def line(self) -> dict[str, Any]:
        """The next line, without what it says nothing of."""
        with anyio.fail_after(SECONDS):
            said: dict[str, Any] = json.loads(await anext(self._lines))
        return {name: value for name, value in said.items() if value is not None and name != "Version"}

    async def rest(self) -> list[str]:
        with anyio.fail_after(SECONDS):
            return [line async for line in self._lines]


@contextlib.asynccontextmanager
async def watching(client: httpx2.AsyncClient, mask: int = ALL) -> AsyncGenerator[Watch]:
    async with client.stream("GET", "watch-ipn-bus", params={"mask": mask}) as response:
        assert response.status_code == 200
        yield Watch(response)


@contextlib.asynccontextmanager
async def session(client: httpx2.AsyncClient) -> AsyncGenerator[tuple[str, Watch]]:
    """A watcher and its session id."""
    async with watching(client) as watch:
        yield (await watch.line())["SessionID"], watch


class Dial:
    """A dial: how it was answered, and the connection."""

    def __init__(self, stream: Stream, status: int, headers: dict[str, str]) -> None:
        self.stream = stream
        self.status = status
        self.headers = headers

    async def ask(self, target: str, host: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """Make a request over the connection."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with anyio.fail_after(SECONDS):
            await self.stream.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
            _, status, _, got = await read_head(self.stream)
            if "content-length" in got:
                return int(status), got, (await self.stream.exactly(int(got["content-length"]))).decode()
            body = b""
            while length := int(await self.stream.until(b"\r\n"), 16):
                body += (await self.stream.exactly(length + 2))[:-2]
            await self.stream.until(b"\r\n")
            return int(status), got, body.decode()


@contextlib.asynccontextmanager
async def dialled(fake: FakeTailscaled, host: str, port: int = PORT) -> AsyncGenerator[Dial]:
    stream = await connect_unix(str(fake.socket))
    try:
        lines = f"Upgrade: ts-dial\r\nDial-Host: {host}\r\nDial-Port: {port}\r\nDial-Network: tcp"
        await stream.send(
            "POST /localapi/v0/dial HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: upgrade\r\n"
            f"{lines}\r\n\r\n".encode()
        )
        with anyio.fail_after(SECONDS):
            _, status, _, headers = await read_head(stream)
        yield Dial(stream, int(status), headers)
    finally:
        await stream.close()


async def knock(fake: FakeTailscaled, host: str) -> int:
    """Dial, hang up, and return how it was answered."""
    async with dialled(fake, host) as dial:
        return dial.status


def serving(
    mounts: dict[str, Any], *, host: str = "desk.tail1a2b.ts.net", port: int = PORT
) -> dict[str, Any]:
    return {"TCP": {str(port): {"HTTP": True}}, "Web": {f"{host}:{port}": {"Handlers": mounts}}}


async def posted(client: httpx2.AsyncClient, config: Any, etag: str = "") -> httpx2.Response:
    return await client.post("serve-config", json=config, headers={"If-Match": etag} if etag else {})


# The door


@pytest.mark.parametrize(
    "headers", [{"Host": "localhost"}, {"Origin": "http://evil.example"}, {"Referer": "http://evil.example/"}]
)
async def test_who_is_not_a_client_of_the_localapi_is_turned_away(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.get("status", headers=headers)

    assert (response.status_code, response.text) == (403, "invalid localapi request\n")


async def test_an_endpoint_that_is_not_there_is_404(client: httpx2.AsyncClient) -> None:
    response = await client.get("services")

    assert response.status_code == 404
    assert response.headers["tailscale-version"]
    assert response.headers["tailscale-cap"].isdecimal()


async def test_over_tcp_the_token_is_wanted(tmp_path: Path) -> None:
    async with (
        FakeTailscaled(token="secret", sec_tailscale=True) as fake,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{fake.port}", trust_env=False) as client,
    ):
        ours = {"Sec-Tailscale": "localapi"}
        path = "/localapi/v0/status"
        answers = [
            await client.get(path),
            await client.get(path, headers=ours),
            await client.get(path, headers=ours, auth=("", "wrong")),
            await client.get(path, headers=ours, auth=("", "secret")),
        ]

    assert [answer.status_code for answer in answers] == [403, 401, 403, 200]


async def test_a_restart_cuts_what_is_open_and_listens_anew(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    assert fake.socket is not None
    async with session(client) as (key, watch):
        await posted(client, {"Foreground": {key: serving({"/": {"Text": "hi"}})}})
        await fake.stop()

        assert not fake.socket.exists()
        with pytest.raises(httpx2.RemoteProtocolError):
            await watch.rest()
    with pytest.raises(httpx2.ConnectError):
        await client.get("status")

    await fake.start()
    assert (await client.get("serve-config")).text == "{}"


# Status


async def test_status_is_written_as_go_does(fake: FakeTailscaled, client: httpx2.AsyncClient) -> None:
    assert (await client.get("status")).json()["Peer"] is None
    box = fake.add_peer("box", user="bob@example.com", ips=(), online=False)
    tagged = fake.add_peer("build", tags=("tag:opencode",), sharer="eve@example.org", expired=True)

    status = (await client.get("status")).json()

    assert (status["BackendState"], status["TUN"], status["Health"]) == ("Running", True, None)
    assert status["Self"]["DNSName"] == "desk.tail1a2b.ts.net."
    shown = status["Peer"][box.key]
    assert (shown["TailscaleIPs"], shown["Addrs"], shown["Online"]) == (None, None, False)
    assert shown["LastSeen"] == "0001-01-01T00:00:00Z"
    assert not {"Tags", "Expired", "ShareeNode", "AltSharerUserID"} & set(shown)
    other = status["Peer"][tagged.key]
    assert (other["Tags"], other["Expired"]) == (["tag:opencode"], True)
    assert status["User"][str(other["UserID"])]["LoginName"] == "tagged-devices"
    assert status["User"][str(other["AltSharerUserID"])]["LoginName"] == "eve@example.org"
    assert (await client.get("status", params={"peers": "false"})).json()["Peer"] is None


async def test_status_of_a_machine_that_is_logged_out_knows_nobody(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    fake.add_peer("box")
    fake.state, fake.auth_url = "NeedsLogin", "https://login.tailscale.com/a/1"

    status = (await client.get("status")).json()

    assert (status["BackendState"], status["AuthURL"]) == ("NeedsLogin", fake.auth_url)
    assert [status[name] for name in ("Peer", "User", "TailscaleIPs", "CurrentTailnet")] == [None] * 4
    assert (status["Self"]["ID"], status["Self"]["TailscaleIPs"]) == ("", None)


async def test_status_is_written_once_until_something_changes(fake: FakeTailscaled) -> None:
    for _ in range(2_000):
        fake.add_peer()
    written = fake.tailnet.status()

    assert fake.tailnet.status() is written
    fake.update_peer("n7CNTRL", online=False)
    assert sum(peer["Online"] for peer in json.loads(fake.tailnet.status())["Peer"].values()) == 1_999


async def test_prefs_can_be_changed_by_who_may(fake: FakeTailscaled, client: httpx2.AsyncClient) -> None:
    masked = {"ShieldsUp": True, "ShieldsUpSet": True, "CorpDNS": False}
    assert (await client.patch("prefs", json=masked)).status_code == 200

    prefs = (await client.get("prefs")).json()
    assert (prefs["ShieldsUp"], prefs["CorpDNS"]) == (True, True)

    fake.writable = False
    assert (await client.patch("prefs", json=masked)).status_code == 403


async def test_whois_finds_peers_and_what_the_test_says(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    box = fake.add_peer("box", user="bob@example.com", ips=("100.64.0.7", "fd7a:115c:a1e0::7"))
    fake.whois["127.0.0.1:5000"] = {"Node": {"StableID": "n9"}, "UserProfile": {}, "CapMap": {"x": None}}

    async def whois(address: str) -> httpx2.Response:
        return await client.get("whois", params={"addr": address})

    for address in ("100.64.0.7", "100.64.0.7:99", "[fd7a:115c:a1e0::7]:99", box.key):
        found = (await whois(address)).json()
        assert (found["Node"]["StableID"], found["UserProfile"]["LoginName"]) == (box.id, box.user)
    assert (await whois("127.0.0.1:5000")).json()["CapMap"] == {"x": None}
    assert [(await whois(one)).status_code for one in ("100.64.0.8", "nobody", "")] == [404, 400, 400]


# The bus


async def test_the_first_line_names_state_and_session_if_asked(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with watching(client, 2 | 4 | 8 | 16384) as watch:
        first = await watch.line()

        assert (first["State"], first["SessionID"]) == (6, fake.sessions[0])
        assert set(first) == {"State", "SessionID", "Prefs", "NetMap", "InitialStatus"}
    async with watching(client, 4096) as watch:
        fake.state = "Stopped"

        assert await watch.line() == {"State": 4}


@pytest.mark.parametrize("other", [4096, 8192, 16384, 32768])
async def test_rate_limit_goes_with_no_deltas(
    fake: FakeTailscaled, client: httpx2.AsyncClient, other: int
) -> None:
    assert (await client.get("watch-ipn-bus", params={"mask": 256 | other})).status_code == 400

    fake.generation = "changes"
    async with watching(client, 2 | 256 | other) as watch:
        assert "State" in await watch.line()


async def test_from_1_100_on_peers_come_as_deltas_to_who_wants_them(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with watching(client) as patched, watching(client, 2 | 4096) as whole, watching(client, 2) as deaf:
        for watch in (patched, whole, deaf):
            await watch.line()

        box = fake.add_peer("box")
        for watch in (patched, whole):
            assert [one["StableID"] for one in (await watch.line())["PeersChanged"]] == [box.id]
        fake.update_peer(box.id, online=False)
        assert await patched.line() == {"PeerChangedPatch": [{"NodeID": box.node_id, "Online": False}]}
        assert (await whole.line())["PeersChanged"][0]["Online"] is False
        fake.update_peer(box.id, tags=("tag:x",), online=True)
        assert (await patched.line())["PeersChanged"][0]["Tags"] == ["tag:x"]
        fake.remove_peer(box.id)
        assert await patched.line() == {"PeersRemoved": [box.node_id]}

        fake.update_me(name="table.tail1a2b.ts.net")
        assert (await deaf.line())["SelfChange"]["Name"] == "table.tail1a2b.ts.net."


async def test_before_the_whole_map_came_and_1_98_had_patches(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    box = fake.add_peer("box")
    async with watching(client) as watch, watching(client, 2) as plain:
        for one in (watch, plain):
            await one.line()
        fake.generation = "netmap"
        fake.update_peer(box.id, online=False)
        for one in (watch, plain):
            assert [peer["Online"] for peer in (await one.line())["NetMap"]["Peers"]] == [False]

        fake.generation = "changes"
        fake.update_peer(box.id, online=True)
        assert await watch.line() == {"PeerChanges": [{"NodeID": box.node_id, "Online": True}]}
        assert (await plain.line())["NetMap"]["Peers"][0]["Online"] is True
        fake.add_peer("other")
        assert len((await watch.line())["NetMap"]["Peers"]) == 2


async def test_changes_are_told_of_at_once_or_not_at_all(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with watching(client) as watch:
        await watch.line()
        with fake.silently():
            gone = fake.add_peer("gone")
        with fake.at_once():
            box = fake.add_peer("box")
            fake.update_peer(box.id, online=False)
            fake.remove_peer(gone.id)

        told = await watch.line()

    assert [one["Online"] for one in told["PeersChanged"]] == [False]
    assert told["PeersRemoved"] == [gone.node_id]


async def test_who_is_too_slow_is_told_so_and_sent_away(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with watching(client) as watch:
        await watch.line()
        fake.fell_behind()

        assert await watch.line() == {"ErrMessage": "IPN bus consumer fell behind; closing watch"}
        assert await watch.rest() == []


async def test_too_much_that_is_not_read_is_too_slow(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with watching(client) as watch:
        await watch.line()
        for _ in range(200):
            fake.say(Policy="x" * 10_000)
        assert fake.watchers == 0

        assert "fell behind" in (await watch.rest())[-1]


async def test_watchers_are_dropped_with_and_without_an_end(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with watching(client) as watch:
        await watch.line()
        fake.say_raw(b"no JSON\n")
        await until(lambda: fake.watchers == 1)
        with pytest.raises(json.JSONDecodeError):
            await watch.line()
        fake.drop_watchers()
        assert await watch.rest() == []
    async with watching(client) as watch:
        await watch.line()
        fake.drop_watchers(abort=True)
        with pytest.raises(httpx2.RemoteProtocolError):
            await watch.rest()


# The serve config


async def test_the_serve_config_is_replaced_if_nobody_else_did(client: httpx2.AsyncClient) -> None:
    empty = await client.get("serve-config")
    assert empty.text == "null"
    assert re.fullmatch("[0-9a-f]{64}", empty.headers["etag"])

    mine = serving({"/": {"Text": "a < b", "Unknown": 1}})
    assert (await posted(client, mine, empty.headers["etag"])).status_code == 200
    late = await posted(client, {}, empty.headers["etag"])
    assert (late.status_code, late.text) == (412, "etag mismatch\n")

    kept = await client.get("serve-config")
    assert "\\u003c" in kept.text
    assert kept.json() == serving({"/": {"Text": "a < b"}})
    assert (await posted(client, {"AllowFunnel": {}})).status_code == 200
    assert (await client.get("serve-config")).text == "{}"


async def test_conflicts_are_changes_by_somebody_else(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    fake.conflicts = 2
    etags = [(await client.get("serve-config")).headers["etag"]]
    answers: list[int] = []
    for _ in range(3):
        answers.append((await posted(client, serving({}), etags[-1])).status_code)
        etags.append((await client.get("serve-config")).headers["etag"])
        if answers[-1] == 412:
            foreign = (await client.get("serve-config")).json()["TCP"]

    assert answers == [412, 412, 200]
    assert len(foreign) == 2


async def test_the_serve_config_is_only_for_who_may(fake: FakeTailscaled, client: httpx2.AsyncClient) -> None:
    files = await posted(client, serving({"/": {"Path": "/etc"}}))
    assert (files.status_code, "must be root" in files.text) == (401, True)
    assert (await client.post("serve-config", content=b"{")).json()["error"].startswith("decoding config")

    fake.writable = False
    denied = await posted(client, {})
    assert (denied.status_code, denied.text) == (403, "serve config denied\n")
    assert (await client.get("serve-config")).status_code == 200

    fake.writable, fake.state = True, "NeedsLogin"
    assert (await posted(client, {})).json() == {"error": "updating config: netMap is nil"}


async def test_a_new_session_needs_a_free_port_and_an_old_one_does_not(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with session(client) as (one, _), session(client) as (two, _):
        taken = f"listener already exists for port {PORT}"
        mine = {one: serving({"/": {"Text": "one"}})}
        assert (await posted(client, {"Foreground": mine})).status_code == 200

        both = await posted(client, {"Foreground": {**mine, two: serving({})}})
        assert (both.status_code, both.json()) == (500, {"error": f"updating config: {taken}"})
        background = await posted(client, {"Foreground": mine, **serving({})})
        assert background.json() == {"error": f"updating config: foreground {taken}"}

        beside = {**mine, two: serving({}, port=PORT + 1)}
        assert (await posted(client, {"Foreground": beside})).status_code == 200
        moved = {**mine, two: serving({}, port=PORT)}
        assert (await posted(client, {"Foreground": moved})).status_code == 200
    await until(lambda: fake.serve_config == {})


async def test_a_web_without_a_port_and_under_any_name_is_accepted(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    name = "k3.tail1a2b.ts.net"
    async with session(client) as (one, _), session(client) as (two, _):
        theirs = {"Web": serving({"/": {"Text": "two"}}, host=name)["Web"]}
        both = {one: serving({"/": {"Text": "one"}}), two: theirs}
        assert (await posted(client, {"Foreground": both})).status_code == 200

        fake.reach["100.64.9.9", PORT] = fake.web.at(PORT)
        async with dialled(fake, "100.64.9.9") as dial:
            assert [(await dial.ask("/", host))[2] for host in ("desk", "k3", name)] == [
                "one",
                "two",
                "two",
            ]


async def test_a_background_port_cannot_change_its_type(fake: FakeTailscaled) -> None:
    fake.post_serve_config(serving({}))

    with pytest.raises(RefusedError, match=f'want to serve \\\\"tcp\\\\", but port {PORT}'):
        fake.post_serve_config({"TCP": {str(PORT): {"TCPForward": "127.0.0.1:1"}}})


async def test_a_session_takes_its_config_with_it(fake: FakeTailscaled, client: httpx2.AsyncClient) -> None:
    async with session(client) as (key, _):
        config = {"Foreground": {key: serving({}), "0123456789abcdef": serving({}, port=PORT + 1)}}
        assert (await posted(client, config)).status_code == 200

        assert list((await client.get("serve-config")).json()["Foreground"]) == [key]
    await until(lambda: fake.serve_config == {})


async def test_a_config_without_its_key_ends_the_stream_of_a_session(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    async with session(client) as (key, watch), session(client) as (_, bystander):
        await posted(client, {"Foreground": {key: serving({})}})
        fake.post_serve_config(serving({}, port=PORT + 1))

        assert await watch.rest() == []
        await until(lambda: fake.watchers == 1)
        fake.state = "Stopped"
        assert await bystander.line() == {"State": 4}


# Dial


async def test_a_dial_leads_where_the_test_says(fake: FakeTailscaled) -> None:
    async def echo(stream: Stream) -> None:
        while data := await stream.some():
            await stream.send(data.upper())

    box = fake.add_peer("box")
    fake.reach[box.ips[0], 7] = echo
    async with answering(b"good day", hold=True) as url:
        fake.reach["box", 8] = ("127.0.0.1", int(url.rpartition(":")[2]))
        for host, port, said in (
            (box.ips[0], 7, b"HELLO"),
            (f"{box.name}.", 7, b"HELLO"),
            (box.ips[1], 8, b"good day"),
        ):
            async with dialled(fake, host, port) as dial:
                assert (dial.status, dial.headers["upgrade"]) == (101, "ts-dial")
                await dial.stream.send(b"hello")
                with anyio.fail_after(SECONDS):
                    assert await dial.stream.exactly(len(said)) == said
                assert fake.tunnels == 1
            await until(lambda: fake.tunnels == 0)
    assert fake.dials == [(box.ips[0], 7), (f"{box.name}.", 7), (box.ips[1], 8)]


async def test_a_dial_is_an_upgrade_to_an_http_client(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    fake.reach["100.64.0.9", PORT] = ServedWeb(serving({"/": {"Text": "here"}})).at(PORT)
    headers = {
        "Connection": "upgrade",
        "Upgrade": "ts-dial",
        "Dial-Host": "100.64.0.9",
        "Dial-Port": str(PORT),
    }

    async with client.stream("POST", "dial", headers=headers) as response:
        assert response.status_code == 101
        stream = response.extensions["network_stream"]
        await stream.write(b"GET / HTTP/1.1\r\nHost: desk\r\n\r\n", SECONDS)
        assert (await stream.read(65536, SECONDS)).endswith(b"\r\n\r\nhere")
    await until(lambda: fake.tunnels == 0)
    headers["Connection"] = "keep-alive"
    assert (await client.post("dial", headers=headers)).status_code == 400


async def test_a_dial_that_leads_nowhere_says_so(fake: FakeTailscaled) -> None:
    box = fake.add_peer("box")
    fake.reach[box.ips[0], 7] = "refuse"
    expected = [(box.ips[0], 7, 502), (box.ips[0], 8, 502), ("nobody", 7, 502), ("192.0.2.9", 7, 200)]

    for host, port, status in expected:
        async with dialled(fake, host, port) as dial:
            assert dial.status == status
    assert (dial.headers["dial-self"], dial.headers["dial-addr"]) == ("true", "192.0.2.9:7")


async def test_dials_into_the_void_hang_until_they_are_given_up(fake: FakeTailscaled) -> None:
    away = fake.add_peer("away", online=False)
    fake.reach["100.64.0.9", PORT] = "hang"

    async with anyio.create_task_group() as group:
        for host in (away.ips[0], "100.64.0.9", away.label):
            group.start_soon(knock, fake, host)
        await until(lambda: fake.dialling == 3)
        group.cancel_scope.cancel()
    await until(lambda: fake.dialling == 0)
    assert (fake.most_dialling, fake.most_tunnels) == (3, 0)


async def test_hundreds_of_peers_are_dialled_at_once(fake: FakeTailscaled) -> None:
    web = ServedWeb(serving({"/": {"Text": "here"}}))
    for _ in range(300):
        fake.reach[fake.add_peer().ips[0], PORT] = web.at(PORT)
    fake.dial_seconds = 0.02

    async def visit(host: str) -> None:
        async with dialled(fake, host) as dial:
            assert (await dial.ask("/", "desk"))[2] == "here"

    async with anyio.create_task_group() as group:
        for peer in fake.tailnet.peers.values():
            group.start_soon(visit, peer.ips[0])

    assert (web.asked, len(fake.dials)) == (300, 300)
    assert fake.most_dialling > 10


# Serve


@contextlib.asynccontextmanager
async def tailnet(tmp_path: Path) -> AsyncGenerator[tuple[FakeTailscaled, FakeTailscaled]]:
    """An announcer and a gateway that are joined."""
    async with (
        FakeTailscaled(tmp_path / "a", name="box", user="bob@example.com") as announcer,
        FakeTailscaled(tmp_path / "g") as gateway,
    ):
        join(announcer, gateway)
        yield announcer, gateway


on_box = functools.partial(serving, host="box.tail1a2b.ts.net")


async def test_what_one_announces_the_other_meets(tmp_path: Path) -> None:
    async with tailnet(tmp_path) as (announcer, gateway), local_client(announcer) as client:
        async with session(client) as (key, _):
            index = "x" * 5_000
            await posted(
                client, {"Foreground": {key: on_box({"/i": {"Text": index}, "/go": {"Redirect": "/i"}})}}
            )
            async with dialled(gateway, announcer.me.ips[0]) as dial:
                for host in ("box", f"box:{PORT}", f"box.tail1a2b.ts.net:{PORT}"):
                    status, headers, body = await dial.ask("/i", host)
                    assert (status, headers["content-type"], body) == (
                        200,
                        "text/plain; charset=utf-8",
                        index,
                    )
                assert (await dial.ask("/go", "box"))[0] == 302
                for target, host in (("/", "box"), ("/i", announcer.me.ips[0]), ("/i", "desk"), ("*", "box")):
                    assert (await dial.ask(target, host))[0] == 404
                await until(lambda: gateway.tunnels == 1)
                announcer.post_serve_config({})
                assert (await dial.ask("/i", "box"))[0] == 404, (
                    "An open connection lives on, with nothing on it"
                )
        async with dialled(gateway, announcer.me.name) as dial:
            assert dial.status == 502


async def test_a_proxy_strips_its_mount_and_says_who_asks(tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with (
        tailnet(tmp_path) as (announcer, gateway),
        answering(head(200, {"content-length": "2"}) + b"ok", heard=heard) as backend,
    ):
        mounts = {
            "/i/k3/": {"Proxy": backend},
            "/i/k3/deep": {"Text": "deeper"},
            "/b": {"Proxy": f"{backend}/base"},
        }
        announcer.post_serve_config(on_box(mounts))
        async with dialled(gateway, "box") as dial:
            for target in ("/i/k3/a%20b?c=d", "/i/k3", "/b", "/b/x"):
                forged = {
                    "Tailscale-User-Login": "root@example.com",
                    "X-Forwarded-For": "1.2.3.4",
                    "X-Own": "1",
                }
                assert await dial.ask(target, f"box:{PORT}", **forged) == (200, {"content-length": "2"}, "ok")
            assert (await dial.ask("/i/k3/deep/er", "box"))[2] == "deeper"

    assert [one.split()[1] for one in heard] == [b"/a%20b?c=d", b"/", b"/base", b"/base/x"]
    lines = heard[0].decode().split("\r\n")
    assert f"host: box:{PORT}" in lines
    assert f"x-forwarded-host: box:{PORT}" in lines
    assert f"x-forwarded-for: {gateway.me.ips[0]}" in lines
    assert "tailscale-user-login: ann@example.com" in lines
    assert "x-own: 1" in lines
    assert "root@example.com" not in heard[0].decode()


async def test_a_proxy_without_a_backend_is_502(tmp_path: Path) -> None:
    async with tailnet(tmp_path) as (announcer, gateway):
        announcer.post_serve_config(on_box({"/": {"Proxy": "http://127.0.0.1:1"}}))
        async with dialled(gateway, "box") as dial:
            assert (await dial.ask("/", "box"))[0] == 502


async def test_a_proxy_passes_each_event_on_at_once_and_lives_on(tmp_path: Path) -> None:
    first = head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
    async with (
        tailnet(tmp_path) as (announcer, gateway),
        answering(first + chunk(b"data: 1\n\n"), hold=True) as backend,
    ):
        announcer.post_serve_config(on_box({"/": {"Proxy": backend}}))
        async with dialled(gateway, "box") as dial:
            await dial.stream.send(b"GET /event HTTP/1.1\r\nHost: box\r\n\r\n")
            with anyio.fail_after(SECONDS):
                _, status, _, headers = await read_head(dial.stream)
                assert (status, headers["content-type"]) == ("200", "text/event-stream")
                assert await dial.stream.until(b"\n\n\r\n") == b"9\r\ndata: 1\n\n\r\n"
            announcer.post_serve_config({})
            assert gateway.tunnels == 1


async def test_an_opencode_is_reached_through_both(tmp_path: Path) -> None:
    fake = FakeOpenCode()
    async with tailnet(tmp_path) as (announcer, gateway), fake.serve():
        announcer.post_serve_config(on_box({"/i/k3/": {"Proxy": fake.url}}))
        async with dialled(gateway, "box") as dial:
            status, _, body = await dial.ask("/i/k3/global/health", "box")

    assert (status, json.loads(body)["healthy"]) == (200, True)


async def test_shields_and_a_stopped_machine_drop_what_comes(tmp_path: Path) -> None:
    async with tailnet(tmp_path) as (announcer, gateway):
        announcer.post_serve_config(on_box({}))
        announcer.set_prefs(ShieldsUp=True)
        with pytest.raises(TimeoutError), anyio.fail_after(0.05):
            await knock(gateway, "box")
        announcer.set_prefs(ShieldsUp=False)
        async with dialled(gateway, "box") as dial:
            assert dial.status == 101


async def test_without_an_interface_every_port_of_the_host_is_reached(tmp_path: Path) -> None:
    async with tailnet(tmp_path) as (announcer, gateway), answering(b"hello", hold=True) as url:
        port = int(url.rpartition(":")[2])
        async with dialled(gateway, "box", port) as dial:
            assert dial.status == 502
        announcer.tun = False
        async with dialled(gateway, "box", port) as dial:
            assert dial.status == 101
        announcer.tun = True
        announcer.post_serve_config({"TCP": {"9": {"TCPForward": f"127.0.0.1:{port}"}}})
        async with dialled(gateway, "box", 9) as dial:
            await dial.stream.send(b"x")
            with anyio.fail_after(SECONDS):
                assert await dial.stream.exactly(5) == b"hello"


# Faults


async def test_faults_last_as_long_as_they_are_wanted(
    fake: FakeTailscaled, client: httpx2.AsyncClient
) -> None:
    fake.fail("status", 503, "no netmap", times=2)
    answers = [await client.get("status") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].text == "no netmap"

    fake.fail("status", 500, '{"error": "broken"}')
    assert (await client.get("status")).json() == {"error": "broken"}
    fake.mend("status")
    assert (await client.get("status")).status_code == 200
    assert fake.asked["status"] == 5

    fake.garbage("status", b"\xff<html>")
    assert (await client.get("status")).content == b"\xff<html>"
    fake.flood("status", 3)
    assert len((await client.get("status")).content) == (3 << 20) + 2


async def test_faults_break_off_what_they_want(fake: FakeTailscaled, client: httpx2.AsyncClient) -> None:
    fake.cut("status")
    with pytest.raises(httpx2.RemoteProtocolError, match="complete message body"):
        await client.get("status")
    fake.garbage("prefs", b"SSH-2.0-x\r\n\r\n", raw=True)
    with pytest.raises(httpx2.RemoteProtocolError):
        await client.get("prefs")
    fake.hang("whois")
    with pytest.raises(httpx2.ReadTimeout):
        await client.get("whois", timeout=0.05)
    fake.hang("dial", times=1)
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await knock(fake, "box")
    fake.hang("watch-ipn-bus")
    with pytest.raises(httpx2.ReadTimeout):
        await client.get("watch-ipn-bus", timeout=0.05)
