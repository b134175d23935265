"""What is imported: `opencode-connected` stays for as long as its OpenCode, so it loads what it uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OURS = "opencode_mcp_local_relay."
SSH = {
    *("control", "ending", "entry", "login", "outside", "process", "relay", "remote", "script", "ssh"),
    "tunnel",
}
FINDING = {"registry", "services", "users", "watching"}

USING = """
import os, sys, anyio
from opencode_mcp import Endpoint
from opencode_mcp_local_relay import LocalRelay, LocalRelaySettings
transport = LocalRelay(LocalRelaySettings(registry_dir=sys.argv[1]))
endpoint = Endpoint(id="a", name="a", url="http://127.0.0.1:1")
async def announcing():
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: transport.announce(endpoint, task_status=task_status))
        assert os.listdir(sys.argv[1]) == ["a.json"]
        transport.woke()
        group.cancel_scope.cancel()
async def finding():
    async with transport.registry() as registry, anyio.create_task_group() as group:
        assert registry is transport
        published = anyio.Event()
        group.start_soon(transport.watch, lambda endpoints: published.set())
        await published.wait()
        group.cancel_scope.cancel()
anyio.run(globals()[sys.argv[2]])
import json
print(json.dumps(list(sys.modules)))
"""


def loaded_by(use: str, registry: Path) -> set[str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    done = subprocess.run(
        [sys.executable, "-c", USING, str(registry), use],
        env=bare,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return set(json.loads(done.stdout))


def ours(names: set[str]) -> set[str]:
    return {OURS + name for name in names}


@pytest.mark.slow
def test_announcing_on_this_machine_loads_nothing_of_ssh_nor_of_finding(registry: Path) -> None:
    loaded = loaded_by("announcing", registry)
    assert OURS + "announcement" in loaded
    assert not loaded & {*ours(SSH | FINDING), "httpx2", "watchfiles"}


@pytest.mark.slow
def test_finding_loads_nothing_of_ssh(registry: Path) -> None:
    loaded = loaded_by("finding", registry)
    assert loaded >= ours(FINDING)
    assert not loaded & {*ours(SSH), "httpx2"}


def test_every_module_is_counted_in_one_way_or_the_other() -> None:
    import opencode_mcp_local_relay as plugin

    folder = Path(plugin.__file__).parent
    always = {
        "announcement",
        "directory",
        "file",
        "registration",
        "remembered",
        "settings",
        "transport",
        "wake",
        "__init__",
    }
    assert {path.stem for path in folder.glob("*.py")} == always | SSH | FINDING
