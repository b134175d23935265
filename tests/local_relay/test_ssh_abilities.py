"""Commands that are like ssh, but not quite, and relays that allow less: what is done without."""

import random
import socket
from pathlib import Path

import anyio
import pytest

from local_relay.ssh_parts import (
    FAST,
    NO_CONTROL,
    announced,
    content,
    healthy,
    instance,
    over_ssh,
    refused,
    ssh_of,
    tunnel,
    with_tools,
)
from opencode_mcp import TransportError
from opencode_mcp.testing import FakeOpenCode, Fault
from support.fleets import until
from support.real_sshd import RealSshd

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

QUIET = 'exec $SSH -E "$0.log" "$@"'
CHILD = """
exec 3<&0
$SSH "$@" <&3 &
wait $!
"""
ASTRAY = """
for word; do
  shift
  case $word in *:*:127.*) word=${word%:*}:1 ;; esac
  set -- "$@" "$word"
done
exec $SSH "$@"
"""


async def test_where_ssh_does_not_name_the_port_one_is_picked_and_that_is_remembered(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    transport = over_ssh(sshd.wrapper("quiet", QUIET), registry)
    for logins in (2, 3):
        began = anyio.current_time()
        async with announced(transport, instance(fake)):
            port = content(registry / "laptop-project.json")["port"]
            assert 20_000 <= port < 60_000
            assert await healthy(port)
            assert sshd.logins == logins
        assert logins == 3 or anyio.current_time() - began > 1


async def test_a_picked_port_that_is_taken_is_followed_by_another(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken, socket.socket() as free:
        for sock in (taken, free):
            sock.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], free.getsockname()[1]]
        free.close()
        left = iter(ports)
        monkeypatch.setattr(random, "choice", lambda _: next(left))
        transport = over_ssh(sshd.wrapper("picks", 'exec $SSH "$@" 2>"$0.log"'), registry)
        # Its stderr goes elsewhere, so not even the reason for the failure is told.
        transport._ability.names_port = False
        with pytest.raises(TransportError, match="exit code 255"):
            async with announced(transport, instance(fake)):
                pass
        left = iter(ports)
        transport = over_ssh(sshd, registry)
        transport._ability.names_port = False
        async with announced(transport, instance(fake)):
            assert content(registry / "laptop-project.json")["port"] == ports[1]


async def test_an_ssh_without_control_sockets_is_used_without(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    transport = over_ssh(sshd.wrapper("plain", NO_CONTROL), registry)
    async with announced(transport, instance(fake)):
        assert await healthy(content(registry / "laptop-project.json")["port"])
    assert sshd.logins == 1
    assert transport._ability.multiplexes is False


async def test_a_wrapper_that_stays_above_its_ssh_is_ended_with_it(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    wrapper = sshd.wrapper("parent", CHILD)
    async with announced(over_ssh(wrapper, registry), instance(fake)):
        assert len(ssh_of(sshd)) >= 1
        assert await healthy(content(registry / "laptop-project.json")["port"])
    assert ssh_of(sshd) == []
    assert list(registry.iterdir()) == []


@pytest.mark.parametrize("tool", ["curl", "wget", "nothing"])
async def test_a_relay_that_allows_no_look_through_the_tunnel_is_asked_to_look_itself(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, tool: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    environment = with_tools(sshd, *([] if tool == "nothing" else [tool]))
    await anyio.to_thread.run_sync(sshd.stop)
    await anyio.to_thread.run_sync(sshd.start, "AllowTcpForwarding remote", environment)
    path = registry / "laptop-project.json"
    async with announced(tunnel(sshd, registry, instance(fake), pace=FAST)):
        asked, beat = len(fake.requests), content(path)["heartbeatAt"]
        await until(lambda: content(path)["heartbeatAt"] != beat)
        if tool != "nothing":
            await until(lambda: len(fake.requests) > asked + 1)
        assert bool(asked) == (tool != "nothing")
    assert caplog.text.count("neither curl nor wget") == (tool == "nothing")


@pytest.mark.parametrize("tool", ["curl", "wget"])
@pytest.mark.parametrize("fault", [None, Fault.UNAUTHORIZED])
async def test_such_a_relay_tells_a_tunnel_that_leads_nowhere_from_a_password(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path, tool: str, fault: Fault | None
) -> None:
    environment = with_tools(sshd, tool)
    fake.fault = fault
    await anyio.to_thread.run_sync(sshd.stop)
    await anyio.to_thread.run_sync(sshd.start, "AllowTcpForwarding remote", environment)
    if fault is not None:
        async with announced(over_ssh(sshd, registry), instance(fake)):
            return
    said = await refused(over_ssh(sshd.wrapper("astray", ASTRAY), registry), instance(fake))
    assert f"does not lead to {fake.url}" in said
    assert list(registry.iterdir()) == []


async def test_a_tunnel_that_leads_nowhere_is_noticed_by_looking_through_it(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    said = await refused(over_ssh(sshd.wrapper("astray", ASTRAY), registry), instance(fake))
    assert f"does not lead to {fake.url}" in said
    assert list(registry.iterdir()) == []


async def test_options_of_the_user_come_first_and_win(
    sshd: RealSshd, fake: FakeOpenCode, registry: Path
) -> None:
    own = registry.parent / "own"
    command = sshd.command.replace("ssh ", f"ssh -o ControlPath={own} ", 1)
    endpoint = instance(fake)
    async with announced(over_ssh(command, registry), endpoint):
        assert own.exists()
        assert await healthy(content(registry / "laptop-project.json")["port"])
