"""What core sees of the plugin: its descriptor and its settings."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from opencode_mcp import CONTRACT_VERSION, SettingsError
from opencode_mcp.settings import read_settings
from opencode_mcp_local_relay import LocalRelay, LocalRelaySettings, opencode_mcp_transports

VARIABLES = ("RELAY_REGISTRY_DIR", "RELAY_PRUNE_AFTER_MS", "RELAY_TRUST_ANY_OWNER")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.anyio
async def test_the_hook_describes_a_transport_that_opens(tmp_path: Path) -> None:
    (plugin,) = opencode_mcp_transports()
    assert (plugin.name, plugin.contract) == ("local-relay", CONTRACT_VERSION)
    async with plugin.open(LocalRelaySettings(registry_dir=tmp_path / "none")) as transport:
        assert isinstance(transport, LocalRelay)
        assert transport.forget_after_seconds == 600
    entry = EntryPoint("local-relay", "opencode_mcp_local_relay", "opencode_mcp.transports")
    assert entry.load().opencode_mcp_transports is opencode_mcp_transports


def test_the_defaults_are_those_of_the_original_tool() -> None:
    settings = read_settings(LocalRelaySettings)
    assert settings.registry_dir == Path("/tmp/opencode-relay")
    assert (settings.prune_after_ms, settings.trust_any_owner) == (600_000, False)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RELAY_REGISTRY_DIR", "~/relay")
    monkeypatch.setenv("RELAY_PRUNE_AFTER_MS", "1500")
    monkeypatch.setenv("RELAY_TRUST_ANY_OWNER", "1")
    settings = read_settings(LocalRelaySettings)
    assert settings.local_dir == tmp_path / "relay"
    assert LocalRelay(settings).forget_after_seconds == 1.5
    assert settings.trust_any_owner is True


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELAY_REGISTRY_DIR", "~nobody-of-that-name/relay"),
        ("RELAY_PRUNE_AFTER_MS", "soon"),
        ("RELAY_PRUNE_AFTER_MS", "-1"),
        ("RELAY_PRUNE_AFTER_MS", "9" * 400),
        ("RELAY_TRUST_ANY_OWNER", "perhaps"),
    ],
)
def test_an_unusable_value_is_told_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}=.* cannot be used: it takes "):
        read_settings(LocalRelaySettings)


def test_the_invitation_says_what_to_write_and_where(tmp_path: Path) -> None:
    invitation = LocalRelay(LocalRelaySettings(registry_dir=tmp_path)).invitation
    assert "opencode serve --port 4096" in invitation
    assert f"{tmp_path}/my-project.json" in invitation
    assert '{"name": "my-project", "port": 4096,' in invitation
