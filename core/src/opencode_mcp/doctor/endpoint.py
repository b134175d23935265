"""The path to one endpoint: a route, an answer, credentials, the API, its events, and how long it takes."""

import math
import statistics
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import NoReturn, TypeVar

import anyio
import httpx2

from opencode_mcp.doctor.judge import Judge, mended
from opencode_mcp.doctor.patience import Patience
from opencode_mcp.doctor.report import EndpointReport, State, worst
from opencode_mcp.doctor.walk import Progress, Stopped, Walk
from opencode_mcp.errors import (
    CredentialsError,
    OpenCodeMCPError,
    ProtocolError,
    RequestError,
    StrangerError,
    TooLargeError,
    UnreachableError,
)
from opencode_mcp.fleet.foreign import contained
from opencode_mcp.fleet.pace import Pace
from opencode_mcp.fleet.policies import MEND, Policies, Refusal
from opencode_mcp.model import Endpoint, Route
from opencode_mcp.opencode.api import Event, OpenCode
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http
from opencode_mcp.transport import Transport

T = TypeVar("T")

_STEPS = ("admitted", "route", "reachable", "authenticated", "api", "events", "round trip")
_PINGS = 5
_PROBES = 4
"""What one step asks for may take this many times as long as one probe."""
_CUT_SECONDS = 0.1
"""A stream that ends so soon after its first event is cut by something."""


