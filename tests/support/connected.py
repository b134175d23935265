"""The command `opencode-connected` in processes of its own, with an environment that nothing leaks into."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from support import light_opencode
from support.command import Command, Outcome
from support.real_opencode import opencode_binary

_SCRIPT = Path(sys.executable).with_name("opencode-connected")
_MODULE = "from opencode_mcp.connect.command import main; main()"

PROGRAM: Sequence[str] = (str(_SCRIPT),) if _SCRIPT.exists() else (sys.executable, "-c", _MODULE)
"""The command as it is installed, or else the same from its module."""


def patched(*changes: str) -> Sequence[str]:
    """Return the command with constants of its modules changed, each as `module._NAME = value`."""
    modules = {change.partition(".")[0] for change in changes}
    imports = "".join(f"import opencode_mcp.connect.{one} as {one}; " for one in sorted(modules))
    return (sys.executable, "-c", f"{imports}{'; '.join(changes)}; {_MODULE}")


SHARED = 2.0 if "PYTEST_XDIST_WORKER" in os.environ else 1.0
"""How much longer everything may take, since other tests run beside these."""
PROMPTLY = 3.0 * SHARED
"""Seconds in which any way out must be over."""

T = TypeVar("T")


def eventually(condition: Callable[[], T], seconds: float = 10, show: Callable[[], object] = lambda: "") -> T:
    """Wait until a condition holds, bounded; return what it was."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"It did not come true within {seconds} s. {show()}")
        time.sleep(0.01)


@dataclasses.dataclass(frozen=True)
class Started:
    """A running `opencode-connected`.

    Attributes:
        process: Its process.
        err: Where its stderr goes, and OpenCode's.
        out: Where its stdout goes, and OpenCode's.
    """

    process: "subprocess.Popen[bytes]"
    err: Path
    out: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """What it has written on stderr so far."""
        return self.err.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def code(self, seconds: float = PROMPTLY) -> int:
        """Wait for its end; return what `Popen.returncode` says."""
        return self.process.wait(seconds)


