"""What people are told to run to install a package fits the environment in which opencode-mcp runs."""

import sys
from pathlib import Path

import pytest

from opencode_mcp import packages
from opencode_mcp.errors import PluginError
from opencode_mcp.plugins import OFFICIAL, Plugins, missing_transports


def commands() -> list[str]:
    return [packages.install("one"), packages.update("one", "two"), packages.reinstall("one")]


@pytest.mark.parametrize("pip", ["pip", "uv pip"])
def test_in_an_environment_with_and_without_pip_that_is_used_which_works(
    pip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_PIP", pip)
    assert commands() == [
        f"{pip} install one",
        f"{pip} install -U one two",
        f"{pip} install --force-reinstall one",
    ]


def test_a_tool_that_uv_installed_is_changed_by_its_name_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "opencode-mcp-core"))
    assert packages._uv_tool() == ""
    (tmp_path / "opencode-mcp-core").mkdir()
    (tmp_path / "opencode-mcp-core/uv-receipt.toml").touch()
    monkeypatch.setattr(packages, "_TOOL", packages._uv_tool())
    assert commands() == [
        "uv tool install opencode-mcp-core --with one (and with each --with that it has already)",
        "uv tool upgrade opencode-mcp-core",
        "uv tool upgrade opencode-mcp-core --reinstall",
    ]


@pytest.mark.parametrize("name", OFFICIAL)
def test_of_an_official_transport_that_is_missing_the_package_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp.plugins.entry_points", lambda **_: ())
    with pytest.raises(PluginError) as error:
        Plugins().load_transports([name])
    assert error.value.told == f"TRANSPORT asks for '{name}', which is not installed. Installed: none."
    assert error.value.mend == f"Install it: {packages.install(f'opencode-mcp-{name}')}"


@pytest.mark.parametrize("name", ["mdsn", "static"])
def test_no_package_is_guessed_for_a_name_that_is_not_official(name: str) -> None:
    (row,) = missing_transports([name, "mdns"])
    with pytest.raises(PluginError) as error:
        Plugins().load_transports([name])
    assert "Installed: local-relay, mdns, tailscale." in error.value.told
    assert error.value.mend == "Correct TRANSPORT, or install the package that brings it."
    assert row.problem == str(error.value)
