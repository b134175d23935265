"""What the tests of the packages share: uv, and environments into which only built wheels are installed."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from support.command import Outcome
from support.require import skip_or_fail

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/static"
PACKAGES = [
    ROOT,
    ROOT / "core",
    *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")),
    EXAMPLE,
]

_ATTEMPTS = 3
_SECONDS = 300
"""For one call of uv: an index that is slow is waited for, one that hangs is given up."""
_NEEDED = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "LANG")
_NETWORK = (
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX", "UV_FIND_LINKS", "UV_INSECURE_HOST", "UV_HTTP"),
    *("UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
"""How the names of variables begin that say how the index is reached."""
_AS_PIP_SAYS = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_CERT": "SSL_CERT_FILE",
}
"""Who has no uv has told only pip how to reach the index."""
_NOT_REACHED = ("error sending request", "Failed to fetch", "Could not connect", "timed out")


@dataclasses.dataclass(frozen=True)
class Uv:
    """The program uv, which takes from its cache what is there, and asks the index only for the rest.

    Attributes:
        path: Where it is.
        home: Its home; there are no settings of the user in it.
    """

    path: str
    home: Path

    def __call__(self, *arguments: str | Path, cwd: Path = ROOT, **variables: str) -> Outcome:
        """Run uv without the network and, if that fails, with it.

        A test that needs the index, and cannot reach it, is skipped; any other failure fails it.
        """
        ended = self._run(arguments, cwd, {"UV_OFFLINE": "1", **variables})
        for _ in range(_ATTEMPTS):
            if ended.code == 0:
                return ended
            ended = self._run(arguments, cwd, variables)
            if ended.code != 0 and not any(words in ended.err for words in _NOT_REACHED):
                words = " ".join(map(str, arguments))
                pytest.fail(f"uv {words} ended with {ended.code}:\n{ended.out}\n{ended.err}", pytrace=False)
        if ended.code != 0:
            skip_or_fail(f"uv cannot reach the package index: {' '.join(ended.err.split())[:500]}")
        return ended

    def _run(self, arguments: tuple[str | Path, ...], cwd: Path, variables: Mapping[str, str]) -> Outcome:
        told = {uv: os.environ[pip] for pip, uv in _AS_PIP_SAYS.items() if pip in os.environ}
        network = {name: value for name, value in os.environ.items() if name.upper().startswith(_NETWORK)}
        environment = {
            **_needed(),
            **told,
            **network,
            "HOME": str(self.home),
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(ROOT / ".cache/uv")),
            "UV_PYTHON_DOWNLOADS": "never",
            **variables,
        }
        return run([self.path, *map(str, arguments)], cwd=cwd, environment=environment, seconds=_SECONDS)


@dataclasses.dataclass(frozen=True)
class CleanEnvironment:
    """A virtual environment that knows nothing of this repository.

    Attributes:
        venv: Its directory.
        home: The home of what runs in it; empty at first.
    """

    venv: Path
    home: Path

    @property
    def programs(self) -> Path:
        """Where its commands are."""
        return self.venv / ("Scripts" if sys.platform == "win32" else "bin")

    def environment(self, **variables: str) -> dict[str, str]:
        """What its commands are started with: none of our variables but `variables`."""
        return {
            **_needed(),
            "PATH": os.pathsep.join([str(self.programs), os.environ.get("PATH", os.defpath)]),
            "VIRTUAL_ENV": str(self.venv),
            "HOME": str(self.home),
            "PYTHONIOENCODING": "utf-8",
            **variables,
        }

    def __call__(
        self, name: str, *arguments: str | Path, cwd: Path | None = None, seconds: float = 120, **more: str
    ) -> Outcome:
        """Run one of its commands to its end, by default in its home.

        Args:
            name: The command, for example `opencode-mcp` or `python`.
            *arguments: Its arguments.
            cwd: Where it runs.
            seconds: How long it may take.
            **more: Environment variables besides.
        """
        command = [str(self.programs / name), *map(str, arguments)]
        return run(command, cwd=cwd or self.home, environment=self.environment(**more), seconds=seconds)


CleanEnvironments = Callable[..., CleanEnvironment]
"""Makes an environment that holds the distributions it is given, and what these depend on."""


def run(command: list[str], *, cwd: Path, environment: Mapping[str, str], seconds: float) -> Outcome:
    """Run a command to its end, with nothing on its stdin."""
    ended = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=cwd,
        env=environment,
        timeout=seconds,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def _needed() -> dict[str, str]:
    return {name: os.environ[name] for name in _NEEDED if name in os.environ}
