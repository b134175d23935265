"""The documentation is true: what it shows runs, what it names exists, and what exists is named."""

from __future__ import annotations

import ast
import asyncio
import configparser
import importlib.util
import inspect
import json
import os
import plistlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple, cast

import pytest
import typer.core
import typer.main
import yaml
from markdown.extensions.toc import slugify

import opencode_mcp
import opencode_mcp.testing
from opencode_mcp import Settings
from opencode_mcp.cli.commands import app
from opencode_mcp.connect.command import _parser  # pyright: ignore[reportPrivateUsage] - nobody else needs it
from opencode_mcp.hookspecs import InstanceSpec, TransportSpec
from opencode_mcp.settings import ConnectSettings, documented
from opencode_mcp_local_relay import LocalRelaySettings
from opencode_mcp_mdns import MDnsSettings
from opencode_mcp_tailscale import TailscaleSettings
from support.distributions import Site

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BESIDE = ("README.md", "CONTRIBUTING.md", "core/README.md", "plugins/*/README.md", "examples/*/README.md")
PAGES = [path for name in BESIDE for path in sorted(ROOT.glob(name))] + sorted(DOCS.rglob("*.md"))
PICTURES = sorted(DOCS.glob("pictures/*.svg"))
SETTINGS: list[type[Settings]] = [ConnectSettings, LocalRelaySettings, MDnsSettings, TailscaleSettings]
VARIABLES = {documented(field).variable for model in SETTINGS for field in model.model_fields.values()}
THEIRS = {"OPENCODE_CONFIG"}
"""Variables that look like ours and are OpenCode's own."""

