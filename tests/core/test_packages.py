"""What people are told to run to install a package fits the environment in which opencode-mcp runs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from opencode_mcp import packages
from opencode_mcp.errors import PluginError
from opencode_mcp.plugins import OFFICIAL, Plugins, missing_transports

PIP_OF_ITS_OWN = "'/a b/bin/python' -m pip install"


def a_tool_of_uv(place: Path) -> Path:
    (place / "opencode-mcp").mkdir()
    (place / "opencode-mcp/uv-receipt.toml").touch()
    return place / "opencode-mcp"


def a_tool_of_pipx(place: Path) -> Path:
    (place / "opencode-mcp").mkdir()
    (place / "opencode-mcp/pipx_metadata.json").touch()
    return place / "opencode-mcp"


def one_of_uvx(place: Path) -> Path:
    return place / "archive-v0/5f2b"


def a_project_of_uv(place: Path) -> Path:
    (place / "uv.lock").touch()
    return place / ".venv"


@pytest.mark.parametrize(
    ("made", "commands"),
    [
        (
            a_tool_of_uv,
            [
                "with each --with that it has already: uv tool install opencode-mcp --with one",
                "uv tool upgrade opencode-mcp",
                "uv tool upgrade opencode-mcp --reinstall",
            ],
        ),
        (
            a_tool_of_pipx,
            [
                "pipx inject opencode-mcp one",
                "pipx upgrade --include-injected opencode-mcp",
                "pipx reinstall opencode-mcp",
            ],
        ),
        (
            one_of_uvx,
            ["uvx --with one opencode-mcp", "uvx --refresh opencode-mcp", "uvx --refresh opencode-mcp"],
        ),
        (a_project_of_uv, ["uv add one", "uv sync --upgrade", "uv sync --reinstall-package one"]),
    ],
)
def test_it_is_the_tool_that_made_the_environment(
    made: Callable[[Path], Path], commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(made(tmp_path)))
    assert told(monkeypatch) == commands


def test_pip_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "prefix", "/a b")
    monkeypatch.setattr(sys, "executable", "/a b/bin/python")
    assert told(monkeypatch) == [
        f"{PIP_OF_ITS_OWN} one",
        f"{PIP_OF_ITS_OWN} -U one two",
        f"{PIP_OF_ITS_OWN} --force-reinstall one",
    ]
    monkeypatch.setattr(sys, "base_prefix", "/a b")
    assert told(monkeypatch)[0] == "pip install one"


def test_without_pip_it_is_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "prefix", "/a b")
    command = "uv pip install --python '/a b'"
    assert told(monkeypatch) == [f"{command} one", f"{command} -U one two", f"{command} --reinstall one"]


def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(packages, "_WORDS", packages._words())
    return [packages.install("one"), packages.update("one", "two"), packages.reinstall("one")]


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
