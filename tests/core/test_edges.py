"""Where it meets what it does not control: closed streams, foreign code that fails or hangs, limits."""

import importlib.util
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import anyio
import pytest
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic.fields import FieldInfo

from opencode_mcp import Settings, variable
from opencode_mcp.errors import PluginError, SettingsError
from opencode_mcp.plugins import Plugins
from opencode_mcp.runtime import _allow_many_connections
from opencode_mcp.settings import documented, read_settings
from support.command import MODULE, SCRIPT, Command
from support.distributions import TRANSPORT, Site
from support.stdio_server import Wire, serving

pytestmark = pytest.mark.anyio

LEFT_WITHIN = 7.5
"""Seconds in which the process must be gone, whatever a transport does in its clean-up."""


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


# The demo.

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"
OPENCODE = """\
#!/bin/sh
"exec" "{python}" "$0" "$@"  # a blank in the path is more than a first line can take
import http.server, json, sys, time

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/global/health":
            status, body = 200, json.dumps({health}).encode()
        else:
            status, body = {answer}
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Answers).serve_forever()
"""
HEALTHY = "{'version': '1.18.33'}"


def refuses(path: str) -> str:
    return f"""500 if self.path == {path!r} else 200, b'{{"connected": ["a-provider"]}}'"""


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_under_test", DEMO)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Make `source` the only `opencode` on PATH."""
    folder.mkdir()
    program = folder / "opencode"
    program.write_text(source)
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("health", "answer", "why"),
    [
        (HEALTHY, "time.sleep(60)", "does not tell its configuration (ReadTimeout)"),
        (HEALTHY, refuses("/config"), "does not tell its configuration (HTTPStatusError)"),
        (HEALTHY, refuses("/provider"), "does not tell its configuration (HTTPStatusError)"),
        (HEALTHY, "200, b'<html>'", "does not tell its configuration (JSONDecodeError)"),
        (HEALTHY, "200, b'[]'", "does not tell its configuration (AttributeError)"),
        (HEALTHY, """200, b'{"connected": 7}'""", "does not tell its configuration (TypeError)"),
        (HEALTHY, "200, b'{}'", "has no model configured"),
        ("{'version': '2.0.0'}", "200, b'{}'", "is not a 1.x version"),
    ],
)
async def test_the_demo_uses_the_fake_and_says_why_if_opencode_answers_late_or_oddly(
    demo: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    health: str,
    answer: str,
    why: str,
) -> None:
    monkeypatch.setattr(demo, "CONFIGURATION_SECONDS", 0.5)
    source = OPENCODE.format(python=sys.executable, health=health, answer=answer)
    put_on_path(tmp_path / "bin", monkeypatch, source)
    with anyio.fail_after(30):
        async with demo.open_code(await a_project(tmp_path)) as url:
            assert url
    assert f"The built-in FakeOpenCode runs at {url}, since the `opencode` on PATH {why}." in flat(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("health", ["[]", "7", "{'version': 7}", "{}"])
async def test_the_demo_gives_a_server_up_that_never_says_a_version(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, health: str
) -> None:
    put_on_path(
        tmp_path / "bin",
        monkeypatch,
        OPENCODE.format(python=sys.executable, health=health, answer="200, b'{}'"),
    )
    move_on_after = anyio.move_on_after
    monkeypatch.setattr(anyio, "move_on_after", lambda seconds: move_on_after(min(seconds, 1)))
    with anyio.fail_after(30):
        async with demo.real_open_code(
            str(tmp_path / "bin" / "opencode"), await a_project(tmp_path)
        ) as found:
            assert found == ("", "the `opencode` on PATH did not answer within 40 s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("#!/nowhere/to/be/found\n", "cannot be started (No such file or directory)"),
        ("#!/bin/sh\nexit 3\n", "ended at once"),
    ],
)
async def test_the_demo_uses_the_fake_and_says_why_if_opencode_does_not_start(
    demo: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    why: str,
) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, source)
    with anyio.fail_after(30):
        async with demo.open_code(await a_project(tmp_path)) as url:
            assert url
    assert f"since the `opencode` on PATH {why}." in flat(capsys)


