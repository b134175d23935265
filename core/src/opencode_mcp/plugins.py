"""Finds installed plugins, imports those that are wanted, and names the broken ones.

A transport is imported only when `TRANSPORT` selects it, so one that is broken and not selected costs
nothing. Plugins with instance hooks are always loaded; a broken one is reported and left out.
"""

import dataclasses
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from opencode_mcp import packages
from opencode_mcp.errors import PluginError
from opencode_mcp.hookspecs import PROJECT, InstanceSpec, TransportSpec
from opencode_mcp.settings import Settings
from opencode_mcp.text import clean_line
from opencode_mcp.transport import CONTRACT_VERSION, TransportPlugin

TRANSPORTS_GROUP = "opencode_mcp.transports"
PLUGINS_GROUP = "opencode_mcp.plugins"
OFFICIAL = ("local-relay", "mdns", "tailscale")
"""The transports of this project, each in a package `opencode-mcp-<name>`."""

_REASON_SHOWN = 500
_PATIENCE_SECONDS = 10.0
_NO_PLAIN_FUNCTION = (
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstalledTransport:
    """A transport as `opencode-mcp transports` lists it.

    Attributes:
        name: What `TRANSPORT` says.
        distribution: The package that brings it, or `?`.
        version: That package's version, or `?`.
        selected: Whether `TRANSPORT` names it.
        summary: What it is for; empty when broken.
        problem: Why it cannot be used, or empty.
    """

    name: str
    distribution: str
    version: str
    selected: bool
    summary: str = ""
    problem: str = ""


class Plugins:
    """The plugins of this process: the hooks of all, and the transports that were selected.

    Args:
        bounded: Whether a plugin is given up that takes too long to load. That takes a thread, and memory.
    """

    def __init__(self, *, bounded: bool = True) -> None:
        self._called: Callable[[Callable[[], Any]], Any] = _in_time if bounded else _at_once
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(TransportSpec)
        self._manager.add_hookspecs(InstanceSpec)

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hooks of all loaded plugins."""
        return self._manager.hook

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin object under `name`; one that was added before keeps the name it has.

        Raises:
            PluginError: If it implements a hook that does not exist, or with other arguments, or if
                another plugin has the name.
        """
        if self._manager.is_registered(plugin):
            return  # one module may bring several transports, and instance hooks besides
        if self._manager.has_plugin(name):
            raise PluginError(
                f"There is another plugin {name!r}, which stays in force.", "Uninstall all but one of them."
            )
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
            self._require_plain_functions(plugin)
        except Exception as error:  # pluggy's own, and whatever the attributes of foreign objects raise
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            reason = clean_line(_words(error), _REASON_SHOWN)
            raise PluginError(
                f"Plugin {name!r} does not fit the hooks of opencode-mcp: {reason.removesuffix('.')}.",
                "Update the package that brings it, or uninstall it.",
            ) from error

    def _require_plain_functions(self, plugin: object) -> None:
        # The coroutine of an async policy would count as a yes, and so would a wrapper's generator.
        for hook in self._manager.get_hookcallers(plugin) or ():
            for one in hook.get_hookimpls():
                if any(is_other(one.function) for is_other in _NO_PLAIN_FUNCTION):
                    raise PluginError(f"its hook {hook.name!r} is async, a generator or a wrapper")

    def load_instance_hooks(self) -> Sequence[PluginError]:
        """Load the group `opencode_mcp.plugins`; a broken plugin is logged with its name and left out.

        Returns:
            What was logged.
        """
        problems: list[PluginError] = []
        for entry in entry_points(group=PLUGINS_GROUP):
            try:
                self.register(self._import(entry), _registered_name(entry))
            except PluginError as error:
                logger.error("%s Its hooks are not in force. %s", error.told, error.mend)
                problems.append(error)
        return problems

    def load_transports(self, names: Iterable[str]) -> Sequence[TransportPlugin[Any]]:
        """Import the transports called `names` and return their descriptors, in that order.

        Raises:
            PluginError: If any is unknown, broken, or made for another contract; with a line for each.
        """
        transports: list[TransportPlugin[Any]] = []
        problems: list[PluginError] = []
        for name in names:
            try:
                transports.append(self._load_transport(name))
            except PluginError as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            raise PluginError("\n".join(map(str, problems))) from problems[0]
        return transports

    def _load_transport(self, name: str) -> TransportPlugin[Any]:
        entry = _find(name)
        plugin = self._import(entry)
        self.register(plugin, _registered_name(entry))
        return self._descriptor(entry, plugin)

    def _import(self, entry: EntryPoint) -> object:
        try:
            return self._called(entry.load)
        except (Exception, SystemExit) as error:
            raise _broken(entry, error) from error

    def _descriptor(self, entry: EntryPoint, plugin: object) -> TransportPlugin[Any]:
        hooks = self._manager.hook.opencode_mcp_transports.get_hookimpls()
        found: list[Any] = [hook.function for hook in hooks if hook.plugin is plugin]
        try:
            descriptors: list[TransportPlugin[Any]] = self._called(
                lambda: [one for hook in found for one in hook()]
            )
        except (Exception, SystemExit) as error:
            raise _broken(entry, error) from error
        for descriptor in descriptors:
            if not isinstance(descriptor, TransportPlugin):  # pyright: ignore[reportUnnecessaryIsInstance] - foreign code
                raise _broken(entry, "its hook returned something else than TransportPlugin")
            if descriptor.name != entry.name:
                continue
            if descriptor.contract != CONTRACT_VERSION:
                raise PluginError(
                    f"Transport {_named(entry)} was made for contract version "
                    f"{clean_line(repr(descriptor.contract), 20)}, this "
                    f"opencode-mcp has version {CONTRACT_VERSION}.",
                    f"Update both: {packages.update('opencode-mcp-core', _distribution(entry))}",
                )
            if not (isinstance(descriptor.settings, type) and issubclass(descriptor.settings, Settings)):  # pyright: ignore[reportUnnecessaryIsInstance] - foreign code
                raise _broken(entry, "its settings are no subclass of opencode_mcp.Settings")
            return dataclasses.replace(descriptor, package=_package(entry))
        raise _broken(entry, f"its hook opencode_mcp_transports describes no {entry.name!r}")


def installed_transports(selected: Sequence[str]) -> Sequence[InstalledTransport]:
    """List every installed transport and the state it is in, trying each in turn."""
    rows: list[InstalledTransport] = []
    for entry in sorted(entry_points(group=TRANSPORTS_GROUP), key=lambda entry: entry.name):
        summary = problem = ""
        try:
            (descriptor,) = Plugins().load_transports([entry.name])
            summary = descriptor.summary
        except PluginError as error:
            problem = str(error)
        rows.append(
            InstalledTransport(
                name=entry.name,
                distribution=_distribution(entry),
                version=entry.dist.version if entry.dist else "?",
                selected=entry.name in selected,
                summary=summary,
                problem=problem,
            )
        )
    return rows


def missing_transports(selected: Sequence[str]) -> Sequence[InstalledTransport]:
    """List the selected transports that are not installed, as rows beside the others."""
    rows: list[InstalledTransport] = []
    for name in selected:
        if not entry_points(group=TRANSPORTS_GROUP, name=name):
            problem = str(_missing(name))
            row = InstalledTransport(name=name, distribution="?", version="?", selected=True, problem=problem)
            rows.append(row)
    return rows


def _find(name: str) -> EntryPoint:
    found = entry_points(group=TRANSPORTS_GROUP, name=name)
    if not found:
        raise _missing(name)
    distributions = sorted({_distribution(entry) for entry in found})
    if len(distributions) > 1:
        raise PluginError(
            f"TRANSPORT asks for {name!r}, which {' and '.join(distributions)} both bring.",
            "Uninstall all but one of them.",
        )
    return next(iter(found))


def _missing(name: str) -> PluginError:
    installed = sorted({entry.name for entry in entry_points(group=TRANSPORTS_GROUP)})
    mend = "Correct TRANSPORT, or install the package that brings it."
    if name in OFFICIAL:
        mend = f"Install it: {packages.install(f'opencode-mcp-{name}')}"
    return PluginError(
        f"TRANSPORT asks for {name!r}, which is not installed. Installed: {', '.join(installed) or 'none'}.",
        mend,
    )


def _broken(entry: EntryPoint, why: BaseException | str) -> PluginError:
    reason = f"{type(why).__name__}: {_words(why)}" if isinstance(why, BaseException) else why
    reason = clean_line(reason, _REASON_SHOWN).removesuffix(":")
    missing = why.name if isinstance(why, ModuleNotFoundError) else None
    lacks = missing is not None and missing.partition(".")[0] != entry.module.partition(".")[0]
    what = f"it afresh, with the module {missing!r} that it needs" if lacks else "it afresh"
    mend = f"Install {what}: {packages.reinstall(_distribution(entry))}"
    return PluginError(f"Plugin {_named(entry)} is broken: {reason}.", mend)


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # foreign code
        return type(error).__name__


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _package(entry: EntryPoint) -> str:
    return f"{_distribution(entry)} {entry.dist.version if entry.dist else '?'}"


def _registered_name(entry: EntryPoint) -> str:
    return f"{entry.name} (from {_package(entry)})"


def _named(entry: EntryPoint) -> str:
    return f"{entry.name!r} (from {_package(entry)}, {entry.value})"


def _at_once(call: Callable[[], _T]) -> _T:
    return call()


def _in_time(call: Callable[[], _T]) -> _T:
    """Call foreign code and return what it returns, or raise what it raises.

    It is called in a thread, which is left behind if the code does not return.

    Raises:
        TimeoutError: It does not return in time.
    """
    outcome: Future[_T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="loads a plugin", daemon=True).start()
    try:
        return outcome.result(_PATIENCE_SECONDS)
    except TimeoutError:
        if outcome.done():  # it was its own
            raise
        raise TimeoutError(f"it has not returned within {_PATIENCE_SECONDS:g} s") from None
