"""Writes a package for a new transport: one that works and is tested before its author changes a line.

The files are in `templates/`, with `$words` for what differs. Commands call `write`; it needs no other room.
"""

import re
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from opencode_mcp.errors import OpenCodeMCPError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST_NAME = 40
BEFORE_THE_RELEASE = (
    "opencode-mcp-core is not on PyPI yet: run `./dev build` in a clone of opencode-mcp, then here "
    "`export UV_FIND_LINKS=/path/to/the/clone/dist`."
)
"""How uv finds core until there is a release. Remove it then, here and wherever this name is."""
_TAKEN = {
    "local-relay": "an official transport",
    "mdns": "an official transport",
    "tailscale": "an official transport",
    "static": "the example in the documentation",
}
_TEMPLATES = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    ".gitignore": "gitignore.template",
    ".github/workflows/test.yml": "workflow.template",
    "src/$module/__init__.py": "module.template",
    "src/$module/py.typed": "",
    "tests/$test_file": "tests.template",
}
"""What is written, and which template it is made of; none for an empty file."""


class ScaffoldError(OpenCodeMCPError):
    """A package for a transport cannot be written."""


def distribution_of(name: str) -> str:
    """Return what the package of the transport `name` is called on an index.

    Raises:
        ScaffoldError: If no transport can be called that.
    """
    if name in _TAKEN:
        raise ScaffoldError(
            f"{name!r} is {_TAKEN[name]}, and two packages that bring one name shut each other out. Choose "
            "another name."
        )
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ScaffoldError(
            f"{name!r} cannot be a transport's name. Use lower-case letters, digits and single dashes "
            f"between, a letter first, at most {_LONGEST_NAME} characters in all; for example my-cloud."
        )
    return f"opencode-mcp-{name}"


def module_of(name: str) -> str:
    """Return what the package of the transport `name` is called in Python."""
    return distribution_of(name).replace("-", "_")


def write(name: str, directory: Path) -> None:
    """Write the package of a transport called `name` into `directory`, all of it or nothing.

    Raises:
        ScaffoldError: If the name cannot be used, the directory is in use, or writing fails.
    """
    words = _words(name)
    contents = {
        directory / Template(path).substitute(words): _filled(template, words)
        for path, template in _TEMPLATES.items()
    }
    made: list[Path] = []
    try:
        _make(directory, made)
        _require_empty(directory)
        for path, content in contents.items():
            _make(path.parent, made)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                made.append(path)
                file.write(content)
    except BaseException as error:
        _remove(made)
        if isinstance(error, OSError):
            why = error.strerror or type(error).__name__
            raise ScaffoldError(
                f"{directory} cannot be written: {why}. Name another folder, with --into."
            ) from error
        raise


def _require_empty(directory: Path) -> None:
    if any(directory.iterdir()):
        raise ScaffoldError(f"{directory} is not empty. Name another, with --into.")


def _words(name: str) -> dict[str, str]:
    core = version("opencode-mcp-core").split(".")
    return {
        "name": name,
        "before_the_release": BEFORE_THE_RELEASE,
        "distribution": distribution_of(name),
        "module": module_of(name),
        "class_name": "".join(word.capitalize() for word in name.split("-")),
        "prefix": name.replace("-", "_").upper(),
        "test_file": f"test_{name.replace('-', '_')}.py",
        "core_versions": f">={core[0]}.{core[1]},<{int(core[0]) + 1}",
    }


def _filled(template: str, words: dict[str, str]) -> str:
    if not template:
        return ""
    text = (files(__name__) / "templates" / template).read_text("utf-8")
    return Template(text).substitute(words)


def _make(directory: Path, made: list[Path]) -> None:
    """Make a directory and those above it, and note which were not there."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir()
        made.append(one)


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        with suppress(OSError):  # somebody put something there meanwhile, which is not ours to remove
            path.rmdir() if path.is_dir() else path.unlink()
