"""Commands for people to copy that put a package into the environment in which this runs.

A tool that uv installed has no pip, and what else is put into it is gone with uv's next change to it.
"""

import sys
from importlib.util import find_spec
from pathlib import Path


def _uv_tool() -> str:
    """What uv calls the tool in whose environment this runs; or nothing."""
    place = Path(sys.prefix)
    return place.name if (place / "uv-receipt.toml").is_file() else ""


# Looked up on import, since a disk may be slow, and the event loop does not wait for one.
_TOOL = _uv_tool()
_PIP = "pip" if find_spec("pip") else "uv pip"


def install(package: str) -> str:
    """Return the command that installs `package`."""
    if _TOOL:
        return f"uv tool install {_TOOL} --with {package} (and with each --with that it has already)"
    return f"{_PIP} install {package}"


def update(*packages: str) -> str:
    """Return the command that updates `packages`."""
    return f"uv tool upgrade {_TOOL}" if _TOOL else f"{_PIP} install -U {' '.join(packages)}"


def reinstall(package: str) -> str:
    """Return the command that installs `package` afresh, with what it needs."""
    return f"uv tool upgrade {_TOOL} --reinstall" if _TOOL else f"{_PIP} install --force-reinstall {package}"
