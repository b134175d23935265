"""Keeps what the policies of plugins say of each endpoint, since asking them takes a moment."""

import math
from collections.abc import Callable, Mapping

import anyio

from opencode_mcp.fleet.policies import Policies
from opencode_mcp.fleet.watched import Key
from opencode_mcp.model import Endpoint

_ASKED_AGAIN_SECONDS = 10.0
_AT_ONCE = 32


class Admission:
    """Who may join. Whoever is new, or has changed, waits outside until the policies have answered.

    Args:
        policies: Who is asked.
        decided: Called after they have answered.
    """

    def __init__(self, policies: Policies, decided: Callable[[], None]) -> None:
        self._policies = policies
        self._decided = decided
        self._verdicts: dict[Key, tuple[Endpoint, bool | None]] = {}
        self._hung: dict[Key, int] = {}
        self._endpoints: Mapping[Key, Endpoint] = {}
        self._wanted = anyio.Event()
        self._settled = anyio.Event()
        self._settled.set()

    def consider(self, endpoints: Mapping[Key, Endpoint]) -> None:
        """Ask of all current endpoints whether they may join: a policy may have changed its mind."""
        if self._policies.decides:
            self._endpoints = endpoints
            self._wanted.set()
            if self._settled.is_set():
                self._settled = anyio.Event()

    def admits(self, key: Key, endpoint: Endpoint) -> bool | None:
        """Whether an endpoint may join; None while nobody has said so."""
        if not self._policies.decides:
            return True
        about, verdict = self._verdicts.get(key, (None, None))
        return verdict if about == endpoint else None

    async def settled(self) -> None:
        """Wait until the policies have answered of all."""
        await self._settled.wait()

    async def run(self) -> None:
        """Ask whenever there is somebody to ask about, until cancelled.

        While a policy hangs nothing new is known: who is in stays, who is new waits, and it is asked again;
        last about those on whom it hung, so that they keep nobody else out.
        """
        patience = math.inf
        while True:
            with anyio.move_on_after(patience):
                await self._wanted.wait()
            self._wanted = anyio.Event()
            asked = self._endpoints
            self._verdicts = {key: one for key, one in self._verdicts.items() if key in asked}
            self._hung = {key: count for key, count in self._hung.items() if key in asked}
            in_turn = sorted(asked, key=lambda key: self._hung.get(key, 0))
            patience = math.inf
            for begin in range(0, len(in_turn), _AT_ONCE):
                if not await self._ask({key: asked[key] for key in in_turn[begin : begin + _AT_ONCE]}):
                    patience = _ASKED_AGAIN_SECONDS
                self._decided()
            if not self._wanted.is_set():
                self._settled.set()

    async def _ask(self, some: Mapping[Key, Endpoint]) -> bool:
        """Ask about some endpoints, and take note of the answers; return whether there was one of each."""
        keys = list(some)
        answers, culprit = await self._policies.admitted(list(some.values()))
        for key, answer in zip(keys, answers, strict=True):
            if answer is not None:
                self._verdicts[key] = (some[key], answer)
        if culprit is not None:
            self._hung[keys[culprit]] = self._hung.get(keys[culprit], 0) + 1
        return None not in answers
