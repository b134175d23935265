"""Asks and tells the instance hooks of plugins. One that fails or hangs is named, and stops nobody."""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Self

import anyio
import httpx2
import pluggy

from opencode_mcp.fleet.hook_thread import Answers, Call, HookHangsError, HookThread
from opencode_mcp.model import Action, Endpoint, Instance, Rejection
from opencode_mcp.opencode.http import OpenCodeAuth
from opencode_mcp.settings import CoreSettings

logger = logging.getLogger(__name__)

ADMIT_SECONDS = 5.0
AUTH_SECONDS = 10.0
"""The keyring of a desktop may have to ask its user first."""
_TOLD_SECONDS = 10.0
_WATCH_SECONDS = 1.0
_LEAVE_SECONDS = 2.0
_LOGGED_AGAIN_SECONDS = 3600.0
MEND = "If that is its own defect, update that package, or uninstall it."


class Refusal(NamedTuple):
    """Why an endpoint may not join: the policy of a plugin, or its failure."""

    plugin: str
    failed: bool


class Policies:
    """Who may join, with which credentials, and who is told.

    Args:
        hook: The hooks of all loaded plugins.
        settings: Holds the user name and password that serve where no plugin has an answer.
    """

    def __init__(self, hook: pluggy.HookRelay, settings: CoreSettings) -> None:
        self._settings = settings
        self._admit = _Hook.all_of(hook.opencode_mcp_instance_admit)
        self._auth = _Hook.all_of(hook.opencode_mcp_instance_auth)
        self._changed = _Hook.all_of(hook.opencode_mcp_instance_changed)
        self._audit = _Hook.all_of(hook.opencode_mcp_instance_audit)
        self._asked: dict[str, HookThread] = {}
        self._told: dict[str, HookThread] = {}
        self._failing: dict[_Hook, str] = {}
        self._logged: dict[tuple[_Hook, str], float] = {}

    @property
    def decides(self) -> bool:
        """Whether any plugin has a policy on who may join."""
        return bool(self._admit)

    @property
    def problems(self) -> Sequence[Rejection]:
        """Which hooks failed when they were called last, how, and what to do about it."""
        return [
            Rejection(source=f"plugin {plugin}", reason=f"Its hook {how}. {MEND}")
            for plugin, how in self.failures
        ]

    @property
    def failures(self) -> Sequence[tuple[str, str]]:
        """Whose hooks failed when they were called last; of each plugin the hook and how, as a clause."""
        failing = list(self._failing.items())  # a hook's thread may change it
        return [(one.plugin, f"{one.name} {how}") for one, how in failing]

    async def admit(self, endpoint: Endpoint) -> bool:
        """Whether `endpoint` may join; a policy that fails keeps it out."""
        return await self.refusal(endpoint) is None

    async def refusal(self, endpoint: Endpoint) -> Refusal | None:
        """Say who keeps `endpoint` out; None if it may join."""
        for one in self._admit:
            [answer] = await self._ask(one, [partial(_verdict, one.call(endpoint=endpoint))], ADMIT_SECONDS)
            if answer is not None:
                return None if answer is True else Refusal(one.plugin, isinstance(answer, BaseException))
        return None

    async def admitted(self, endpoints: Sequence[Endpoint]) -> tuple[Sequence[bool | None], int | None]:
        """Say of each of `endpoints` whether it may join; None if a policy hangs, so that it is not known.

        Returns:
            The verdicts, and the index of the endpoint at which a policy hangs, if that is one of them.
        """
        culprit: int | None = None
        verdicts: list[bool | None] = [True] * len(endpoints)
        undecided: Sequence[int] = range(len(endpoints))
        for one in self._admit:
            calls = [partial(_verdict, one.call(endpoint=endpoints[index])) for index in undecided]
            answers = dict(zip(undecided, await self._ask(one, calls, ADMIT_SECONDS), strict=True))
            for index, answer in answers.items():
                if isinstance(answer, HookHangsError) and answer.begun and culprit is None:
                    culprit = index
                if answer is not None:
                    verdicts[index] = None if isinstance(answer, HookHangsError) else answer is True
            undecided = [index for index, answer in answers.items() if answer is None]
        return verdicts, culprit

    async def authenticate(self, endpoint: Endpoint) -> httpx2.Auth | None:
        """Return the credentials for `endpoint`; the ones in the settings go to vouched endpoints only."""
        for one in self._auth:
            [answer] = await self._ask(one, [one.call(endpoint=endpoint)], AUTH_SECONDS)
            if isinstance(answer, httpx2.Auth):
                return answer
            if answer is not None and not isinstance(answer, BaseException):
                kind = type(answer).__name__  # not the value, which may be a secret
                self._fail(one, f"gave {kind} for credentials, not httpx2.Auth: it does not count")
        password = self._settings.server_password
        if password is None or not endpoint.vouched:
            return None
        return OpenCodeAuth(self._settings.server_username, password.get_secret_value())

    def tell(self, before: Instance | None, after: Instance | None) -> None:
        """Tell plugins that an instance joined, changed or left."""
        for one in self._changed:
            self._tell(one, one.call(before=before, after=after))

    def audit(self, action: Action) -> None:
        """Tell plugins that something is done to an instance, or has been."""
        for one in self._audit:
            self._tell(one, one.call(action=action))

    async def watch(self) -> None:
        """Look again and again whether a hook that was told something hangs, until cancelled."""
        if not (self._changed or self._audit):
            return
        while True:
            await anyio.sleep(_WATCH_SECONDS)
            for one in (*self._changed, *self._audit):
                thread = self._told.get(one.plugin)
                if thread is not None and one.made(thread.call) and thread.seconds > _TOLD_SECONDS:
                    self._hangs(one, _TOLD_SECONDS)

    async def close(self) -> None:
        """Let the hooks hear what they were not told yet, for a moment; then end their threads."""
        with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
            async with anyio.create_task_group() as group:
                for thread in self._told.values():
                    group.start_soon(_emptied, thread)
        for thread in (*self._asked.values(), *self._told.values()):
            thread.stop()
        self._asked, self._told = {}, {}

    async def _ask(self, one: "_Hook", calls: Sequence[Call], seconds: float) -> Answers:
        """Return what each of `calls` returns, or raises."""
        if not calls:
            return ()
        thread = self._asked.setdefault(one.plugin, HookThread(f"asks {one.plugin}"))
        try:
            answers = await thread.ask(calls, seconds=seconds)
        except HookHangsError as error:
            self._hangs(one, seconds)
            return [*error.answers, *[error] * (len(calls) - len(error.answers))]
        self._heard(one, answers)
        return answers

    def _tell(self, one: "_Hook", call: Call) -> None:
        thread = self._told.setdefault(one.plugin, HookThread(f"tells {one.plugin}"))
        if not thread.tell(call, partial(self._heard, one)):
            self._fail(one, "is so far behind that it is not told everything")

    def _heard(self, one: "_Hook", answers: Answers) -> None:
        """Take note of how calls ended; those that were told end in their plugin's thread."""
        for answer in answers:
            if isinstance(answer, BaseException):
                self._fail(one, f"failed with {type(answer).__name__}", answer)
                return
        self._failing.pop(one, None)

    def _hangs(self, one: "_Hook", seconds: float) -> None:
        self._fail(one, f"has not returned within {seconds:g} s")

    def _fail(self, one: "_Hook", how: str, error: BaseException | None = None) -> None:
        self._failing[one] = how
        now, before = time.monotonic(), self._logged.get((one, how))
        if before is None or now - before > _LOGGED_AGAIN_SECONDS:
            self._logged[one, how] = now
            logger.error("Plugin %s: its hook %s %s. %s", one.plugin, one.name, how, MEND, exc_info=error)


@dataclasses.dataclass(frozen=True, eq=False)
class _Hook:
    """A plugin's implementation of a hook."""

    plugin: str
    name: str
    function: Callable[..., Any]
    takes: Sequence[str]

    @classmethod
    def all_of(cls, hook: pluggy.HookCaller) -> Sequence[Self]:
        """Return who implements a hook, in the order in which pluggy would call them."""
        return [
            cls(one.plugin_name, hook.name, one.function, one.argnames)
            for one in reversed(hook.get_hookimpls())
        ]

    def call(self, **arguments: object) -> Call:
        return partial(self.function, *(arguments[name] for name in self.takes))

    def made(self, call: Call | None) -> bool:
        """Whether `call` is one of its own."""
        return isinstance(call, partial) and call.func is self.function


def _verdict(call: Call) -> bool | None:
    answer = call()
    return None if answer is None else bool(answer)


async def _emptied(thread: HookThread) -> None:
    with suppress(HookHangsError):
        await thread.ask([], seconds=_LEAVE_SECONDS)
