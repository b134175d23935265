"""The repository itself: what its packages, lock files and scripts promise each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PACKAGES = [ROOT, *MEMBERS]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
PRIVATE = "Private :: Do Not Upload"
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


def published() -> list[Path]:
    """The packages that are uploaded: those that users install, and the example that is one of them."""
    return [
        package
        for package in (*PACKAGES, *EXAMPLES)
        if PRIVATE not in pyproject(package)["project"].get("classifiers", ())
    ]


def copy_of_the_versions(place: Path) -> None:
    """Copy what `./dev version` needs, and writes, to another place."""
    scripts = [ROOT / "dev", *ROOT.glob("release/*.py")]
    for path in [*scripts, *(package / "pyproject.toml" for package in (*PACKAGES, *EXAMPLES))]:
        target = place / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def dev(*words: str, place: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([place / "dev", *words], cwd="/", check=False, capture_output=True, text=True)


def test_all_packages_have_one_version_and_the_metapackage_pins_its_own() -> None:
    projects = [pyproject(package)["project"] for package in (*PACKAGES, *EXAMPLES)]
    version = projects[0]["version"]
    assert {project["name"]: project["version"] for project in projects} == {
        project["name"]: version for project in projects
    }
    assert projects[0]["dependencies"] == [
        f"{project['name']}=={version}" for project in (pyproject(member)["project"] for member in MEMBERS)
    ]


def test_the_others_take_every_core_from_this_one_to_the_next_major_version() -> None:
    version = Version(pyproject(ROOT)["project"]["version"])
    wanted = f"opencode-mcp-core>={version.major}.{version.minor},<{version.major + 1}"
    for package in (*MEMBERS[1:], *EXAMPLES):
        assert wanted in pyproject(package)["project"]["dependencies"], package


def test_dev_version_says_the_version() -> None:
    said = dev("version")
    assert (said.returncode, said.stdout, said.stderr) == (
        0,
        f"{pyproject(ROOT)['project']['version']}\n",
        "",
    )


def test_dev_version_writes_another_everywhere_and_changes_nothing_else(tmp_path: Path) -> None:
    copy_of_the_versions(tmp_path)
    assert dev("version", "7.8.9", place=tmp_path).returncode == 0
    for package in (*PACKAGES, *EXAMPLES):
        path = tmp_path / package.relative_to(ROOT) / "pyproject.toml"
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        assert project["version"] == "7.8.9"
        for dependency in map(Requirement, project["dependencies"]):
            if dependency.name.startswith("opencode-mcp"):
                wanted = "==7.8.9" if package == ROOT else ">=7.8,<8"
                assert str(dependency.specifier) == str(Requirement(f"x{wanted}").specifier)
    assert dev("version", pyproject(ROOT)["project"]["version"], place=tmp_path).returncode == 0
    for package in (*PACKAGES, *EXAMPLES):
        name = package.relative_to(ROOT) / "pyproject.toml"
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize(
    "words", [("0.2",), ("v0.2.0",), ("0.2.0rc1",), ("0.2.0", "0.3.0"), ("",), ("01.2.3",)]
)
def test_what_is_no_version_is_not_written(tmp_path: Path, words: tuple[str, ...]) -> None:
    copy_of_the_versions(tmp_path)
    said = dev("version", *words, place=tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    assert "./dev version 0.2.0" in said.stderr
    assert (tmp_path / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()


def test_all_packages_take_the_same_pythons_and_are_built_alike() -> None:
    projects = [pyproject(package) for package in (*PACKAGES, *EXAMPLES)]
    assert {project["project"]["requires-python"] for project in projects} == {">=3.11"}
    assert len({str(project["build-system"]) for project in projects}) == 1


@pytest.mark.parametrize("package", published(), ids=label)
def test_a_package_says_what_an_index_shows(package: Path) -> None:
    project = pyproject(package)["project"]
    assert project["description"]
    assert project["readme"] == "README.md"
    assert project["authors"]
    assert {"opencode", "mcp"} <= set(project["keywords"])
    assert {
        "Typing :: Typed",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)),
    } <= set(project["classifiers"])
    assert not [classifier for classifier in project["classifiers"] if classifier.startswith("License")]


def test_all_packages_lead_to_the_same_place() -> None:
    urls = pyproject(ROOT)["project"]["urls"]
    assert set(urls) == {"Documentation", "Source", "Changelog", "Issues"}
    assert all(url.startswith(urls["Source"]) for url in urls.values())
    for package in published():
        assert pyproject(package)["project"]["urls"] == urls


@pytest.mark.parametrize("package", published(), ids=label)
def test_the_links_of_a_readme_lead_somewhere_from_an_index_too(package: Path) -> None:
    text = (package / "README.md").read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)", text)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_every_link_to_a_file_of_this_project_on_its_forge_leads_to_one_that_is_there() -> None:
    source = pyproject(ROOT)["project"]["urls"]["Source"]
    link = re.compile(rf"{re.escape(source)}/(?:blob|tree|raw)/main/([\w./-]*[\w-])")
    missing = [
        f"{name}: {target}"
        for name, text in tracked_text()
        for target in link.findall(text)
        if not (ROOT / target).exists()
    ]
    assert missing == []


def test_what_is_not_to_be_uploaded_is_not_built_with_the_rest() -> None:
    private = [pyproject(package) for package in EXAMPLES if package not in published()]
    assert [content["project"]["name"] for content in private] == ["opencode-mcp-example-hooks"]
    assert [content["tool"]["uv"]["package"] for content in private] == [False]


def test_nothing_that_is_built_is_tracked() -> None:
    built = re.compile(
        r"(?:^|/)(?:dist|site|build|\.cache|__pycache__|[^/]*\.egg-info)/|\.(?:whl|pyc|tar\.gz)$"
    )
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True
    ).stdout
    assert [name for name in listing.splitlines() if built.search(name)] == []


def test_workflows_pin_what_they_use_to_a_commit() -> None:
    workflows = sorted(ROOT.glob(".github/workflows/*.yml"))
    used = [line for path in workflows for line in re.findall(r"uses: (.+)", path.read_text("utf-8"))]
    assert used
    for line in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_only_the_job_that_publishes_may_prove_who_it_is() -> None:
    workflow = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    head, build, publish = re.split(r"^  (?:build|publish):$", workflow, flags=re.MULTILINE)
    assert "permissions: {}" in head
    assert re.findall(r"permissions:\n((?: {6}.*\n)+)", build) == ["      contents: read\n"]
    assert "id-token: write" in publish
    assert "environment: pypi" in publish
    assert "run:" not in publish


def guard() -> str:
    """The script of the release that refuses sentences which a release makes untrue."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
    [script] = [one["run"] for one in workflow["jobs"]["build"]["steps"] if "git grep" in one.get("run", "")]
    return script


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("README.md", "The first release is not on PyPI yet.", 1),
        ("docs/plugins.md", "since it is Not on PyPI yet", 1),
        ("core/scaffold.py", "BEFORE_THE_RELEASE = 1", 1),
        ("core/README.md.template", "$before_the_release", 1),
        ("README.md", "pip install opencode-mcp", 0),
        ("CONTRIBUTING.md", "remove BEFORE_THE_RELEASE", 0),
        (".github/workflows/release.yml", "not on PyPI yet", 0),
    ],
)
def test_a_release_is_refused_while_a_sentence_says_that_there_is_none(
    tmp_path: Path, name: str, text: str, code: int
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for command in ("git init -q", "git add ."):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    ended = subprocess.run(
        ["bash", "-e", "-c", guard()], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert ended.returncode == code
    assert (f"{name}:1:" in ended.stdout) == bool(code)


def test_what_the_first_release_makes_untrue_is_listed() -> None:
    untrue = re.compile("not on PyPI yet|BEFORE_THE_RELEASE", re.IGNORECASE)
    known = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    elsewhere = {"CONTRIBUTING.md", ".github/workflows/release.yml", "tests/test_project.py"}
    found = {name for name, text in tracked_text() if untrue.search(text)} - elsewhere
    assert sorted(name for name in found if f"`{name}`" not in known) == []


def test_a_release_is_made_of_a_version_that_the_changelog_knows() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    heads = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert heads
    for head in heads:
        assert head == "Unreleased" or re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", head), head


@pytest.mark.parametrize("package", published(), ids=label)
def test_a_package_carries_the_licence(package: Path) -> None:
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert pyproject(package)["project"]["license"] == "MIT"
    assert "LICENSE" in pyproject(package)["project"]["license-files"]


@pytest.mark.parametrize("package", [*MEMBERS, *EXAMPLES], ids=label)
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
