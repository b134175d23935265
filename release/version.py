"""The version of all packages: it stands in the root's pyproject.toml, and is the same everywhere.

`./dev version` prints it; `./dev version 0.2.0` writes another. A release is made of a tag of the same name.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = (".", "core", "plugins/*", "examples/*")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_OWN = re.compile(r'^version = "[^"]*"', re.MULTILINE)
_PIN = re.compile(r'"(opencode-mcp-[a-z-]+)==[^"]*"')
_CORE = re.compile(r'"opencode-mcp-core(\[[a-z,]+\])?>=[^"]*"')


def version() -> str:
    """Return the version of this checkout."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def written(content: str, new: str) -> str:
    """Return a pyproject.toml with another version.

    Args:
        content: The file.
        new: The version, `X.Y.Z`. What is installed together has this one: the metapackage pins it. Everybody
            else takes a core that is this one or newer, up to the next major version.
    """
    major, minor, _ = new.split(".")
    content = _OWN.sub(f'version = "{new}"', content, count=1)
    content = _PIN.sub(rf'"\1=={new}"', content)
    return _CORE.sub(rf'"opencode-mcp-core\1>={major}.{minor},<{int(major) + 1}"', content)


def write(new: str) -> None:
    """Write a version into every pyproject.toml of this checkout."""
    for folder in _FOLDERS:
        for path in ROOT.glob(f"{folder}/pyproject.toml"):
            path.write_text(written(path.read_text("utf-8"), new), "utf-8")


def main(words: Sequence[str]) -> int:
    """Print the version, or write the one given; return 2 if that is none."""
    match words:
        case []:
            print(version())
        case [new] if _VERSION.fullmatch(new):
            write(new)
        case _:
            print("dev: a version is three numbers: ./dev version 0.2.0", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