@dataclasses.dataclass(frozen=True)
class Connected:
    """Runs `opencode-connected` in `home`, with the light OpenCode on PATH, or the real one.

    What it starts, and what that starts, is known by its HOME. The light one does what `does` says, unless
    the test says another.
    """

    home: Path
    real: bool = False
    does: str = ""

    def __post_init__(self) -> None:
        for directory in (self.project, self.records, self.programs):
            directory.mkdir(parents=True, exist_ok=True)
        opencode = self.programs / "opencode"
        if opencode.exists():
            return
        if self.real:
            opencode.symlink_to(opencode_binary())
        else:
            words = [sys.executable, "-IS", light_opencode.__file__]
            opencode.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            opencode.chmod(0o755)

    @property
    def project(self) -> Path:
        """The folder it is started in, unless the test says another."""
        return self.home / "project"

    @property
    def programs(self) -> Path:
        """What is first on PATH."""
        return self.home / "bin"

    @property
    def records(self) -> Path:
        """Where the light OpenCode says how it was started."""
        return self.home / "records"

    @property
    def state(self) -> Path:
        """Its state directory."""
        return self.home / "state" / "opencode-mcp"

    @property
    def registry(self) -> Path:
        return self.gateway.registry

    @property
    def gateway(self) -> Command:
        """The other side: `opencode-mcp` with the same home and registry."""
        return Command(self.home)

    def environment(self, **variables: str) -> dict[str, str]:
        """Build the environment, with `variables` on top."""
        own = self.gateway.environment()
        own["PATH"] = os.pathsep.join([str(self.programs), own["PATH"]])
        return {
            **own,
            "XDG_STATE_HOME": str(self.state.parent),
            "LIGHT_RECORDS": str(self.records),
            **({"LIGHT_DOES": self.does} if self.does else {}),
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            **variables,
        }

    def __call__(
        self,
        *arguments: str,
        cwd: Path | bytes | None = None,
        program: Sequence[str] = PROGRAM,
        environment: Mapping[str, str] | None = None,
        **variables: str,
    ) -> Outcome:
        """Run the command to its end, a minute at most."""
        with self._files() as (out, err), out.open("wb") as out_file, err.open("wb") as err_file:
            ended = subprocess.run(  # into files: a pipe would stay open as long as anybody has it
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                cwd=cwd or self.project,
                env={**self.environment(**variables), **(environment or {})},
                timeout=60,
                check=False,
            )
            return Outcome(ended.returncode, out.read_text(), err.read_text())

    @contextlib.contextmanager
    def started(
        self,
        *arguments: str,
        cwd: Path | bytes | None = None,
        program: Sequence[str] = PROGRAM,
        stdin: int | None = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
        **variables: str,
    ) -> Generator[Started]:
        """Run the command while the block runs; then it is ended with SIGTERM, should it still run."""
        with self._files() as (out, err), out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [*program, *arguments],
                stdin=stdin,
                stdout=out_file,
                stderr=err_file,
                cwd=cwd or self.project,
                env={**self.environment(**variables), **(environment or {})},
            )
            try:
                yield Started(process, err, out)
            finally:
                if process.poll() is None:
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(2 * PROMPTLY)
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if process.stdin is not None:
                    process.stdin.close()

    @contextlib.contextmanager
    def announced(self, *arguments: str, **more: Any) -> Generator[Started]:
        """Run `opencode-connected --headless` while the block runs, which begins once it is announced."""
        before = set(self.files())
        with self.started("--headless", *arguments, **more) as started:
            eventually(
                lambda: set(self.files()) - before or started.process.poll() is not None,
                show=lambda: started.said,
            )
            assert started.process.poll() is None, started.said
            yield started

    @contextlib.contextmanager
    def _files(self) -> Generator[tuple[Path, Path]]:
        number = time.monotonic_ns()
        yield self.home / f"{number}.out", self.home / f"{number}.err"

    def files(self) -> list[Path]:
        """The registration files."""
        return sorted(self.registry.glob("*.json"))

    def registrations(self) -> list[dict[str, Any]]:
        """What is registered, by name."""
        found: list[dict[str, Any]] = []
        for path in self.files():
            with contextlib.suppress(FileNotFoundError):  # withdrawn at this moment
                found.append(json.loads(path.read_text()))
        return sorted(found, key=lambda one: one["name"])

    def registration(self) -> dict[str, Any]:
        """Wait for the one registration, and return it."""
        eventually(self.files)
        [found] = self.registrations()
        return found

    def runs(self) -> list[dict[str, Any]]:
        """How the light OpenCode was started, each time."""
        return [json.loads(path.read_text()) for path in sorted(self.records.glob("*.json"))]

    def run(self) -> dict[str, Any]:
        """Wait until the light OpenCode was started, and return how."""
        eventually(self.runs)
        [found] = self.runs()
        return found

    @property
    def service(self) -> Path:
        """Where OpenCode 2.x has the file of its background service."""
        return self.home / "state" / "opencode" / "service.json"

    def opencode(self, *words: str, **variables: str) -> None:
        """Run the light OpenCode itself, to its end."""
        subprocess.run(
            [str(self.programs / "opencode"), *words],
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # no pipe: the service would keep it
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=True,
        )

    def told(self) -> dict[str, Any]:
        """Wait for the service file, and return what it says."""
        eventually(self.service.exists)
        return json.loads(self.service.read_text())

    def stop_service(self) -> None:
        """End the background service, if there is one."""
        for pid, words in self.processes().items():
            if "service run" in words:
                os.kill(pid, signal.SIGTERM)

    def pids(self) -> list[int]:
        """The processes of `opencode-connected` that have left a record, running or not."""
        return [json.loads(path.read_text())["pid"] for path in sorted(self.state.glob("*.json"))]

    def logs(self) -> str:
        """All that is in the logs."""
        return "".join(path.read_text() for path in sorted(self.state.glob("*.log")) if path.is_file())

    def processes(self) -> dict[int, str]:
        """Everything that runs because of this, by process: how its command line begins."""
        mark = f"HOME={self.home} "
        listed = subprocess.run(["ps", "axeww", "-o", "pid=,stat=,command="], capture_output=True, check=True)
        found: dict[int, str] = {}
        for line in listed.stdout.decode(errors="replace").splitlines():
            pid, state, command = [*line.split(None, 2), ""][:3]
            if mark in f"{command} " and state[0] != "Z":
                found[int(pid)] = command[:200]
        return found

    def gone(self, seconds: float = PROMPTLY) -> None:
        """Wait until nothing runs and nothing is registered any more."""
        eventually(lambda: not (self.processes() or self.files()), SHARED * seconds, show=self._left)

    def _left(self) -> str:
        return f"Left: {self.processes()} {self.files()} {self.logs()}"

    def end(self) -> dict[int, str]:
        """Kill what is left, and return what that was."""
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left
