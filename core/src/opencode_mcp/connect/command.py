"""The command `opencode-connected`: reads what is wanted, starts OpenCode, and hands over to `supervise`.

OpenCode is started as soon as it is certain that it can be announced; what only announcing needs is imported
beside it.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

_EPILOG = """\
Everything after -- goes to opencode: opencode-connected -- --model x/y
The transports are selected with TRANSPORT, as for opencode-mcp.
"""


def main() -> None:
    """Run the command; ends the process as OpenCode ends, or with 2 for something the user can put right."""
    gc.disable()  # until all is imported: what is made meanwhile stays
    try:
        _main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _main(words: Sequence[str]) -> None:
    ours, passed_on = _split(words)
    chosen = _parser().parse_args(ours)
    if sys.platform == "win32":
        _give_up("opencode-connected needs a POSIX system. On Windows, run it inside WSL.", 2)
    from opencode_mcp.errors import OpenCodeMCPError, StartError

    try:
        if chosen.command is not None:
            raise SystemExit(_report(chosen.command))
        from opencode_mcp.connect.start import start

        start(headless=chosen.headless, attach=chosen.attach, port=chosen.port, passed_on=passed_on)
    except StartError as error:
        _give_up(str(error), error.code)
    except OpenCodeMCPError as error:
        _give_up(str(error), 2)


def _report(name: str) -> int:
    if name == "status":
        from opencode_mcp.connect.status import status as report
    elif name == "cleanup":
        from opencode_mcp.connect.cleanup import cleanup as report
    else:
        from opencode_mcp.connect.sessions import sessions as report
    gc.enable()
    return report()


def _split(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if "--" not in words:
        return words, ()
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="opencode-connected",
        usage="opencode-connected [--headless | --attach URL] [--port N] [-- ARGUMENTS...]\n"
        "       opencode-connected status | cleanup | sessions",
        description="Start OpenCode, put it on the map, and keep it there.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("status", "cleanup", "sessions"),
        metavar="status | cleanup | sessions",
        help="how the instances of this machine stand; remove what killed ones left behind; "
        "list the sessions of every instance",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--headless", action="store_true", help="start `opencode serve` instead of the TUI")
    kind.add_argument("--attach", metavar="URL", help="announce a server that is running already")
    parser.add_argument(
        "--port", type=_port, metavar="N", help="the port it listens on; default: any free one"
    )
    parser.add_argument("--version", action=_Version, help="show the version")
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **further: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **further)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"opencode-connected {version('opencode-mcp-core')}")
        parser.exit()


def _port(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and 1 <= int(value) <= 65535):
        raise argparse.ArgumentTypeError("it takes a whole number from 1 to 65535")
    return int(value)


def _give_up(why: str, code: int) -> NoReturn:
    sys.stderr.write(f"opencode-connected: {why}\n")
    raise SystemExit(code)
