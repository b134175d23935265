"""`opencode-mcp new-transport NAME`: what it writes works; where it cannot write, nothing stays behind."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opencode_mcp.cli.commands import app
from opencode_mcp.scaffold import BEFORE_THE_RELEASE, ScaffoldError, write
from packages.wheel_parts import ROOT, CleanEnvironment, Uv
from support.command import Outcome
from support.distributions import Site

pytestmark = pytest.mark.slow  # a package is installed, linted and tested

NAMES = ["my-cloud", "x", "true", "test", "transport-suite", "a-name-that-is-as-long-as-it-may-well-be"]
FILES = {
    ".github/workflows/test.yml",
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "src/opencode_mcp_my_cloud/__init__.py",
    "src/opencode_mcp_my_cloud/py.typed",
    "tests/test_my_cloud.py",
}


def files_in(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def tool(name: str, *arguments: str | Path) -> Outcome:
    """Run one of the linters of this repository."""
    ended = subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        cwd=arguments[-1],
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> Outcome:
    """Run `opencode-mcp new-transport` in this process."""
    ended = CliRunner().invoke(app, ["new-transport", *arguments])
    return Outcome(ended.exit_code, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages, one for each of the names."""
    folder = tmp_path_factory.mktemp("packages")
    for name in NAMES:
        write(name, folder / name)
    return folder


def test_what_it_writes_passes_its_tests_before_the_first_edit(
    everything: CleanEnvironment, uv: Uv, wheels: Mapping[str, Path], tmp_path: Path
):
    written = everything("opencode-mcp", "new-transport", "my-cloud", cwd=tmp_path)
    assert (written.code, written.err) == (0, "")
    package = tmp_path / "opencode-mcp-my-cloud"
    assert files_in(package) == FILES
    links = str(wheels["opencode-mcp-core"].parent)
    tested = uv("run", "--python", sys.executable, "pytest", "-q", cwd=package, UV_FIND_LINKS=links)
    assert " passed" in tested.out
    listed = uv("run", "opencode-mcp", "transports", cwd=package, UV_FIND_LINKS=links, TRANSPORT="my-cloud")
    assert "my-cloud   yes       opencode-mcp-my-cloud 0.1.0" in listed.out
    told = uv("run", "opencode-mcp", "doctor", cwd=package, UV_FIND_LINKS=links, TRANSPORT="my-cloud")
    assert "Nothing is broken, but no endpoint was found." in told.out
    assert "fix: Write a line into ~/.config/opencode-mcp/my-cloud.txt: " in told.out
    built = uv("build", "--quiet", cwd=package)
    assert built.err == ""


def test_it_says_in_five_lines_what_to_do_next(place: Path):
    ended = command("my-cloud", "--into", "my cloud")
    assert (ended.code, ended.err) == (0, "")
    first, before, *rest = ended.out.splitlines()
    assert first.startswith("Wrote 'my cloud': ")
    assert before == BEFORE_THE_RELEASE  # the command after it fails without
    assert rest[0] == "  cd 'my cloud' && uv run pytest"
    assert "src/opencode_mcp_my_cloud/__init__.py" in rest[1]
    assert rest[2:] == ["  TRANSPORT=my-cloud uv run opencode-mcp doctor"]
    assert "UV_FIND_LINKS" in BEFORE_THE_RELEASE
    assert BEFORE_THE_RELEASE in (place / "my cloud/README.md").read_text("utf-8")
    assert files_in(place / "my cloud") == FILES


def test_what_it_writes_is_clean_for_ruff_and_formatted(packages: Path):
    for arguments in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
        ended = tool("ruff", *arguments, packages / "my-cloud")
        assert ended.code == 0, ended.out
    ended = tool("ruff", "check", "--no-cache", packages)
    assert ended.code == 0, ended.out


def test_what_it_writes_is_clean_for_pyright(packages: Path):
    ended = tool("pyright", "--pythonpath", sys.executable, packages)
    assert ended.code == 0, ended.out