async def a_project(folder: Path) -> Path:
    project = folder / "hello-world"
    await anyio.Path(project).mkdir()
    return project


def flat(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


# Closed streams.


@pytest.mark.slow
@pytest.mark.parametrize(("closed", "name"), [("<&-", "stdin"), (">&-", "stdout")])
def test_a_server_whose_stdin_or_stdout_is_closed_says_so(command: Command, closed: str, name: str) -> None:
    ended = in_a_shell(command, closed)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"opencode-mcp: {name} is closed, so that no client can talk to this server. "
        "Start it with both stdin and stdout connected.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "code"), [({}, 0), ({"SEND_TIMEOUT_MS": "soon"}, 2)])
def test_a_closed_stderr_changes_nothing(command: Command, variables: dict[str, str], code: int) -> None:
    ended = in_a_shell(command, "</dev/null 2>&-", **variables)
    assert (ended.returncode, ended.stdout) == (code, "")


def in_a_shell(command: Command, redirections: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {shlex.join(MODULE)} {redirections}"],
        capture_output=True,
        text=True,
        cwd=command.home,
        env=command.environment(**variables),
        timeout=60,
        check=False,
    )


# Settings.


@pytest.mark.slow
def test_a_relative_directory_in_a_working_directory_that_is_gone_is_told_as_a_bad_variable(
    command: Command,
) -> None:
    gone = command.home / "gone"
    gone.mkdir()
    ended = subprocess.run(
        ["/bin/sh", "-c", f"rmdir {shlex.quote(str(gone))} && exec {shlex.quote(str(SCRIPT))} instances"],
        capture_output=True,
        text=True,
        cwd=gone,
        env=command.environment(RELAY_REGISTRY_DIR="relay"),
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    # A script in a path with a blank starts through a shell, which has a word of its own to say.
    said = [line for line in ended.stderr.splitlines() if not line.startswith("sh: ")]
    assert len(said) == 1
    assert said[0].startswith("opencode-mcp: RELAY_REGISTRY_DIR=")
    assert "cannot be used: it takes the path of a directory" in said[0]


def fail(error: BaseException) -> type[Settings]:
    """Return a settings model whose own code raises `error`."""

    class Failing(Settings):
        token: SecretStr = variable("PLUGIN_TOKEN", SecretStr(""), takes="a token", about="…")

        @field_validator("token")
        @classmethod
        def _look_up(cls, value: SecretStr) -> SecretStr:
            error.args = (value.get_secret_value(),)
            raise error

    return Failing


@pytest.mark.parametrize("error", [KeyError(), OSError(), ZeroDivisionError(), SystemExit()])
def test_settings_whose_own_code_fails_are_told_with_model_and_error_and_no_value(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setenv("PLUGIN_TOKEN", "hunter2")
    with pytest.raises(SettingsError) as told:
        read_settings(fail(error))
    assert str(told.value) == (
        f"The settings {__name__}.fail.<locals>.Failing cannot be read: their own code raises "
        f"{type(error).__name__}. Update the package that brings them, or report it there."
    )
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__  # what shows the value is in no traceback


def test_the_command_tells_failing_settings_of_a_plugin_in_one_line(command: Command, site: Site) -> None:
    source = TRANSPORT.replace("NAME", "'semaphore'").replace("settings=Settings", "settings=Failing")
    failing = """
from pydantic import model_validator
from opencode_mcp import Settings

class Failing(Settings):
    @model_validator(mode="before")
    @classmethod
    def fail(cls, values):
        raise LookupError("no luck")
"""
    site.install("dist", transports={"semaphore": "flags"}, modules={"flags": failing + source})
    ended = command("instances", TRANSPORT="semaphore", PYTHONPATH=str(site.path))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("opencode-mcp: The settings flags.Failing cannot be read: ")
    assert "LookupError" in ended.err
    assert ended.err.count("\n") == 1


def test_a_variable_without_a_default_is_told_as_missing_and_others_are_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Needy(Settings):
        token: SecretStr = variable("PLUGIN_TOKEN", SecretStr(""), takes="a token", about="…")
        host: str = variable("PLUGIN_HOST", ..., takes="a host name", about="…")

    monkeypatch.setenv("PLUGIN_TOKEN", "hunter2")
    with pytest.raises(SettingsError) as told:
        read_settings(Needy)
    assert str(told.value) == "PLUGIN_HOST is not set: it takes a host name."


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        (FieldInfo.from_annotated_attribute(int, 5), ("", "5", "a value of the type int", "")),
        (
            FieldInfo.from_annotated_attribute(str, Field(None, validation_alias="X", description="…")),
            ("X", "", "a value of the type str", "…"),
        ),
        (
            FieldInfo.from_annotated_attribute(
                int, Field(validation_alias=AliasChoices("X", "Y"), json_schema_extra=lambda schema: None)
            ),
            ("", "", "a value of the type int", ""),
        ),
        (
            FieldInfo.from_annotated_attribute(
                tuple[int, ...], variable("X", (1, 2), takes="numbers", about="…")
            ),
            ("X", "1,2", "numbers", "…"),
        ),
    ],
    ids=["plain", "alias", "choices", "tuple"],
)
def test_a_field_that_was_made_otherwise_is_documented_as_well_as_it_can_be(
    field: FieldInfo, shown: tuple[str, ...]
) -> None:
    assert documented(field) == shown


def test_a_bad_value_of_such_a_field_is_told_with_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Settings):
        speed: int = Field(5, validation_alias="PLUGIN_SPEED")
        needed: int

    monkeypatch.setenv("PLUGIN_SPEED", "fast")
    with pytest.raises(SettingsError) as told:
        read_settings(Plain)
    assert str(told.value).splitlines() == [
        "PLUGIN_SPEED='fast' cannot be used: it takes a value of the type int.",
        "needed is not set: it takes a value of the type int.",
    ]