class EndpointExamination:
    """Examines one endpoint.

    Args:
        endpoint: What its transport says.
        transport: Opens the route.
        judge: Judges what the transport's code raises.
        progress: Hears of each step.
        pace: How long a probe may take.
        patience: How long opening a route may take.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transport: Transport,
        *,
        judge: Judge,
        progress: Progress,
        pace: Pace,
        patience: Patience,
    ) -> None:
        self.endpoint = endpoint
        self.walk = Walk(_STEPS, progress, judge)
        self._transport = transport
        self._judge = judge
        self._pace = pace
        self._patience = patience
        self._version = ""
        self._first_event_ms: float | None = None
        self._round_trip_ms: float | None = None
        self._kept_out = False

    async def run(self, policies: Policies) -> None:
        """Walk as far as it goes."""
        with suppress(Stopped):
            await self._walk(policies)

    def report(self) -> EndpointReport:
        """Return what was found out so far."""
        steps = self.walk.steps()
        return EndpointReport(
            name=self.endpoint.name,
            id=self.endpoint.id,
            url=self.endpoint.url,
            hostname=self.endpoint.hostname,
            vouched=self.endpoint.vouched,
            version=self._version,
            state=State.SKIPPED if self._kept_out else worst(step.state for step in steps),
            first_event_ms=self._first_event_ms,
            round_trip_ms=self._round_trip_ms,
            steps=steps,
        )

    async def _walk(self, policies: Policies) -> None:
        with self.walk.step("admitted"):
            if (refusal := await policies.refusal(self.endpoint)) is not None:
                self._keep_out(refusal)
            auth = await policies.authenticate(self.endpoint)
        seconds = self._patience.route
        opened = False
        self.walk.begin("route")
        opening = anyio.CancelScope(deadline=anyio.current_time() + seconds)
        try:
            with contained(), opening:
                async with self._transport.connect(self.endpoint) as route:
                    opening.deadline = math.inf
                    opened = True
                    elsewhere = route.base_url != self.endpoint.url
                    self.walk.end(f"It leads through {route.base_url}." if elsewhere else "")
                    await self._talk_over(route, route.auth or auth)
                    opening.deadline = anyio.current_time() + seconds
        except (Exception, SystemExit) as error:  # foreign code
            self._unusable(*self._judge(error), opened=opened)
        if opening.cancelled_caught:
            what = "Its transport has not closed the route" if opened else "Its transport has found no route"
            self._unusable(*self._judge.late(what, seconds), opened=opened)

    def _keep_out(self, refusal: Refusal) -> NoReturn:
        if refusal.failed:
            self.walk.stop(
                f"The policy of plugin {refusal.plugin} failed, and that keeps it out of the fleet.", fix=MEND
            )
        self._kept_out = True
        self.walk.stop(
            f"The policy of plugin {refusal.plugin} keeps it out of the fleet.",
            fix="If that is not wanted, change the settings of that plugin, or uninstall it.",
            state=State.SKIPPED,
        )

    def _unusable(self, detail: str, fix: str, *, opened: bool) -> None:
        if opened:
            self.walk.also("route closed", detail, state=State.WARNING, fix=fix)
        else:
            self.walk.end(detail, state=State.FAILED, fix=fix)

    async def _talk_over(self, route: Route, auth: httpx2.Auth | None) -> None:
        vouched = self.endpoint.vouched
        async with Http(route, seconds=self._pace.probe, vouched=vouched, auth=auth) as http:
            await self._talk(http, route)

    async def _talk(self, http: Http, route: Route) -> None:
        """Walk on from an open route."""
        walk = self.walk
        walk.begin("reachable")
        try:
            api = await self._bounded(detect(http, pid=route.pid, version=route.version))
        except OpenCodeMCPError as error:
            if isinstance(error, CredentialsError | ProtocolError | RequestError):
                walk.end("Something answers.")
                walk.begin("authenticated" if isinstance(error, CredentialsError) else "api")
            self._failed(error, http, route)
            return
        walk.end()
        self._version = api.version
        walk.begin("authenticated")
        whose = "ours" if route.auth is None else "what its transport knows"
        asked = http.authenticating
        walk.end(f"It asks for a password, and accepts {whose}." if asked else "It asks for no password.")
        for name, step in (("api", self._api), ("events", self._events), ("round trip", self._round_trip)):
            walk.begin(name)
            try:
                await self._bounded(step(api))
            except OpenCodeMCPError as error:
                self._failed(error, http, route)
                return

    async def _bounded(self, work: Awaitable[T]) -> T:
        """Do what takes several requests; each of them is bounded, and here all together."""
        with anyio.move_on_after(_PROBES * self._pace.probe):
            return await work
        raise UnreachableError("It did not answer in time.")

    async def _api(self, api: OpenCode) -> None:
        stock = await api.snapshot()
        place = f" in {stock.directory}" if stock.directory else ""
        self.walk.end(f"OpenCode {api.version}, the API of {api.generation}.x{place}.")

    async def _events(self, api: OpenCode) -> None:
        began = time.monotonic()
        try:
            async with api.events() as events:
                first: Event | None = None
                with anyio.move_on_after(self._pace.probe) as waiting:
                    first = await anext(events, None)
                delay = _milliseconds_since(began)
                if waiting.cancelled_caught:
                    self._polled(
                        f"Its event stream opens and says nothing for {self._pace.probe:g} s.",
                        "If a proxy between holds back what it is sent, switch its buffering off; for nginx: "
                        "proxy_buffering off;",
                    )
                    return
                with anyio.move_on_after(_CUT_SECONDS) as staying:
                    while first is not None:
                        first = await anext(events, None)
        except TooLargeError as error:
            fix = "A message or a tool's output there is too large for one event: go on in a new session."
            self._polled(str(error), fix)
            return
        if staying.cancelled_caught:
            self._first_event_ms = delay
            self.walk.end(f"The first event came after {delay:g} ms.")
        else:
            self._polled(
                "Its event stream ends at once.",
                "If a proxy between ends what lasts long, let it keep event streams open; for nginx: "
                "proxy_read_timeout 1h;",
            )

    def _polled(self, why: str, fix: str) -> None:
        detail = f"{why} So it is asked every {self._pace.poll:g} s instead, and news come later."
        self.walk.end(detail, state=State.WARNING, fix=fix)

    async def _round_trip(self, api: OpenCode) -> None:
        took: list[float] = []
        for _ in range(_PINGS):
            began = time.monotonic()
            await api.ping()
            took.append(_milliseconds_since(began))
        self._round_trip_ms = median = statistics.median(took)
        detail = f"{median:g} ms, the median of {_PINGS} requests."
        bound = self._pace.probe * 1000
        if median <= bound / 2:
            self.walk.end(detail)
        else:
            fix = f"export HEALTH_CHECK_TIMEOUT_MS={4 * bound:.0f}, since it is near the bound of a probe"
            self.walk.end(detail, state=State.WARNING, fix=fix)

    def _failed(self, error: OpenCodeMCPError, http: Http, route: Route) -> None:
        if isinstance(error, StrangerError):
            self.walk.end(error.told, state=State.FAILED, fix=error.mend)
            return
        vouching = ""
        with suppress(Exception, SystemExit):  # foreign code
            vouching = str(self._transport.vouching)
        detail = str(error)
        if isinstance(error, CredentialsError) and http.authenticating and route.auth is not None:
            detail = "It refuses the user name and password that its transport knows."
        elif isinstance(error, CredentialsError) and not self.endpoint.vouched:
            detail = (
                "It wants a password. Its transport does not vouch for it, so OPENCODE_SERVER_PASSWORD is "
                "not sent there."
            )
        self.walk.end(detail, state=State.FAILED, fix=mended(error, self.endpoint, route, vouching))


def _milliseconds_since(moment: float) -> float:
    return round((time.monotonic() - moment) * 1000, 1)
