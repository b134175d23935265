#!/usr/bin/env python3
"""Write `.env.example` and the tables of `configuration.md` from the settings models.

Run it after changing one, of core or of a transport: `python docs/generate.py`.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from opencode_mcp.plugins import Plugins
from opencode_mcp.settings import ConnectSettings, CoreSettings, Documented, Settings, documented

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- from here on written by docs/generate.py -->\n"
END = "<!-- up to here -->\n"

_EXAMPLE = """\
# Every environment variable of opencode-mcp, with its default. Written by docs/generate.py.
#
# Nothing reads this file by itself. Put what you change into the "env" of your chat client's configuration;
# or copy the file to .env, take away the "#" in front of what you change, and load it into your shell:
#
#   set -a; . ./.env; set +a
"""
_HEAD = """\
| variable | default | takes | what it does |
|---|---|---|---|
"""


def sections() -> Iterator[tuple[str, list[Documented]]]:
    """Yield the title and the settings of core, and of each transport of this repository."""
    yield "All transports", _settings(CoreSettings)
    further = set(ConnectSettings.model_fields) - set(CoreSettings.model_fields)
    yield "`opencode-connected`", [documented(ConnectSettings.model_fields[name]) for name in sorted(further)]
    names: list[str] = []
    for path in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        names += project.get("entry-points", {}).get("opencode_mcp.transports", {})
    for plugin in Plugins().load_transports(names):
        yield f"`TRANSPORT={plugin.name}`", _settings(plugin.settings)


def _settings(model: type[Settings]) -> list[Documented]:
    return [documented(field) for field in model.model_fields.values()]


def example() -> str:
    """Return what `.env.example` holds: every variable commented out, so that copying it changes nothing."""
    lines = [_EXAMPLE]
    for title, settings in sections():
        lines.append(f"\n# ---- {title.replace('`', '')} ----\n")
        for one in settings:
            about = wrap(f"{one.about} It takes {one.takes}.".replace("`", ""), 108, break_on_hyphens=False)
            lines += ["\n", *(f"# {line}\n" for line in about), f"#{one.variable}={one.default}\n"]
    return "".join(lines)


def tables() -> str:
    """Return the tables of `configuration.md`, one for each settings model."""
    lines: list[str] = []
    for title, settings in sections():
        lines.append(f"\n### {title}\n\n{_HEAD}")
        for one in settings:
            default = f"`{one.default}`" if one.default else "none"
            lines.append(f"| `{one.variable}` | {default} | {_cell(one.takes)} | {_cell(one.about)} |\n")
    return "".join((*lines, "\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def configuration(page: str) -> str:
    """Return `page` with what stands between the markers written anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


def generated() -> dict[Path, str]:
    """Return the content of every file that is written."""
    page = ROOT / "docs/configuration.md"
    return {ROOT / ".env.example": example(), page: configuration(page.read_text("utf-8"))}


if __name__ == "__main__":
    for path, content in generated().items():
        path.write_text(content, "utf-8")
