"""`opencode-mcp doctor`: finds the step at which a request breaks, and says so to a person or a program."""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Annotated, NoReturn

import typer

from opencode_mcp.cli import diagnosis
from opencode_mcp.doctor import State, examine
from opencode_mcp.errors import SettingsError
from opencode_mcp.runtime import start_logging
from opencode_mcp.settings import CoreSettings, read_settings

_NARROWEST = 20


def doctor(
    transport: Annotated[
        str | None,
        typer.Argument(help="Which transport, or several with commas between. Default: those of TRANSPORT."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Walk the path of a request and say where it breaks. Exit code 1 if it does anywhere."""
    names = None if transport is None else [name for one in transport.split(",") if (name := one.strip())]
    if names == []:
        raise typer.BadParameter("no name in it", param_hint="TRANSPORT")
    _start_logging()
    with _doing() as told, redirect_stdout(sys.stderr):  # a plugin may print
        report = examine(names, told=told)
    if as_json:
        plain = not sys.stdout.encoding.lower().startswith("utf")
        typer.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=plain))
    else:
        diagnosis.show(report)
    _leave(int(report.state is State.FAILED))


def _start_logging() -> None:
    """Log only if that is asked for: what goes wrong stands in the report."""
    with suppress(SettingsError):  # which stands in the report as well
        start_logging(read_settings(CoreSettings))
    if not os.environ.get("OPENCODE_MCP_LOG_LEVEL"):
        logging.disable()


@contextmanager
def _doing() -> Generator[Callable[[str], None]]:
    """Show on the last line of a terminal what goes on."""
    terminal = sys.stderr
    if terminal is None or not terminal.isatty():
        yield lambda _: None
        return

    def tell(what: str) -> None:
        width = max(_NARROWEST, os.get_terminal_size(terminal.fileno()).columns)
        terminal.write(f"\r\x1b[K{what[: width - 1]}")
        terminal.flush()

    try:
        yield tell
    finally:
        terminal.write("\r\x1b[K")
        terminal.flush()


def _leave(code: int) -> NoReturn:
    """End the process; at once if foreign code left a thread behind, for which Python would wait."""
    main = threading.main_thread()
    if all(thread.daemon or thread is main for thread in threading.enumerate()):
        raise typer.Exit(code)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