@pytest.mark.parametrize("name", NAMES)
def test_everything_in_it_carries_the_name(packages: Path, name: str):
    project = tomllib.loads((packages / name / "pyproject.toml").read_text("utf-8"))["project"]
    module = f"opencode_mcp_{name.replace('-', '_')}"
    assert project["name"] == f"opencode-mcp-{name}"
    assert project["entry-points"] == {"opencode_mcp.transports": {name: module}}
    source = (packages / name / "src" / module / "__init__.py").read_text("utf-8")
    assert f'name="{name}"' in source
    assert f'"{name.replace("-", "_").upper()}_FILE"' in source
    for file in files_in(packages / name):
        assert "$" not in (packages / name / file).read_text("utf-8").replace("${{ matrix.python }}", "")


def test_it_asks_for_the_core_that_wrote_it(packages: Path):
    ours = tomllib.loads((ROOT / "plugins/mdns/pyproject.toml").read_text("utf-8"))["project"]
    project = tomllib.loads((packages / "x/pyproject.toml").read_text("utf-8"))["project"]
    (core,) = [one for one in ours["dependencies"] if one.startswith("opencode-mcp-core")]
    assert core in project["dependencies"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("My-Cloud", "cannot be a transport's name"),
        ("my_cloud", "cannot be a transport's name"),
        ("my--cloud", "cannot be a transport's name"),
        ("3d", "cannot be a transport's name"),
        ("../x", "cannot be a transport's name"),
        ("", "cannot be a transport's name"),
        ("x\n", "cannot be a transport's name"),
        ("x" * 41, "cannot be a transport's name"),
        ("mdns", "'mdns' is an official transport, and two packages that bring one name shut each other out"),
        ("tailscale", "is an official transport"),
        ("local-relay", "is an official transport"),
        ("static", "'static' is the example in the documentation"),
        ("core", "opencode-mcp-core is installed already"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(place: Path, name: str, reason: str):
    ended = command(name)
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err
    assert len(ended.err.splitlines()) == 1
    assert list(place.iterdir()) == []


def test_a_name_that_a_package_here_brings_is_refused(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    site = Site(tmp_path_factory.mktemp("installed") / "site")
    site.install("dist-lamp", transports={"lamp": "lamp"})
    monkeypatch.syspath_prepend(site.path)
    ended = command("lamp")
    assert (ended.code, ended.out) == (2, "")
    assert "dist-lamp brings a transport 'lamp' already" in ended.err
    assert list(place.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_as_it_is(place: Path):
    (place / "README.md").write_text("mine")
    ended = command("my-cloud", "--into", ".")
    assert (ended.code, ended.out, ended.err) == (
        2,
        "",
        "opencode-mcp: . is not empty. Name another, with --into.\n",
    )
    assert files_in(place) == {"README.md"}
    assert (place / "README.md").read_text() == "mine"


def test_a_folder_that_is_empty_is_taken(tmp_path: Path):
    write("my-cloud", tmp_path)
    assert files_in(tmp_path) == FILES


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ScaffoldError, match="cannot be written: Not a directory"):
            write("my-cloud", place)
    assert files_in(tmp_path) == {"file"}


@pytest.mark.skipif(not hasattr(os, "pathconf"), reason="needs to know how long a path may be")
@pytest.mark.parametrize("exists", [False, True])
def test_what_cannot_be_written_to_its_end_leaves_nothing_behind(tmp_path: Path, exists: bool):
    longest = os.pathconf(tmp_path, "PC_PATH_MAX") - 30  # room for pyproject.toml, and not for the module
    place = tmp_path
    while (room := longest - len(str(place)) - 1) > 200:
        place /= "x" * 150
    place /= "x" * room
    if exists:
        place.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ScaffoldError, match="cannot be written: File name too long"):
        write("my-cloud", place)
    assert sorted(tmp_path.rglob("*")) == before
