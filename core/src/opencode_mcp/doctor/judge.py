"""Says what an error means, and what to do about it, in words that are safe to show."""

import logging
import re
import traceback
from collections.abc import Iterable
from pathlib import PurePath
from typing import cast

from opencode_mcp import packages
from opencode_mcp.errors import (
    CredentialsError,
    LocalError,
    NotListeningError,
    PluginError,
    ProtocolError,
    RequestError,
    SettingsError,
    UnreachableError,
    ours,
)
from opencode_mcp.fleet.foreign import StrayCancellationError
from opencode_mcp.model import Endpoint, Route

logger = logging.getLogger(__name__)

Verdict = tuple[str, str]
"""What happened, and what to do about it."""

_NOT_FOUND = 404
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_GENERAL = "See what its settings say, and the documentation of this transport."
_VARIABLE = re.compile(r"^([A-Z][A-Z0-9_]+)(?:=| cannot be used| is not set)", re.MULTILINE)


class Judge:
    """Judges what the code of one plugin raises.

    Its own words may hold a secret, so they are not told, unless it raises an error of ours, whose words are
    for people: the kind of the error and the place say enough to find it.

    Args:
        distribution: The package that brings the plugin.
        module: The plugin's module.
    """

    def __init__(self, distribution: str, module: str) -> None:
        self._distribution = distribution
        self._package = module.partition(".")[0]

    def __call__(self, error: BaseException) -> Verdict:
        """Return what to tell of `error`."""
        known = ours(error)
        if isinstance(known, PluginError):
            return known.told, known.mend
        if isinstance(known, SettingsError):
            return str(known), mended_settings(str(known))
        if known is not None:  # what failed comes first there, then why, and what to do
            told, *rest = _SENTENCE.split(str(known), maxsplit=1)
            return told, rest[0] if rest else _GENERAL
        logger.debug("What %s raised:", self._distribution, exc_info=error)
        leaf = next(iter(_leaves(error)))
        if isinstance(leaf, StrayCancellationError):
            place = self._place(leaf.__cause__ or leaf)
            return f"Its code let out a cancellation that nobody asked for, in {place}.", self.report_it
        system = f" ({leaf.strerror})" if isinstance(leaf, OSError) and leaf.strerror else ""
        return f"Its code failed with {type(leaf).__name__}{system} in {self._place(leaf)}.", self.report_it

    @property
    def report_it(self) -> str:
        """What to do when the plugin's code is at fault."""
        return (
            f"{self._update} If it stays, report it to those who make it; "
            "OPENCODE_MCP_LOG_LEVEL=DEBUG shows more on stderr, which may hold secrets."
        )

    @property
    def _update(self) -> str:
        return f"Update it: {packages.update(self._distribution)}."

    def hangs(self, seconds: float) -> Verdict:
        """Return what to tell of code that does not return and cannot be interrupted."""
        detail = (
            f"For {seconds:g} s code of {self._distribution} has not returned, and it cannot be interrupted; "
            "so this could not be found out."
        )
        fix = (
            f"{self._update} If it stays, report it to those who make it: "
            "what blocks belongs into a thread. Until then, leave it out of TRANSPORT."
        )
        return detail, fix

    def late(self, what: str, seconds: float) -> Verdict:
        """Return what to tell of a step that was interrupted after `seconds`."""
        return f"{what} within {seconds:g} s.", self.report_it

    def _place(self, error: BaseException) -> str:
        """Where it was raised: the innermost line of the plugin's own, else the innermost one."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if self._package in PurePath(frame.filename).with_suffix("").parts]
        if not frames:
            return self._package
        frame = (own or frames)[-1]
        return f"{'/'.join(PurePath(frame.filename).parts[-2:])}:{frame.lineno}"


def _leaves(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(one)
    else:
        yield error


def mended_settings(told: str) -> str:
    """Return how to mend the variables that `told`, the words of a `SettingsError`, are about."""
    wrong = list(dict.fromkeys(_VARIABLE.findall(told)))
    if not wrong:
        return ""
    where = "Correct it where it is set, in the shell or in the chat client's configuration; or go without"
    return f"{where}: unset {' '.join(wrong)}"


def mended(error: Exception, endpoint: Endpoint, route: Route | None, vouching: str) -> str:
    """Return what to do about `error`, with which a conversation with `endpoint` ended.

    Args:
        error: What happened.
        endpoint: With whom.
        route: How it was reached, if it was.
        vouching: How the user makes the transport vouch for it.
    """
    plain = route is None or (route.transport is None and route.base_url == endpoint.url)
    known = route is not None and bool(route.pid is not None or route.version)  # so it is a 2.x
    ask = f"curl -m 5 {endpoint.url}{'/api/info' if known else '/global/health'}" if plain else ""
    match error:
        case CredentialsError():
            if route is not None and route.auth is not None:
                return (
                    "OPENCODE_SERVER_PASSWORD is not what counts there: its transport brings credentials of "
                    "its own. Start OpenCode there again, so that they are written down anew."
                )
            if not endpoint.vouched:
                return vouching or "A plugin's auth hook can give a password for it."
            return "Give the password that it was started with: export OPENCODE_SERVER_PASSWORD='...'"
        case LocalError():
            if "ulimit" in str(error):
                return "Raise the limit, and start opencode-mcp again: ulimit -n 4096"
            return "See whether its network is up, and end what holds very many connections or files open."
        case NotListeningError() if known:
            return _joined(
                "See whether OpenCode still runs there. If not, start it again; what its transport knows of "
                "it is out of date. If so:",
                ask,
            )
        case NotListeningError():
            return _joined(
                "See whether OpenCode still runs there. If not, start it again: opencode-connected. If so:",
                ask,
            )
        case RequestError() if error.status != _NOT_FOUND:
            return "Look into OpenCode's log there: ~/.local/share/opencode/log"
        case ProtocolError() | RequestError() if known:
            return _joined(
                "What its transport knows of it is out of date, or something else has its port: start "
                "OpenCode there again; see what answers:",
                ask,
            )
        case ProtocolError() | RequestError():
            return _joined("Something else than an OpenCode may have that port; see what answers:", ask)
        case UnreachableError() if "in time" not in str(error):
            return _joined(
                "It ended, or a firewall or proxy between cuts connections; see if it answers:", ask
            )
        case _:
            return _joined(
                "It hangs, or a firewall drops what is sent: restart it, or let its port through. If it is "
                "only slow: export HEALTH_CHECK_TIMEOUT_MS=10000. See if it answers:",
                ask,
            )


def _joined(sentence: str, command: str) -> str:
    if command:
        return f"{sentence} {command}"
    return f"{sentence[:-1]}." if sentence.endswith(":") else sentence
