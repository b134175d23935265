"""Checks what `./dev build` has built: an sdist and a wheel of each package, and nothing else in them."""

import configparser
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.metadata import RawMetadata, parse_email

ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = (".", "core", "plugins/*", "examples/*")
_PRIVATE = "Private :: Do Not Upload"
_FIELDS = (
    "author",
    "classifiers",
    "description",
    "description_content_type",
    "keywords",
    "license_expression",
    "license_files",
    "project_urls",
    "requires_python",
    "summary",
)
_BESIDE_SOURCES = {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE", ".gitignore"}
_CACHES = {"__pycache__", ".pytest_cache", ".ruff_cache"}
_LEFT = (".pyc", ".orig", ".rej", ".swp")


class Package:
    """One that is published.

    Attributes:
        folder: Where its pyproject.toml is.
        project: What that says in `[project]`.
        stem: What the names of its files begin with.
    """

    def __init__(self, folder: Path, project: Mapping[str, Any]) -> None:
        self.folder = folder
        self.project = project
        self.stem = f"{project['name'].replace('-', '_')}-{project['version']}"

    @property
    def sdist(self) -> str:
        """The name of its sdist."""
        return f"{self.stem}.tar.gz"

    @property
    def wheel(self) -> str:
        """The name of its wheel."""
        return f"{self.stem}-py3-none-any.whl"

    def files(self, below: str) -> set[str]:
        """The files in one of its folders, without caches, as paths below that; the metapackage has none."""
        base = self.folder / below
        found = (path.relative_to(base) for path in base.rglob("*") if path.is_file() and self.folder != ROOT)
        return {path.as_posix() for path in found if not _CACHES & set(path.parts)}


def published() -> list[Package]:
    """Return the packages of this checkout, without those that are not to be uploaded."""
    paths = [path for pattern in _FOLDERS for path in sorted(ROOT.glob(f"{pattern}/pyproject.toml"))]
    projects = [(path.parent, tomllib.loads(path.read_text("utf-8"))["project"]) for path in paths]
    return [
        Package(folder, project)
        for folder, project in projects
        if _PRIVATE not in project.get("classifiers", ())
    ]


def faults(built: Path) -> Iterator[str]:
    """Give what is wrong with the files in a folder, each as a sentence.

    Args:
        built: Where the sdists and wheels are, and nothing else.
    """
    packages = published()
    wanted = {name for package in packages for name in (package.sdist, package.wheel)}
    found = {path.name for path in built.iterdir() if not path.name.startswith(".")}
    yield from (f"{name} is missing." for name in sorted(wanted - found))
    yield from (f"{name} is not to be published." for name in sorted(found - wanted))
    for package in packages:
        if {package.sdist, package.wheel} <= found:
            yield from _sdist_faults(package, built / package.sdist)
            yield from _wheel_faults(package, built / package.wheel)


def _sdist_faults(package: Package, path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        names = {member.name.removeprefix(f"{package.stem}/") for member in archive if member.isfile()}
    wanted = _BESIDE_SOURCES | {
        f"{below}/{name}" for below in ("src", "tests") for name in package.files(below)
    }
    if package.folder == ROOT:
        wanted.add("CHANGELOG.md")
    yield from _differences(path, names, wanted)


def _wheel_faults(package: Package, path: Path) -> Iterator[str]:
    about = f"{package.stem}.dist-info"
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        metadata, _ = parse_email(archive.read(f"{about}/METADATA"))
        entry_points = configparser.RawConfigParser(delimiters="=")
        entry_points.optionxform = str  # type: ignore[assignment]
        if f"{about}/entry_points.txt" in names:
            entry_points.read_string(archive.read(f"{about}/entry_points.txt").decode())
    sources = package.files("src")
    beside = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    if wanted := _entry_points(package):
        beside.add(f"{about}/entry_points.txt")
    yield from _differences(path, names, sources | beside)
    yield from (f"{path.name} must not hold {name}." for name in sorted(names) if _is_out_of_place(name))
    if package.folder != ROOT and not any(name.endswith("/py.typed") for name in names):
        yield f"{path.name} has no py.typed."
    if {group: dict(entry_points.items(group)) for group in entry_points.sections()} != wanted:
        yield f"{path.name} has other entry points than its pyproject.toml."
    yield from _metadata_faults(package, path, metadata)


def _metadata_faults(package: Package, path: Path, metadata: RawMetadata) -> Iterator[str]:
    yield from (f"{path.name} does not tell its {field}." for field in _FIELDS if not metadata.get(field))
    made_of = f"{metadata.get('name')} {metadata.get('version')}"
    if made_of != f"{package.project['name']} {package.project['version']}":
        yield f"{path.name} is of {made_of}."
    if "Typing :: Typed" not in metadata.get("classifiers", ()):
        yield f"{path.name} is not classified as typed."


def _differences(path: Path, names: set[str], wanted: set[str]) -> Iterator[str]:
    yield from (f"{path.name} lacks {name}." for name in sorted(wanted - names))
    yield from (f"{path.name} has {name} too much." for name in sorted(names - wanted))


def _entry_points(package: Package) -> dict[str, dict[str, str]]:
    groups = dict(package.project.get("entry-points", {}))
    if scripts := package.project.get("scripts"):
        groups["console_scripts"] = scripts
    return groups


def _is_out_of_place(path: str) -> bool:
    """Whether no wheel should have it: tests, caches, what an editor or a system leaves behind."""
    name = PurePosixPath(path)
    is_test = "tests" in name.parts or name.name == "conftest.py" or name.name.startswith("test_")
    is_left = name.suffix in _LEFT or any(part.startswith(".") for part in name.parts)
    return is_test or is_left


def main(words: Sequence[str]) -> int:
    """Check the folder given; print what is wrong, and return 1 if anything is."""
    wrong = list(faults(Path(words[0])))
    for sentence in wrong:
        print(f"dev: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
