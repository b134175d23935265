"""The repository itself: what its packages, lock files and scripts promise each other."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PACKAGES = [ROOT, *MEMBERS]
LOCKS = sorted(ROOT.glob("requirements/*.txt"))

# Written so that no pattern matches itself.
HOSTS = re.compile(r"(?:pypi|pythonhosted|npmjs|yarnpkg)\.(?:org|com)|//[^/\s]*(?:artifactory|nexus|mirror)")
HERE = f"|{re.escape(str(ROOT))}" if len(ROOT.parts) > 2 else ""
MACHINE_PATHS = re.compile(rf"(?<![\w.~])/(?:root|work/(?:main|shared))\b{HERE}")


def label(path: Path) -> str:
    return path.name if path != ROOT else "root"


def pyproject(package: Path) -> dict[str, Any]:
    return tomllib.loads((package / "pyproject.toml").read_text("utf-8"))


def entries(lock: Path) -> list[str]:
    """The requirements of a lock file, each with all that its continued lines say."""
    text = re.sub(r"\s*\\\n\s*", " ", lock.read_text("utf-8"))
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def pins(lock: Path) -> dict[str, Version]:
    found = [re.match(r"([\w.-]+)==([^\s;]+)", entry) for entry in entries(lock)]
    return {match[1]: Version(match[2]) for match in found if match}


def tracked_text() -> list[tuple[str, str]]:
    """Name and content of every text file that git has, or would take in."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout: clone the repository to run this test")
    command = "git -c safe.directory=* ls-files -z --cached --others --exclude-standard"
    listing = subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files: list[tuple[str, str]] = []
    for name in filter(None, listing.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            files.append((name, content.decode("utf-8", "replace")))
    assert files
    return files


def occurrences(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_text()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_all_packages_have_one_version_and_the_metapackage_pins_its_own() -> None:
    projects = [pyproject(package)["project"] for package in PACKAGES]
    version = projects[0]["version"]
    assert {project["name"]: project["version"] for project in projects} == {
        project["name"]: version for project in projects
    }
    for dependency in projects[0]["dependencies"]:
        assert dependency.endswith(f"=={version}")
    for project in projects[1:]:
        for dependency in map(Requirement, project["dependencies"]):
            if dependency.name.startswith("opencode-mcp"):
                assert dependency.specifier.contains(version)


def test_all_packages_take_the_same_pythons_and_are_built_alike() -> None:
    projects = [pyproject(package) for package in PACKAGES]
    assert {project["project"]["requires-python"] for project in projects} == {">=3.11"}
    assert len({str(project["build-system"]) for project in projects}) == 1


@pytest.mark.parametrize("package", PACKAGES, ids=label)
def test_a_package_carries_the_licence(package: Path) -> None:
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert pyproject(package)["project"]["license"] == "MIT"
    assert "LICENSE" in pyproject(package)["project"]["license-files"]


@pytest.mark.parametrize("package", MEMBERS, ids=label)
def test_a_package_is_marked_as_typed(package: Path) -> None:
    [source] = [path for path in (package / "src").iterdir() if path.is_dir()]
    assert (source / "py.typed").is_file()


@pytest.mark.parametrize("lock", LOCKS, ids=label)
def test_every_locked_requirement_has_a_version_and_hashes(lock: Path) -> None:
    assert entries(lock)
    for entry in entries(lock):
        assert re.match(r"[\w.-]+==\S+ (?:; .+? )?--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_locks_hold_what_the_packages_ask_for() -> None:
    locked = pins(ROOT / "requirements/dev.txt")
    wanted: list[str] = []
    for content in map(pyproject, PACKAGES):
        project = content["project"]
        wanted += project["dependencies"] + content["build-system"]["requires"]
        for table in (project.get("optional-dependencies", {}), content.get("dependency-groups", {})):
            wanted += [line for lines in table.values() for line in lines if isinstance(line, str)]
    for requirement in map(Requirement, wanted):
        if not requirement.name.startswith("opencode-mcp"):
            assert requirement.name in locked, f"{requirement} is not locked: run ./dev lock"
            assert requirement.specifier.contains(locked[requirement.name]), f"{requirement}: run ./dev lock"


def test_the_locks_agree_with_each_other() -> None:
    demo, dev = pins(ROOT / "requirements/demo.txt"), pins(ROOT / "requirements/dev.txt")
    assert demo.items() <= dev.items()


def test_no_tracked_file_names_a_package_registry() -> None:
    assert occurrences(HOSTS) == []


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    assert occurrences(MACHINE_PATHS) == []


def test_lock_files_that_name_a_registry_stay_out() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert {"uv.lock", "package-lock.json"} <= set(ignored)
    assert not [name for name, _ in tracked_text() if name.endswith(("uv.lock", "package-lock.json"))]


@pytest.mark.parametrize("script", ["dev", ".ci/run"])
def test_a_script_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    assert (ROOT / script).read_bytes().startswith(b"#!/")


def test_every_dev_command_that_the_documents_name_exists() -> None:
    usage = subprocess.run([ROOT / "dev", "help"], cwd="/", check=True, capture_output=True, text=True).stdout
    commands = set(re.findall(r"^  ([a-z]+) ", usage, re.MULTILINE))
    documents = "\n".join(text for name, text in tracked_text() if name.endswith(".md"))
    named = set(re.findall(r"(?:^|`|\$ )\./dev ([a-z]+)", documents, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= commands
