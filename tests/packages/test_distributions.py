"""What is published, as users meet it: built as a release builds it, and installed where nothing else is."""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from packages.wheel_parts import CleanEnvironment, CleanEnvironments, Uv

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
CHECK = ROOT / "release/distributions.py"
OFFICIAL = {"local-relay", "mdns", "tailscale"}
INSTALLED = {
    "opencode-mcp-core": set[str](),
    "opencode-mcp-local-relay": {"local-relay"},
    "opencode-mcp-mdns": {"mdns"},
    "opencode-mcp-tailscale": {"tailscale"},
    "opencode-mcp-static": {"static"},
    "opencode-mcp": OFFICIAL,
}
"""By the distribution, which transports there are when it is installed alone."""


@dataclasses.dataclass(frozen=True)
class Release:
    """What a release uploads, in a directory."""

    directory: Path

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.directory.iterdir() if not path.name.startswith("."))

    def check(self) -> tuple[int, str]:
        """What `./dev build` finds wrong with it."""
        done = subprocess.run(
            [sys.executable, CHECK, self.directory], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def release(uv: Uv, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Every sdist and wheel, built as `./dev build` does: each wheel from its sdist."""
    directory = tmp_path_factory.mktemp("release")
    build = ("build", "--quiet", "--all-packages", "--no-build-isolation", "--python", sys.executable)
    uv(*build, "--out-dir", directory)
    return Release(directory)


def transports(environment: CleanEnvironment) -> dict[str, dict[str, Any]]:
    listed = environment("opencode-mcp", "transports", "--json", TRANSPORT="nothing-of-this-name")
    assert listed.code == 0, listed.err
    return {row["name"]: row for row in json.loads(listed.out)}


def test_everything_that_a_release_uploads_is_built_and_holds_what_it_should(release: Release) -> None:
    assert release.check() == (0, "")
    assert len(release.files) == 2 * len(INSTALLED)


def test_an_index_takes_and_shows_what_is_built(release: Release) -> None:
    twine = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *release.files]
    checked = subprocess.run(twine, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("PASSED") == len(release.files)


@pytest.mark.parametrize("name", ["tests/test_it.py", "opencode_mcp/__pycache__/x.pyc", "conftest.py"])
def test_a_wheel_with_something_beside_its_modules_is_found(
    release: Release, tmp_path: Path, name: str
) -> None:
    for path in release.files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    wheel = tmp_path / f"opencode_mcp_core-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name, "")
    code, said = Release(tmp_path).check()
    assert code == 1
    assert f"{wheel.name} has {name} too much." in said
    assert f"{wheel.name} must not hold {name}." in said


def test_a_wheel_that_is_missing_is_found_and_so_is_one_that_is_not_to_be_published(
    release: Release, tmp_path: Path
) -> None:
    for path in release.files[1:]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "opencode_mcp_example_hooks-1.0.0-py3-none-any.whl").touch()
    code, said = Release(tmp_path).check()
    assert code == 1
    assert f"{release.files[0].name} is missing." in said
    assert "opencode_mcp_example_hooks-1.0.0-py3-none-any.whl is not to be published." in said


@pytest.mark.parametrize(("distribution", "expected"), INSTALLED.items(), ids=INSTALLED)
def test_it_works_where_nothing_else_is_installed(
    clean_environment: CleanEnvironments, distribution: str, expected: set[str]
) -> None:
    environment = clean_environment(distribution)
    rows = transports(environment)
    rows.pop("nothing-of-this-name")
    assert set(rows) == expected
    for row in rows.values():
        assert row["version"] == VERSION
        assert not row["problem"]
    about = environment("opencode-connected", "--version")
    assert (about.code, about.out) == (0, f"opencode-connected {VERSION}\n")


def test_what_it_installs_is_the_only_copy_of_each_of_our_packages(wheels: Mapping[str, Path]) -> None:
    """Distributions installed together write into one folder: none may hold a module of another."""
    modules: dict[str, str] = {}
    for distribution, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                top = name.partition("/")[0]
                if not re.search(r"\.dist-info$", top):
                    assert modules.setdefault(top, distribution) == distribution
    assert "opencode_mcp" in modules
