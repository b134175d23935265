"""What a person reads before OpenCode takes over the terminal."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from opencode_mcp.text import clean_line

_RULE = "═" * 51


def banner(
    name: str, url: str, facts: Mapping[str, str], directory: str, log: Path, password: Path | None
) -> str:
    """Return the banner, ending in a line feed.

    Args:
        name: What the instance is called.
        url: Where it listens; empty if that is not known yet.
        facts: What the transports have to say.
        directory: Its project.
        log: Where the log is.
        password: The file with the password, if it was made up here.
    """
    lines = {
        "Instance": name,
        **({"Local port": str(urlsplit(url).port)} if url else {}),
        **facts,
        "CWD": directory,
        "Log": str(log),
    }
    if password is not None:
        lines["Password"] = f"generated, in {password}; give it to the gateway as OPENCODE_SERVER_PASSWORD"
    width = max(map(len, lines)) + 2
    shown = (
        f"  {f'{clean_line(key, 40)}:':<{width}}{clean_line(value, 1000)}" for key, value in lines.items()
    )
    return "\n".join([_RULE, "  opencode-connected", *shown, _RULE, ""])
