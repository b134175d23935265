"""A transport of somebody else's that needs more than loopback: never without a password, never told."""

import signal
import stat
from pathlib import Path

import httpx2
import pytest

from support.connected import Connected, eventually
from support.distributions import Site

pytestmark = pytest.mark.slow

WIDE = """
import json
import os
from contextlib import asynccontextmanager

import anyio

from pydantic import SecretStr

from opencode_mcp import Announcing, Settings, Transport, TransportPlugin, hookimpl, variable


class WideSettings(Settings):
    token: SecretStr | None = variable("WIDE_TOKEN", None, takes="a token", about="It is secret.")


class Wide(Transport):
    async def discover(self):
        return []

    async def announce(self, endpoint, *, task_status):
        path = anyio.Path(os.environ["WIDE_FILE"])
        try:
            await path.write_text(endpoint.model_dump_json())
            task_status.started()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await path.unlink()


@asynccontextmanager
async def open_wide(settings):
    yield Wide()


@hookimpl
def opencode_mcp_transports():
    wants = Announcing(listen="0.0.0.0", facts={"Network": "all of\\x1b[31m it"})
    return [
        TransportPlugin(
            name="wide",
            summary="Wide",
            settings=WideSettings,
            open=open_wide,
            announcing=lambda _: wants,
        )
    ]
"""


@pytest.fixture
def wide(connected: Connected) -> dict[str, str]:
    """Install the transport; return what selects it."""
    site = Site(connected.home / "site")
    site.install(
        "opencode-mcp-wide", transports={"wide": "opencode_mcp_wide"}, modules={"opencode_mcp_wide": WIDE}
    )
    site.install_transport("finds-only")
    site.install("opencode-mcp-broken", transports={"broken": "missing_module"})
    return {
        "PYTHONPATH": str(site.path),
        "TRANSPORT": "local-relay,wide",
        "WIDE_FILE": str(connected.home / "wide.endpoint"),
    }


def everything_written(connected: Connected) -> dict[Path, str]:
    kept = [*connected.state.iterdir(), *connected.files(), *connected.home.glob("*.err")]
    kept += [*connected.home.glob("*.out"), *connected.home.glob("*.endpoint")]
    return {path: path.read_text() for path in kept if path.name != "password"}


def test_a_password_is_made_up_kept_and_told_nowhere(connected: Connected, wide: dict[str, str]) -> None:
    file = connected.state / "password"
    with connected.announced("--port", "5096", environment=wide) as started:
        eventually(Path(wide["WIDE_FILE"]).exists)
        password = file.read_text().strip()
        run = connected.run()
        assert run["environment"]["OPENCODE_SERVER_PASSWORD"] == password
        assert run["argv"] == ["serve", "--port", "5096", "--hostname", "0.0.0.0"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert (
            f"Password:   generated, in {file}; give it to the gateway as OPENCODE_SERVER_PASSWORD"
            in started.said
        )
        assert "Network:    all of it" in started.said
        assert [path for path, text in everything_written(connected).items() if password in text] == []
        assert password not in str(connected.processes())
        with httpx2.Client(base_url="http://127.0.0.1:5096", trust_env=False) as client:
            assert client.get("/global/health").status_code == 401
            assert client.get("/global/health", auth=("opencode", password)).status_code == 200
        status = connected("status", environment=wide)
        assert status.code == 0, status.out
        assert password not in status.out
        wrong = connected("status", OPENCODE_SERVER_PASSWORD="wrong", environment=wide)
        assert wrong.code == 1
        assert "wants another password" in wrong.out
        started.signal(signal.SIGTERM)
        started.code()
    assert not Path(wide["WIDE_FILE"]).exists()
    with connected.announced(environment=wide):
        assert {run["environment"]["OPENCODE_SERVER_PASSWORD"] for run in connected.runs()} == {password}


def test_opencode_is_not_given_the_secrets_of_the_transports(
    connected: Connected, wide: dict[str, str]
) -> None:
    with connected.announced(WIDE_TOKEN="hunter2", WIDE_PLAIN="stays", environment=wide):
        environment = connected.run()["environment"]
    assert "hunter2" not in environment.values()
    assert "WIDE_TOKEN" not in environment
    assert environment["WIDE_PLAIN"] == "stays"
    assert "OPENCODE_SERVER_PASSWORD" in environment


def test_a_password_of_ones_own_is_used_instead(connected: Connected, wide: dict[str, str]) -> None:
    with connected.announced(OPENCODE_SERVER_PASSWORD="s3cret", environment=wide) as started:
        assert connected.run()["environment"]["OPENCODE_SERVER_PASSWORD"] == "s3cret"
        assert "Password" not in started.said
        assert not (connected.state / "password").exists()
        assert [path for path, text in everything_written(connected).items() if "s3cret" in text] == []


def test_one_that_drops_its_password_is_ended_and_never_announced(
    connected: Connected, wide: dict[str, str]
) -> None:
    command = f"env -u OPENCODE_SERVER_PASSWORD {connected.programs / 'opencode'}"
    outcome = connected("--headless", OPENCODE_MCP_COMMAND=command, environment=wide)
    assert outcome.code != 0
    assert "asks for no password, though it was given one" in outcome.err
    assert not Path(wide["WIDE_FILE"]).exists()
    assert connected.files() == []


def test_without_a_place_for_the_password_nothing_starts(connected: Connected, wide: dict[str, str]) -> None:
    (connected.state / "password").mkdir(parents=True)
    outcome = connected("--headless", environment=wide)
    assert outcome.code == 1
    assert f"The password cannot be kept in {connected.state / 'password'}" in outcome.err
    assert connected.runs() == []


@pytest.mark.parametrize(("name", "why"), [("finds-only", "announces none"), ("broken", "missing_module")])
def test_a_transport_that_cannot_announce_is_refused_before_anything_starts(
    connected: Connected, wide: dict[str, str], name: str, why: str
) -> None:
    outcome = connected("--headless", environment={**wide, "TRANSPORT": f"local-relay,{name}"})
    [line] = outcome.err.splitlines()
    assert outcome.code == 2
    assert name in line
    assert why in line
    assert connected.runs() == []
