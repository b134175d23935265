"""The hooks that plugins implement: which there are, what they are given, and that each is explained."""

import ast
import inspect
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

import opencode_mcp
from opencode_mcp import Endpoint, hookimpl
from opencode_mcp.errors import PluginError
from opencode_mcp.hookspecs import InstanceSpec, TransportSpec
from opencode_mcp.plugins import Plugins

HOOKS = {
    "opencode_mcp_transports": (),
    "opencode_mcp_instance_admit": ("endpoint",),
    "opencode_mcp_instance_auth": ("endpoint",),
    "opencode_mcp_instance_changed": ("before", "after"),
    "opencode_mcp_instance_audit": ("action",),
}
"""The hooks and their arguments, as plugins out there rely on them."""

ENDPOINT = Endpoint(id="1", name="laptop", url="http://127.0.0.1:4096")


def specified() -> dict[str, Callable[..., Any]]:
    functions = {**vars(TransportSpec), **vars(InstanceSpec)}
    return {name: one for name, one in functions.items() if hasattr(one, "opencode_mcp_spec")}


def test_these_are_the_hooks_with_these_arguments():
    found = {name: tuple(inspect.signature(one).parameters)[1:] for name, one in specified().items()}
    assert found == HOOKS
    assert {name for name in vars(Plugins().hook) if not name.startswith("_")} == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_what_it_is_for_and_names_its_types(name: str):
    function = specified()[name]
    assert inspect.getdoc(function)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for argument in list(signature.parameters.values())[1:]:
        assert argument.annotation is not inspect.Parameter.empty
        assert f"`{argument.name}`" in (inspect.getdoc(function) or "")


def test_what_the_example_imports_is_public_and_it_is_python():
    documentation = inspect.getdoc(TransportSpec.opencode_mcp_transports) or ""
    example = dedent(documentation.partition("```python")[2].partition("```")[0])
    (imports,) = [node for node in ast.parse(example).body if isinstance(node, ast.ImportFrom)]
    assert imports.module == "opencode_mcp"
    assert {one.name for one in imports.names} <= set(opencode_mcp.__all__)


class Frugal:
    """Implements hooks with fewer arguments than they are given."""

    def __init__(self) -> None:
        self.joined: list[object] = []

    @hookimpl
    def opencode_mcp_instance_admit(self) -> bool:
        return False

    @hookimpl
    def opencode_mcp_instance_changed(self, after: object) -> None:
        self.joined.append(after)


def test_an_implementation_may_take_fewer_arguments():
    plugins, frugal = Plugins(), Frugal()
    plugins.register(frugal, "frugal")
    assert plugins.hook.opencode_mcp_instance_admit(endpoint=ENDPOINT) is False
    plugins.hook.opencode_mcp_instance_changed(before=None, after="after")
    assert frugal.joined == ["after"]


class TakesMore:
    @hookimpl
    def opencode_mcp_instance_admit(self, endpoint: Endpoint, user: str) -> bool:
        raise NotImplementedError


class Misspelt:
    @hookimpl
    def opencode_mcp_transprots(self) -> list[object]:
        raise NotImplementedError


class Async:
    @hookimpl
    async def opencode_mcp_instance_admit(self, endpoint: Endpoint) -> bool:
        raise NotImplementedError


class Wraps:
    @hookimpl(wrapper=True)
    def opencode_mcp_instance_admit(self, endpoint: Endpoint) -> Any:
        yield
        return True


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (TakesMore(), "Argument(s) {'user'} are declared in the hookimpl"),
        (Misspelt(), "unknown hook 'opencode_mcp_transprots'"),
        (Async(), "its hook 'opencode_mcp_instance_admit' is async, a generator or a wrapper"),
        (Wraps(), "its hook 'opencode_mcp_instance_admit' is async, a generator or a wrapper"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_the_others_in_force(plugin: object, reason: str):
    plugins = Plugins()
    plugins.register(Frugal(), "frugal")
    with pytest.raises(PluginError) as error:
        plugins.register(plugin, "misfit")
    assert str(error.value).startswith("Plugin 'misfit' does not fit the hooks of opencode-mcp: ")
    assert reason in str(error.value)
    assert str(error.value).endswith(". Update the package that brings it, or uninstall it.")
    assert "\n" not in str(error.value)
    plugins.register(Frugal(), "another")  # what was refused has left nothing behind
    assert plugins.hook.opencode_mcp_instance_admit(endpoint=ENDPOINT) is False


def test_a_second_plugin_of_one_name_is_refused_and_the_first_stays_in_force():
    plugins = Plugins()
    plugins.register(Frugal(), "policy")
    told = r"There is another plugin 'policy', which stays in force\. Uninstall all but one of them\."
    with pytest.raises(PluginError, match=told):
        plugins.register(Frugal(), "policy")
    assert plugins.hook.opencode_mcp_instance_admit(endpoint=ENDPOINT) is False


def test_a_plugin_added_twice_is_asked_once():
    plugins, frugal = Plugins(), Frugal()
    plugins.register(frugal, "one")
    plugins.register(frugal, "another")
    plugins.hook.opencode_mcp_instance_changed(before=None, after="after")
    assert frugal.joined == ["after"]
