"""The command `opencode-mcp` in a process of its own, with an environment that nothing leaks into."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import anyio

SCRIPT = Path(sys.executable).with_name("opencode-mcp")
"""The command as it is installed."""
MODULE = (sys.executable, "-m", "opencode_mcp")
"""The same, wherever scripts were put."""

_PASSED_ON = ("PATH", "SYSTEMROOT", "TMPDIR", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclasses.dataclass(frozen=True)
class Command:
    """Runs `opencode-mcp` in `home`, which holds the registry directory `registry` as well."""

    home: Path

    @property
    def registry(self) -> Path:
        return self.home / "registry"

    def environment(self, **variables: str) -> dict[str, str]:
        """Build the environment: what Python needs, a home, the registry, and `variables` on top."""
        return {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "HOME": str(self.home),
            "PYTHONIOENCODING": "utf-8",
            "RELAY_REGISTRY_DIR": str(self.registry),
            **variables,
        }

    def __call__(
        self, *arguments: str | bytes, stdin: bytes = b"", script: bool = False, **variables: str
    ) -> Outcome:
        """Run the command to its end, a minute at most."""
        program = (str(SCRIPT),) if script else MODULE
        ended = subprocess.run(
            [*program, *arguments],
            input=stdin,
            capture_output=True,
            cwd=self.home,
            env=self.environment(**variables),
            timeout=60,
            check=False,
        )
        return Outcome(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    async def meanwhile(self, *arguments: str | bytes, stdin: bytes = b"", **variables: str) -> Outcome:
        """Run the command to its end, a minute at most, while the event loop goes on."""
        with anyio.fail_after(60):
            ended = await anyio.run_process(
                [*MODULE, *arguments],
                input=stdin,
                check=False,
                cwd=self.home,
                env=self.environment(**variables),
            )
        return Outcome(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
