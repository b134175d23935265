"""Facts about this machine and this Python that often explain trouble."""

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, entry_points, version

from opencode_mcp.doctor.report import Environment
from opencode_mcp.plugins import PLUGINS_GROUP, TRANSPORTS_GROUP

_OURS = ("opencode-mcp", "opencode-mcp-core")
_LIBRARIES = ("anyio", "httpx2", "mcp", "pluggy", "pydantic", "pydantic-settings", "typer", "rich")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def environment() -> Environment:
    """Look at this process."""
    soft, hard = _open_files()
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=_versions((*_OURS, *_plugins(), *_LIBRARIES)),
        proxies=[name for name in sorted(os.environ) if name.lower() in _PROXIES and os.environ[name]],
        open_files=soft,
        open_files_most=hard,
    )


def _plugins() -> list[str]:
    """The distributions that bring plugins."""
    entries = [*entry_points(group=TRANSPORTS_GROUP), *entry_points(group=PLUGINS_GROUP)]
    return sorted({entry.dist.name for entry in entries if entry.dist})


def _versions(distributions: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # such as the metapackage, where only core is installed
            continue
    return found


def _open_files() -> tuple[int | None, int | None]:
    if sys.platform == "win32":
        return None, None
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (None if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return soft, hard
