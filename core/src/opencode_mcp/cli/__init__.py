"""The person's face: the command `opencode-mcp`.

Without arguments it is the MCP server, and starting that is kept fast: no command-line library is imported.
"""

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command; ends the process with 0, or 2 for something the user can put right."""
    # The imports make some hundred thousand objects that stay. Looking for garbage among them meanwhile
    # takes a fifth of the start-up, and frozen they are never looked at again.
    gc.disable()
    try:
        if len(sys.argv) == 1:
            if sys.platform != "win32":  # where the server does not listen to signals by itself, later on
                signal.signal(signal.SIGINT, _leave)
            from opencode_mcp.cli.serve import serve

            serve()
        else:
            from opencode_mcp.cli.commands import app

            gc.enable()
            gc.freeze()
            app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _leave(*_: object) -> None:
    os._exit(130)  # there is nothing to clean up yet