# Plugins.


def test_of_several_transports_that_cannot_be_loaded_each_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site.path)
    site.install("dist", transports={"broken": "edges_broken"}, modules={"edges_broken": "1/0"})
    with pytest.raises(PluginError) as told:
        Plugins().load_transports(["foo", "local-relay", "broken", "bar"])
    foo, broken, bar = str(told.value).splitlines()
    assert foo.startswith("TRANSPORT asks for 'foo', which is not installed.")
    assert broken.startswith("Plugin 'broken' (from dist 1.0, edges_broken) is broken: ZeroDivisionError")
    assert bar.startswith("TRANSPORT asks for 'bar', which is not installed.")


@pytest.mark.slow
def test_the_server_tells_them_all_as_well(command: Command) -> None:
    ended = command(TRANSPORT="foo,bar")
    assert (ended.code, ended.out) == (2, "")
    foo, bar = ended.err.splitlines()
    assert foo.startswith("opencode-mcp: TRANSPORT asks for 'foo'")
    assert bar.startswith("TRANSPORT asks for 'bar'")


# The limit of open files.

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "tried", "soft_after"),
    [
        (256, UNLIMITED, 1 << 20, [65_536], 65_536),
        (256, UNLIMITED, 10_240, [65_536, 10_240], 10_240),  # as macOS
        (256, UNLIMITED, 0, [65_536, 10_240], 256),
        (256, 4096, 1 << 20, [4096], 4096),
        (20_000, UNLIMITED, 10_240, [65_536], 20_000),
        (65_536, UNLIMITED, 1 << 20, [], 65_536),
        (UNLIMITED, UNLIMITED, 1 << 20, [], UNLIMITED),
        (4096, 4096, 1 << 20, [], 4096),
    ],
)
@pytest.mark.parametrize("refusal", [ValueError, OSError])
def test_the_limit_of_open_files_is_raised_as_far_as_allowed_and_no_refusal_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    allowed: int,
    tried: list[int],
    soft_after: int,
    refusal: Callable[[str], Exception],
) -> None:
    limits = [soft, hard]
    asked: list[int] = []

    def setrlimit(_: int, wanted: tuple[int, int]) -> None:
        asked.append(wanted[0])
        if wanted[0] > allowed:
            raise refusal("current limit exceeds maximum limit")
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    _allow_many_connections()
    assert asked == tried
    assert limits == [soft_after, hard]


