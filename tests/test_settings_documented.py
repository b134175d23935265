"""The documents name every environment variable, with its default, and no other one."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opencode_mcp import Settings
from opencode_mcp.settings import ConnectSettings, documented
from opencode_mcp_local_relay import LocalRelaySettings
from opencode_mcp_mdns import MDnsSettings
from opencode_mcp_tailscale import TailscaleSettings

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / ".env.example"
PAGE = ROOT / "docs/configuration.md"
MODELS: list[type[Settings]] = [
    ConnectSettings,
    LocalRelaySettings,
    MDnsSettings,
    TailscaleSettings,
]  # the first holds those of core as well
DOCUMENTED = [documented(field) for model in MODELS for field in model.model_fields.values()]
VARIABLES = [one.variable for one in DOCUMENTED]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_hold_what_the_settings_models_say(generate: ModuleType):
    for path, content in generate.generated().items():
        assert path.read_text("utf-8") == content, f"{path.name} is out of date: python docs/generate.py"


def test_the_tables_are_written_anew_and_the_rest_of_the_page_stays(generate: ModuleType):
    page = PAGE.read_text("utf-8")
    before, _, after = page.partition(generate.tables())
    changed = f"{before}| `OLD_VARIABLE` | `1` |\n{after}The end.\n"
    assert generate.configuration(changed) == f"{page}The end.\n"


@pytest.mark.parametrize("one", DOCUMENTED, ids=lambda one: one.variable)
def test_every_variable_is_in_both_with_its_default_and_what_it_does(one: Any):
    assert EXAMPLE.read_text("utf-8").splitlines().count(f"#{one.variable}={one.default}") == 1
    (row,) = [
        line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| `{one.variable}` |")
    ]
    assert row.split("|")[2].strip() == (f"`{one.default}`" if one.default else "none")
    assert one.takes in row
    assert one.about in row


@pytest.mark.parametrize("one", DOCUMENTED, ids=lambda one: one.variable)
def test_a_variable_is_explained_in_sentences_with_its_unit(one: Any):
    assert one.about.endswith(".")
    assert not one.takes.endswith(".")
    if one.variable.endswith("_MS"):
        assert "milliseconds" in one.takes


def variables_in(path: Path) -> set[str]:
    """The words in a document that look like variables of ours."""
    prefixes = "|".join(sorted({name.partition("_")[0] for name in VARIABLES if "_" in name}))
    return set(re.findall(rf"\b(?:{prefixes})_[A-Z_]+\b", path.read_text("utf-8")))


def test_no_document_names_a_variable_that_does_not_exist():
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    named = {page.name: unknown for page in pages if (unknown := variables_in(page) - set(VARIABLES))}
    named.pop("architecture.md", None)  # names prefixes, and variables to come
    assert named == {}
    assert variables_in(PAGE) == {name for name in VARIABLES if "_" in name}


def test_the_examples_for_clients_are_json_with_variables_as_strings():
    examples = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in map(json.loads, examples):
        server = (example.get("mcpServers") or example["mcp"])["opencode"]
        given = server.get("env") or server["environment"]
        assert set(given) <= set(VARIABLES)
        assert {type(value) for value in given.values()} == {str}


@pytest.mark.parametrize("taken", [False, True], ids=["as it is", "with everything taken"])
def test_loading_the_example_into_a_shell_changes_nothing(
    taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = EXAMPLE.read_text("utf-8")
    assert not [line for line in content.splitlines() if line and not line.startswith("#")]
    if taken:
        content = re.sub(r"^#(?=[A-Z])", "", content, flags=re.MULTILINE)
    (tmp_path / ".env").write_text(content)
    loaded = subprocess.run(
        ["sh", "-c", "set -a; . ./.env; set +a; env"],
        cwd=tmp_path,
        env={},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    values = dict(line.split("=", 1) for line in loaded.splitlines())
    assert set(values) & set(VARIABLES) == (set(VARIABLES) if taken else set())
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    defaults = [model() for model in MODELS]
    for name in VARIABLES:
        monkeypatch.setenv(name, values.get(name, ""))
    assert [model() for model in MODELS] == defaults
