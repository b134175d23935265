"""The example of the tutorial, installed from its wheel beside the official transports, as anybody's is."""

import json
import shutil
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from opencode_mcp.testing import FakeOpenCode
from packages.wheel_parts import EXAMPLE, CleanEnvironment
from support.command import Outcome

pytestmark = pytest.mark.slow  # wheels are built and installed


def test_it_is_listed_beside_the_official_transports(everything: CleanEnvironment):
    ended = everything("opencode-mcp", "transports", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert {row["name"]: (row["distribution"], row["problem"]) for row in json.loads(ended.out)} == {
        "local-relay": ("opencode-mcp-local-relay", ""),
        "mdns": ("opencode-mcp-mdns", ""),
        "static": ("opencode-mcp-static", ""),
        "tailscale": ("opencode-mcp-tailscale", ""),
    }


def test_its_own_tests_pass(everything: CleanEnvironment, tmp_path: Path):
    package = tmp_path / "static"
    package.mkdir()
    shutil.copy(EXAMPLE / "pyproject.toml", package)
    shutil.copytree(EXAMPLE / "tests", package / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    ended = everything("python", "-m", "pytest", "-q", "-W", "error", cwd=package)
    assert ended.code == 0, ended.out + ended.err
    assert " passed" in ended.out


def test_its_module_is_shorter_than_eighty_lines():
    (module,) = (EXAMPLE / "src").rglob("*.py")
    assert len(module.read_text("utf-8").splitlines()) < 80


@pytest.mark.anyio
@pytest.mark.parametrize("transports", ["static", "static,local-relay"])
async def test_the_command_lists_what_the_file_lists(
    everything: CleanEnvironment, tmp_path: Path, transports: str
):
    file = anyio.Path(tmp_path / "instances.toml")

    def instances() -> Outcome:
        return everything(
            "opencode-mcp",
            "instances",
            "--json",
            TRANSPORT=transports,
            STATIC_FILE=str(file),
            RELAY_REGISTRY_DIR=str(tmp_path / "registry"),
        )

    async with FakeOpenCode().serve() as fake:
        await file.write_text(
            f'[[instance]]\nname = "workstation"\nurl = "{fake.url}"\n\n[[instance]]\nname = "no-address"\n'
        )
        ended = await anyio.to_thread.run_sync(instances)
    assert (ended.code, ended.err) == (0, "")
    overview = json.loads(ended.out)
    (row,) = overview["instances"]
    assert (row["name"], row["status"], row["transport"]) == ("workstation", "online", "static")
    assert overview["notes"] == [f"{file}, instance 2: url: Field required"]


def test_without_a_file_the_command_tells_how_to_list_an_instance(everything: CleanEnvironment):
    ended = everything("opencode-mcp", "instances", "--json", TRANSPORT="static")
    assert (ended.code, ended.err) == (0, "")
    overview = json.loads(ended.out)
    assert overview["instances"] == []
    (note,) = overview["notes"]
    assert "~/.config/opencode-mcp/instances.toml" in note
