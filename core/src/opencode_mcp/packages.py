"""Commands for people to copy that put a package into the environment in which this runs."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class _Words(NamedTuple):
    """What to run, with `{}` for the packages."""

    install: str
    update: str
    reinstall: str


def install(package: str) -> str:
    """Return the command that installs `package`; a remark may stand before it."""
    return _WORDS.install.format(package)


def update(*packages: str) -> str:
    """Return the command that updates `packages`."""
    return _WORDS.update.format(" ".join(packages))


def reinstall(package: str) -> str:
    """Return the command that installs `package` afresh, with what it needs."""
    return _WORDS.reinstall.format(package)


def _words() -> _Words:
    place = Path(sys.prefix)
    tool = place.name
    if (place / "uv-receipt.toml").is_file():  # a tool of uv: what is put into it otherwise is lost some day
        return _Words(
            f"with each --with that it has already: uv tool install {tool} --with {{}}",
            f"uv tool upgrade {tool}",
            f"uv tool upgrade {tool} --reinstall",
        )
    if (place / "pipx_metadata.json").is_file():
        return _Words(
            f"pipx inject {tool} {{}}", f"pipx upgrade --include-injected {tool}", f"pipx reinstall {tool}"
        )
    if place.parent.name.startswith("archive-v"):  # made by uvx, and gone with its cache
        return _Words(
            "uvx --with {} opencode-mcp", "uvx --refresh opencode-mcp", "uvx --refresh opencode-mcp"
        )
    if place.name == ".venv" and (place.parent / "uv.lock").is_file():
        return _Words("uv add {}", "uv sync --upgrade", "uv sync --reinstall-package {}")
    if find_spec("pip"):
        pip = "pip" if sys.prefix == sys.base_prefix else f"{shlex.quote(sys.executable)} -m pip"
        return _Words(
            f"{pip} install {{}}", f"{pip} install -U {{}}", f"{pip} install --force-reinstall {{}}"
        )
    pip = f"uv pip install --python {shlex.quote(sys.prefix)}"
    return _Words(f"{pip} {{}}", f"{pip} -U {{}}", f"{pip} --reinstall {{}}")


# Found out on import, since a disk may be slow, and the event loop does not wait for one.
_WORDS = _words()