_FENCE = re.compile(
    r"^(?P<indent> *)```(?: \{ \.)?(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```\s*?$",
    re.MULTILINE | re.DOTALL,
)
_INCLUDED = re.compile(r'^--8<-- "(?P<path>[^"]+)"$', re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page; its body with what it includes."""

    page: Path
    line: int
    language: str
    body: str


def label(value: object) -> str:
    if isinstance(value, Block):
        return f"{label(value.page)}:{value.line}"
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


def whole(page: Path) -> str:
    """A page with what it includes."""
    return _INCLUDED.sub(lambda found: (ROOT / found["path"]).read_text("utf-8"), page.read_text("utf-8"))


def blocks(*languages: str) -> list[Block]:
    return [one for page in PAGES for one in _blocks_of(page) if one.language in languages]


@cache
def _blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        body = _INCLUDED.sub(lambda one: (ROOT / one["path"]).read_text("utf-8"), dedent(match["body"]))
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, match["language"], body))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def load(path: Path) -> Any:
    """Import a Python file that is no module of a package."""
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What it shows can be read, and runs.


def test_every_block_says_its_language() -> None:
    assert [label(block) for block in blocks("")] == []


@pytest.mark.parametrize("block", blocks("json"), ids=label)
def test_json_can_be_read(block: Block) -> None:
    assert json.loads(block.body)


@pytest.mark.parametrize("block", blocks("toml"), ids=label)
def test_toml_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.body)


@pytest.mark.parametrize("block", blocks("yaml", "ini", "xml"), ids=label)
def test_other_configuration_can_be_read(block: Block) -> None:
    if block.language == "yaml":
        assert yaml.safe_load(block.body)
    elif block.language == "ini":
        units = configparser.ConfigParser(strict=False, interpolation=None)  # systemd repeats its keys
        units.read_string(block.body)
        assert units.sections()
    else:
        assert plistlib.loads(block.body.encode())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the examples are installed, as far as entry points go."""
    site = Site(tmp_path_factory.mktemp("examples") / "site")
    for project in ROOT.glob("examples/*/pyproject.toml"):
        about = tomllib.loads(project.read_text("utf-8"))["project"]
        groups: Mapping[str, Mapping[str, str]] = about.get("entry-points", {})
        site.install(about["name"], transports=groups.get("opencode_mcp.transports"))
    return site.path


def environment(installed: Path, home: Path) -> dict[str, str]:
    paths = [str(installed), *(str(path) for path in ROOT.glob("examples/*/src"))]
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"), ids=label)
def test_python_runs(block: Block, installed: Path, tmp_path: Path) -> None:
    """As a module; what it awaits at its top level is awaited, and the tests in it are run as tests."""
    tests = re.search(r"^(?:(?:async )?def test_|class Test)", block.body, re.MULTILINE) is not None
    program = tmp_path / "test_it.py"
    program.write_text(block.body if tests else _RUN.replace("CODE", repr(block.body)), "utf-8")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)] if tests else []
    done = subprocess.run(
        [sys.executable, *words, str(program)],
        cwd=tmp_path,
        env=environment(installed, tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not tests or " passed" in done.stdout


_RUN = """
import ast, asyncio, inspect
code = compile(CODE, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
names = {"__name__": "block"}
found = eval(code, names)
if inspect.iscoroutine(found):
    asyncio.run(asyncio.wait_for(found, 60))
"""


DOCSTRINGS = {
    path.relative_to(ROOT).as_posix(): blocks_in
    for path in sorted(ROOT.glob("core/src/**/*.py"))
    if (
        blocks_in := re.findall(
            r"^ *```python\n(.*?)^ *```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
    )
}


@pytest.mark.parametrize("path", DOCSTRINGS)
def test_examples_in_docstrings_run(path: str) -> None:
    """With the public names, and what stands for the author's own."""
    modules = (opencode_mcp, opencode_mcp.testing)
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    for example in DOCSTRINGS[path]:
        names = {**public, "pytest": pytest, "Path": Path, "FilePublisher": opencode_mcp.testing.Publisher}
        code = compile(dedent(example), path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        found = eval(code, names)
        if inspect.iscoroutine(found):
            asyncio.run(asyncio.wait_for(found, 60))


# What it names exists: commands and their options.


def commands() -> dict[str, set[str]]:
    """The commands of `opencode-mcp`, each with its options; those of none are under an empty name."""
    group = cast("typer.core.TyperGroup", typer.main.get_command(app))
    known = {"": {option for one in group.params for option in one.opts} | {"--help", "-h"}}
    for name, command in group.commands.items():
        options = {option for one in command.params for option in one.opts if option.startswith("-")}
        known[name] = options | {"--help", "-h"}
    return known


def dev_commands() -> set[str]:
    usage = subprocess.run([ROOT / "dev", "help"], cwd="/", check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^  ([a-z]+) ", usage, re.MULTILINE))


COMMANDS, DEV = commands(), dev_commands()
_BEFORE = {None, "exec", "--", "run", "nohup", "setsid", "time", "uvx"}
_BETWEEN = {"|", ";", "&", "&&", "||", "(", ")", "<", ">", ">>"}


def invocations(line: str) -> Iterator[list[str]]:
    """The words of each of our commands in a line of a shell, from the command to where it ends."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    before: str | None = None
    for index, word in enumerate(words):
        name = word.rpartition("/")[2] if not word.startswith("./") else word
        if name in ("opencode-mcp", "opencode-connected", "./dev") and before in _BEFORE:
            end = next((i for i in range(index, len(words)) if words[i] in _BETWEEN), len(words))
            yield [name, *words[index + 1 : end]]
        if word in _BETWEEN or word.startswith("$("):
            before = None
        elif not re.match(r"[A-Z_]+=", word):
            before = word


def complaint(words: list[str]) -> str:
    """Why such a command is refused; or nothing."""
    name, *rest = words
    if name == "./dev":
        return "" if rest[:1] and rest[0] in DEV | {"..."} else f"no command {rest[:1]}"
    if name == "opencode-connected":
        ours = rest[: rest.index("--")] if "--" in rest else rest
        try:
            _parser().parse_args([{"N": "1"}.get(word, word) for word in ours])
        except SystemExit as error:
            return "" if error.code in (0, None) else "its parser refuses it"
        return ""
    command = rest[0] if rest and not rest[0].startswith("-") else ""
    if command not in COMMANDS:
        return f"no command {command}"
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    unknown = given - COMMANDS[command]
    return f"no option {', '.join(sorted(unknown))}" if unknown else ""


def shell_lines(block: Block) -> list[str]:
    lines = block.body.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and "'{" not in line]  # JSON in quotes is no command


@pytest.mark.parametrize("block", blocks("sh", "bash", "console"), ids=label)
def test_commands_in_a_shell_exist_with_their_options(block: Block) -> None:
    refused = {
        line: why for line in shell_lines(block) for words in invocations(line) if (why := complaint(words))
    }
    assert refused == {}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_commands_in_a_sentence_exist_with_their_options(page: Path) -> None:
    said = re.findall(
        r"`((?:[A-Z_]+=\S+ )*(?:opencode-mcp|opencode-connected|\./dev)(?: [^`]*)?)`", prose(page)
    )
    said = [" ".join(one.split()) for one in said]
    refused = {
        one: why for one in said for words in invocations(one) if (why := complaint(words)) and " " in one
    }
    assert refused == {}


def test_the_checks_of_commands_find_what_is_wrong() -> None:
    assert list(invocations("A=1 opencode-mcp send x | cat; ./dev lint")) == [
        ["opencode-mcp", "send", "x"],
        ["./dev", "lint"],
    ]
    assert list(invocations("claude mcp add opencode -- opencode-mcp")) == [["opencode-mcp"]]
    assert list(invocations("docker build -t opencode-mcp .")) == []
    for wrong in (
        "opencode-mcp list",
        "opencode-mcp instances --yaml",
        "opencode-mcp --jsn",
        "opencode-connected --port http",
        "opencode-connected restart",
        "./dev publish",
    ):
        [words] = invocations(wrong)
        assert complaint(words)


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_variables_that_look_like_ours_are_ours(page: Path) -> None:
    prefixes = "|".join(sorted({name.partition("_")[0] for name in VARIABLES if "_" in name}))
    named = set(re.findall(rf"(?<![\w/{{])(?:{prefixes})_[A-Z_]+[A-Z](?![\w/]|_?…)", whole(page)))
    if page.name == "architecture.md":
        return  # names prefixes, and variables to come
    assert named <= VARIABLES | THEIRS


@pytest.mark.parametrize("block", blocks("json"), ids=label)
def test_what_a_client_is_told_to_start_is_ours_with_our_variables(block: Block) -> None:
    for server in _servers(json.loads(block.body)):
        command = server["command"]
        words = [*(command if isinstance(command, list) else [command]), *server.get("args", [])]
        given: Mapping[str, Any] = server.get("env") or server.get("environment") or {}
        assert {type(value) for value in given.values()} <= {str}
        if words[0].rpartition("/")[2] == "opencode-mcp":
            assert words[1:] == []
            assert set(given) <= VARIABLES


def _servers(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        if "command" in found:
            yield found
        for one in found.values():
            yield from _servers(one)


# What it names exists: pages, headings, pictures.


def anchors(page: Path) -> set[str]:
    text = re.sub(r"`([^`]*)`", r"\1", _FENCE.sub("", whole(page)))
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", text, re.MULTILINE)
    slugs: list[str] = []
    for heading in headings:
        slug = slugify(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading), "-")
        slugs.append(f"{slug}_{slugs.count(slug)}" if slug in slugs else slug)
    return {*slugs, *re.findall(r"\{ *#([\w-]+) *\}", text)}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", prose(page))
    dead: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            dead.append(target)
    assert dead == []


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text("utf-8"))
    pages: list[str] = re.findall(r"^\s*- (?:.+: )?(\S+\.md)$", text, re.MULTILINE)
    assert sorted(pages) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("picture", PICTURES, ids=label)
def test_a_picture_loads_nothing_and_names_no_place_of_its_author(picture: Path) -> None:
    content = picture.read_text("utf-8")
    elsewhere = (
        content.replace("http://www.w3.org/", "").replace("http://127.0.0.1", "").replace("&#160;", " ")
    )
    assert not re.search(r"https?:|@import|@font-face|url\((?!#)", elsewhere)
    assert not re.search(r"/(?:root|work)/|\.venv", elsewhere)


def test_every_picture_is_shown() -> None:
    shown = "".join(page.read_text("utf-8") for page in PAGES) + (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [picture.name for picture in PICTURES if f"pictures/{picture.name}" not in shown] == []


def test_pictures_are_drawn_of_what_was_printed() -> None:
    pictures = load(DOCS / "pictures.py")
    assert set(pictures.DRAWN) <= {picture.stem for picture in PICTURES}
    drawn = pictures.draw("opencode-mcp instances", "\x1b[32midle\x1b[0m  " + "x" * 200)
    assert "idle" in drawn
    assert drawn.count("x" * pictures._COLUMNS) == 0  # folded at the edge
    assert "@font-face" not in drawn


# What exists is named.


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {""}))
def test_every_command_and_option_of_opencode_mcp_is_in_the_reference(name: str) -> None:
    page = (DOCS / "reference/commands.md").read_text("utf-8")
    _, _, section = page.partition(f"## `opencode-mcp {name}`\n")
    section = section.partition("\n## ")[0]
    assert section
    assert [one for one in COMMANDS[name] - {"--help", "-h"} if not re.search(rf"`{one}[ `]", section)] == []


def test_every_option_of_opencode_connected_is_in_the_reference() -> None:
    page = (DOCS / "reference/commands.md").read_text("utf-8")
    _, _, section = page.partition("## `opencode-connected`\n")
    actions = _parser()._actions
    options = [option for action in actions for option in action.option_strings or action.choices or ()]
    assert [option for option in options if not re.search(rf"`{option}[ `]", section)] == []


def test_every_name_that_plugins_import_is_in_the_reference() -> None:
    shown = re.findall(r"^::: (\S+)$", "\n".join(page.read_text("utf-8") for page in PAGES), re.MULTILINE)
    wanted = {f"opencode_mcp.{name}" for name in opencode_mcp.__all__}
    wanted |= {f"opencode_mcp.testing.{name}" for name in opencode_mcp.testing.__all__}
    assert sorted(wanted - set(shown)) == []
    assert sorted(name for name in set(shown) if shown.count(name) > 1) == []


@pytest.mark.parametrize("spec", [InstanceSpec, TransportSpec])
def test_every_hook_is_explained_and_in_the_reference(spec: type) -> None:
    assert f"::: opencode_mcp.hookspecs.{spec.__name__}\n" in (DOCS / "reference/hooks.md").read_text("utf-8")
    explained = (DOCS / "hooks.md").read_text("utf-8") + (DOCS / "write-a-transport.md").read_text("utf-8")
    hooks = [name for name in vars(spec) if name.startswith("opencode_mcp_")]
    assert hooks
    assert [hook for hook in hooks if f"`{hook}`" not in explained] == []


def test_the_specification_names_the_tests_of_the_kit_and_no_others() -> None:
    page = (DOCS / "specification.md").read_text("utf-8")
    suite = opencode_mcp.testing.TransportSuite
    tests = {name for name in dir(suite) if name.startswith("test_")}
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named - tests == set()
    assert tests - named == set()


def test_rules_of_the_specification_are_numbered_without_a_gap() -> None:
    page = (DOCS / "specification.md").read_text("utf-8")
    rules = re.findall(r"^\*\*([A-Z])(\d+)\*\*\{ #(\w+) \}", page, re.MULTILINE)
    assert rules
    for letter in {rule[0] for rule in rules}:
        numbers = [int(number) for one, number, _ in rules if one == letter]
        assert numbers == list(range(1, len(numbers) + 1))
    assert [anchor for _, _, anchor in rules] == [f"{one}{number}".lower() for one, number, _ in rules]


def test_the_settings_of_the_example_are_as_its_page_says() -> None:
    static = load(ROOT / "examples/static/src/opencode_mcp_static/__init__.py")
    page = (DOCS / "static.md").read_text("utf-8")
    for one in map(documented, static.StaticSettings.model_fields.values()):
        assert f"| `{one.variable}` | `{one.default}` | {one.takes} | {one.about} |\n" in page


def test_the_image_takes_the_wheels_of_all_packages() -> None:
    projects = [ROOT / "pyproject.toml", ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    names = [tomllib.loads(path.read_text("utf-8"))["project"]["name"] for path in projects]
    [dockerfile] = blocks("dockerfile")
    copied = re.findall(r"dist/(\w+)-\*\.whl", dockerfile.body)
    assert sorted(copied) == sorted(name.replace("-", "_") for name in names)
