"""`opencode-connected --attach`: a server that runs already is announced while it is there."""

import signal
from collections.abc import Iterator

import anyio
import anyio.to_thread
import pytest

from opencode_mcp.testing import FakeOpenCode
from support.connected import Connected, Started, eventually, patched
from support.real_opencode import free_port

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

WATCHFUL = patched("presence._LOOK_SECONDS = 0.1", "presence._PATIENCE_SECONDS = 0.2")


async def until_announced(connected: Connected, *, announced: bool = True) -> None:
    await anyio.to_thread.run_sync(lambda: eventually(lambda: bool(connected.files()) is announced))


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def attached(connected: Connected, port: int) -> Iterator[Started]:
    with connected.started("--attach", f"http://127.0.0.1:{port}", program=WATCHFUL) as started:
        yield started


async def test_it_is_announced_withdrawn_when_it_goes_and_announced_again(
    connected: Connected, attached: Started, port: int
) -> None:
    fake = FakeOpenCode()
    async with fake.serve(port=port):
        await until_announced(connected)
        before = connected.registration()
        assert (before["port"], before["version"], before["cwd"]) == (port, "1.18.33", fake.directory)
    await until_announced(connected, announced=False)
    assert "Withdrawn until it is back" in connected.logs()
    async with fake.serve(port=port):
        await until_announced(connected)
        after = connected.registration()
    assert (after["id"], after["name"]) == (before["id"], before["name"])
    assert attached.process.poll() is None


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
async def test_a_signal_ends_the_announcing_and_leaves_the_server_alone(
    connected: Connected, attached: Started, port: int, number: signal.Signals, code: int
) -> None:
    async with FakeOpenCode().serve(port=port):
        await until_announced(connected)
        attached.signal(number)
        assert await anyio.to_thread.run_sync(attached.code) == code
        assert connected.files() == []


async def test_one_with_a_password_is_announced_whether_we_know_it_or_not(
    connected: Connected, port: int
) -> None:
    url = f"http://127.0.0.1:{port}"
    async with FakeOpenCode(password="s3cret").serve(port=port):
        for variables, known in (({"OPENCODE_SERVER_PASSWORD": "s3cret"}, True), ({}, False)):
            with connected.started("--attach", url, environment=variables):
                await until_announced(connected)
                assert ("version" in connected.registration()) is known
            await until_announced(connected, announced=False)


def test_nobody_there_is_said_after_a_while(connected: Connected, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    outcome = connected("--attach", url, program=patched("supervise._ATTACH_SECONDS = 0.3"))
    assert outcome.code == 1
    assert f"Nothing is announced, since for 0.3 s {url} does not answer" in outcome.err.splitlines()[-1]
    assert connected.files() == []