# Leaving.


def hanging(how: str) -> str:
    """Return the source of a transport whose watch does `how` when it is cancelled."""
    discover = "    async def discover(self):\n        return []\n"
    assert discover in TRANSPORT
    watch = f"""
    async def watch(self, publish):
        publish([])
        try:
            await anyio.sleep_forever()
        finally:
            {how}
"""
    source = TRANSPORT.replace("NAME", "'hanging'").replace(discover, discover + watch)
    return f"import anyio, threading, time\n{source}"


SLEEPS = "with anyio.CancelScope(shield=True): await anyio.sleep(60)"
BLOCKS = "time.sleep(60)"
LEAVES_A_THREAD = "threading.Thread(target=time.sleep, args=(60,)).start()"
TOLD = b"opencode-mcp: Cleaning up took more than 5 s, so the process was ended without.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        (SLEEPS, signal.SIGTERM, 0),
        (SLEEPS, signal.SIGINT, 130),
        (SLEEPS, None, 0),
        (BLOCKS, None, 0),
        (LEAVES_A_THREAD, None, 0),
    ],
    ids=["TERM", "INT", "EOF", "EOF-blocked", "EOF-thread"],
)
async def test_a_transport_that_hangs_in_its_clean_up_is_left_behind(
    command: Command, site: Site, how: str, number: signal.Signals | None, code: int
) -> None:
    site.install("dist", transports={"hanging": "hanging"}, modules={"hanging": hanging(how)})
    async with serving(command, TRANSPORT="hanging", PYTHONPATH=str(site.path)) as wire:
        await wire.initialize()
        await wire.tool("instances")  # which waits until the transport has published
        began = time.monotonic()
        if number is None:
            await wire.close_stdin()
        else:
            wire.process.send_signal(number)
        assert await wire.exit_code(LEFT_WITHIN) == code
        assert time.monotonic() - began > 4
    assert (bytes(wire.err), wire.junk) == (TOLD, [])


@pytest.mark.slow
async def test_it_is_left_behind_even_if_nobody_reads_what_is_said_of_it(
    command: Command, site: Site
) -> None:
    site.install("dist", transports={"hanging": "hanging"}, modules={"hanging": hanging(SLEEPS)})
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with suppress(BlockingIOError):
        while True:
            os.write(full, b"x" * 512)
    os.set_blocking(full, True)
    try:
        async with (
            await anyio.open_process(
                MODULE,
                stderr=full,
                cwd=command.home,
                env=command.environment(TRANSPORT="hanging", PYTHONPATH=str(site.path)),
            ) as process,
            anyio.create_task_group() as tasks,
        ):
            wire = Wire(process)
            tasks.start_soon(wire.read_stdout)
            try:
                await wire.initialize()
                await wire.tool("instances")
                await wire.close_stdin()
                assert await wire.exit_code(LEFT_WITHIN) == 0
            finally:
                if process.returncode is None:
                    process.kill()
    finally:
        os.close(unread)
        os.close(full)


@pytest.mark.slow
def test_what_a_plugin_prints_while_it_is_imported_stays_out_of_the_protocol(
    command: Command, site: Site
) -> None:
    source = TRANSPORT.replace("NAME", "'loud'")
    site.install(
        "opencode-mcp-loud", transports={"loud": "loud"}, modules={"loud": f"print('hello')\n{source}"}
    )
    ended = command(TRANSPORT="loud", PYTHONPATH=str(site.path))
    assert (ended.code, ended.out) == (0, "")
    assert "hello" in ended.err
