#!/usr/bin/env python3
"""Write `.env.example`, and what the reference says of settings, commands and tools, from the code itself.

Run it after changing one, of core or of a transport: `python docs/generate.py`. It writes between two markers
of a page; the rest of the page is written by hand.
"""

import argparse
import tomllib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any, cast

import anyio
import typer.core
import typer.main
from mcp_types import Tool

from opencode_mcp.cli.commands import app
from opencode_mcp.connect.command import _parser  # pyright: ignore[reportPrivateUsage] - nobody else needs it
from opencode_mcp.fleet import Fleet
from opencode_mcp.mcp.server import create_server
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
    return "".join((*(f"\n### {title}\n{_table(settings)}" for title, settings in sections()), "\n"))


def transport(name: str) -> str:
    """Return the table of the settings of one transport, for its own page."""
    [settings] = [settings for title, settings in sections() if title == f"`TRANSPORT={name}`"]
    return f"{_table(settings)}\n"


def _table(settings: list[Documented]) -> str:
    lines = [f"\n{_HEAD}"]
    for one in settings:
        default = f"`{one.default}`" if one.default else "none"
        lines.append(f"| `{one.variable}` | {default} | {_cell(one.takes)} | {_cell(one.about)} |\n")
    return "".join(lines)


def commands() -> str:
    """Return the part of `reference/commands.md` about `opencode-mcp`, its commands and their options."""
    group = cast("typer.core.TyperGroup", typer.main.get_command(app))
    lines = ["\n## `opencode-mcp`\n\n", f"{group.help}\n\n", _parameters(group.params)]
    for name, command in group.commands.items():
        if not command.hidden:
            words = " ".join(_argument(one) for one in command.params if one.param_type_name == "argument")
            usage = " ".join(filter(None, ("opencode-mcp", name, words)))
            lines += [f"## `opencode-mcp {name}`\n\n", f"{_paragraphs(command.help or '')}\n\n"]
            lines += [f"```sh\n{usage}\n```\n\n", _parameters(command.params)]
    lines += ["## `opencode-connected`\n\n", _connected(_parser())]
    return "".join(lines)


def _paragraphs(text: str) -> str:
    return text.replace("\b", "").strip()


def _argument(one: Any) -> str:
    shown = str(one.name).upper()
    return shown if one.required else f"[{shown}]"


def _parameters(parameters: list[Any]) -> str:
    rows: list[str] = []
    for one in parameters:
        if one.param_type_name == "argument":
            name, default = f"`{_argument(one)}`", "none" if one.required or not one.default else one.default
        else:
            value = "" if one.is_flag else f" {str(one.metavar or one.name).upper()}"
            name = ", ".join(f"`{option}{value}`" for option in one.opts)
            told = one.show_default if isinstance(one.show_default, str) else one.default
            default = "none" if told in (None, False, "") else f"`{told}`"
        rows.append(f"| {name} | {default} | {_cell(one.help or '')} |\n")
    return f"| option | default | what it does |\n|---|---|---|\n{''.join(rows)}\n" if rows else ""


def _connected(parser: argparse.ArgumentParser) -> str:
    usage = "\n".join(line.strip() for line in (parser.usage or "").splitlines())
    lines = [f"{parser.description}\n\n```text\n{usage}\n```\n\n"]
    lines += ["| option | what it does |\n|---|---|\n"]
    for action in parser._actions:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - it tells them nowhere else
        if action.option_strings:
            value = f" {action.metavar}" if action.metavar else ""
            name = ", ".join(f"`{option}{value}`" for option in action.option_strings)
            lines.append(f"| {name} | {_cell(action.help or '')} |\n")
        else:
            names = list(action.choices or ())
            for name, about in zip(names, (action.help or "").split("; "), strict=True):
                lines.append(f"| `{name}` | {_cell(about)} |\n")
    lines.append("| `-- ARGUMENTS...` | everything behind it goes to opencode |\n\n")
    return "".join(lines)


def tools() -> str:
    """Return the part of `reference/tools.md` about the tools, as a model sees them."""

    @asynccontextmanager
    async def no_fleet() -> AsyncGenerator[Fleet]:
        raise NotImplementedError
        yield

    server = create_server(no_fleet, CoreSettings.model_construct())

    async def listed() -> list[Tool]:
        return list(await server.list_tools())

    lines = [
        "\n## What the server says of itself\n\n",
        f"> {(server.instructions or '').replace(chr(10), ' ')}\n\n",
    ]
    for tool in anyio.run(listed):
        hints = tool.annotations.model_dump(exclude_none=True) if tool.annotations else {}
        said = ", ".join(
            name.removesuffix("_hint").replace("_", " ") for name, true in hints.items() if true is True
        )
        lines += [
            f"## `{tool.name}`\n\n*{tool.title}*{f' ({said})' if said else ''}\n\n",
            f"{tool.description}\n\n",
        ]
        lines.append(_schema("Arguments", "argument", tool.input_schema, tool.input_schema, required=True))
        output = tool.output_schema or {}
        lines.append(_schema("Structured content", "field", output, output))
        for name, part in output.get("$defs", {}).items():
            lines.append(_schema(f"Each `{name}`", "field", part, output))
    return "".join(lines)


def _schema(
    title: str, column: str, schema: Mapping[str, Any], root: Mapping[str, Any], *, required: bool = False
) -> str:
    properties: Mapping[str, Any] = schema.get("properties", {})
    if not properties:
        return f"**{title}**: none.\n\n"
    rows: list[str] = []
    for name, one in properties.items():
        about = one.get("description", "")
        shown = _type(one, root)
        if required:
            default = "required" if name in schema.get("required", ()) else f"`{_json(one.get('default'))}`"
            rows.append(f"| `{name}` | {shown} | {default} | {_cell(about)} |\n")
        else:
            rows.append(f"| `{name}` | {shown} | {_cell(about)} |\n")
    head = (
        f"| {column} | type | default | what it is |\n|---|---|---|---|\n"
        if required
        else (f"| {column} | type | what it is |\n|---|---|---|\n")
    )
    return f"**{title}**\n\n{head}{''.join(rows)}\n"


def _json(value: object) -> str:
    return {None: "null", False: "false", True: "true", "": '""'}.get(value, str(value))  # type: ignore[call-overload]


def _type(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(one, root) for one in schema["anyOf"])
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), root)}"
    bounds = [
        f"{word} {schema[key]:g}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema
    ]
    return " ".join((str(schema.get("type", "anything")), *bounds))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _between(page: str, write: Callable[[], str]) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{write()}{END}{after}"


def configuration(page: str) -> str:
    """Return `page` with what stands between the markers written anew."""
    return _between(page, tables)


PAGES: Mapping[str, Callable[[], str]] = {
    "configuration.md": tables,
    "local-relay.md": partial(transport, "local-relay"),
    "mdns.md": partial(transport, "mdns"),
    "tailscale.md": partial(transport, "tailscale"),
    "reference/commands.md": commands,
    "reference/tools.md": tools,
}
"""What is written between the markers of which page of `docs/`."""


def generated() -> dict[Path, str]:
    """Return the content of every file that is written."""
    pages = {ROOT / "docs" / name: write for name, write in PAGES.items()}
    written = {path: _between(path.read_text("utf-8"), write) for path, write in pages.items()}
    return {ROOT / ".env.example": example(), **written}


if __name__ == "__main__":
    for path, content in generated().items():
        path.write_text(content, "utf-8")
