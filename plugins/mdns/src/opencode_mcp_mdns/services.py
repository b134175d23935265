"""Which services are advertised: hears of them, asks again and again, and learns what each one says."""

import dataclasses
import logging
import random
from collections.abc import Callable, Collection

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from zeroconf import Error, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from opencode_mcp_mdns.advert import Advert, UnusableError, is_candidate, label, read, service_types
from opencode_mcp_mdns.session import Session
from opencode_mcp_mdns.settings import MDnsSettings

logger = logging.getLogger(__name__)

_AT_ONCE = 16
_RESOLVE_MS = 3_000
"""A service may be heard of before its address: with avahi-publish by 0.7 s."""
_AFTER_GOODBYE_SECONDS = (0.1, 1.1)
"""Zeroconf asks up to 0.12 s after it was told to."""
_AFTER_CHANGE_SECONDS = (0.0, 1.0, 4.0)
_QUESTION_SECONDS = 0.3
"""How long it takes to ask once."""
_WITHOUT_PAUSE = 32
"""Services that are read from the cache before anybody else has a turn."""


@dataclasses.dataclass(eq=False)
class Service:
    """An advertised service that may be an instance.

    Attributes:
        type: Its type, a DNS name.
        name: Its whole name, as it came: not safe to show.
        advert: What it says; None as long as that is unknown or of no use.
        problem: Why there is no advert, as a clause about `it`; or empty.
        resolved: Whether it was tried to learn what it says.
        gone: Whether it said goodbye, or was not heard of for too long.
        stale: Whether nobody answers for it any more.
    """

    type: str
    name: str
    advert: Advert | None = None
    problem: str = ""
    resolved: bool = False
    gone: bool = False
    stale: bool = False

    @property
    def key(self) -> str:
        """Its name for comparing: case does not count in DNS."""
        return self.name.lower()

    @property
    def label(self) -> str:
        """Its own part of its name, as safe text."""
        return label(self.type, self.name)


class Services:
    """The services that are advertised, at most so many as the settings allow.

    Args:
        session: Zeroconf.
        settings: Say what counts.
        changed: Told of each service that has changed.
        expendable: Whether a service may be given up for another one when there are too many.

    Attributes:
        known: The services by key.
    """

    def __init__(
        self,
        session: Session,
        settings: MDnsSettings,
        *,
        changed: Callable[[Service], None],
        expendable: Callable[[Service], bool],
    ) -> None:
        self.known: dict[str, Service] = {}
        self._session = session
        self._settings = settings
        self._changed = changed
        self._expendable = expendable
        self._types = service_types(settings)
        self._queue: dict[str, Service] = {}
        self._asking: set[str] = set()
        self._slots = anyio.CapacityLimiter(_AT_ONCE)
        self._queued = anyio.Event()
        self._due: list[float] = []
        self._due_changed = anyio.Event()
        self._flooded = False

    @property
    def settled(self) -> bool:
        """Whether everything that was heard of has been read, or at least asked for."""
        return not self._queue

    async def run(self, rescan_seconds: float) -> None:
        """Keep at it until cancelled.

        Args:
            rescan_seconds: How often to ask again. Zeroconf itself would ask at most hourly.
        """
        browser = AsyncServiceBrowser(self._zeroconf, self._types, handlers=[self._heard])
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._resolve, group)
                group.start_soon(self._ask_again, rescan_seconds)
                group.start_soon(self._session.follow, self._network_changed)
        finally:
            await browser.async_cancel()

    def drop(self, service: Service) -> None:
        """Give a service up; it is known again once it is heard of again."""
        self.known.pop(service.key, None)
        self._queue.pop(service.key, None)

    @property
    def _zeroconf(self) -> Zeroconf:
        return self._session.zeroconf.zeroconf

    def _heard(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Take note of an event. Zeroconf calls it with whatever somebody sent, so it must not fail."""
        if not is_candidate(service_type, name):
            return
        service = self.known.get(name.lower())
        if state_change is ServiceStateChange.Removed:
            if service is not None and not service.gone:
                service.gone = True
                self.ask_soon(_AFTER_GOODBYE_SECONDS)
                self._changed(service)
            return
        if service is None:
            service = self._admitted(service_type, name)
        if service is not None:
            service.gone = False
            self._queue[service.key] = service
            self._queued.set()

    def _admitted(self, type_: str, name: str) -> Service | None:
        if len(self.known) >= self._settings.max_services:
            if not self._flooded:
                logger.warning(
                    "More than MDNS_MAX_SERVICES (%d) services are advertised: some are left out.",
                    self._settings.max_services,
                )
            self._flooded = True
            given_up = [service for service in self.known.values() if self._expendable(service)]
            if not given_up:
                return None
            self.drop(random.choice(given_up))  # noqa: S311 - so that nobody can foresee which
        elif len(self.known) < self._settings.max_services // 2:
            self._flooded = False
        service = self.known[name.lower()] = Service(type_, name)
        return service

    def ask_soon(self, delays: Collection[float]) -> None:
        """Ask who is there, once after each of `delays` seconds; what is about to be asked anyway counts."""
        now = anyio.current_time()
        for delay in delays:
            if not any(now <= due <= now + delay + _QUESTION_SECONDS for due in self._due):
                self._due.append(now + delay)
        self._due.sort()
        self._due_changed.set()

    async def _ask_again(self, rescan_seconds: float) -> None:
        """Ask when it is due. Whatever is known is heard again, too, so what it says is learnt anew."""
        rescan = anyio.current_time() + rescan_seconds
        while True:
            self._due_changed = anyio.Event()
            due = min([rescan, *self._due])
            with anyio.CancelScope(deadline=due):
                await self._due_changed.wait()
                continue
            self._due = [one for one in self._due if one > due]
            asking = AsyncServiceBrowser(self._zeroconf, self._types, handlers=[self._heard])
            try:
                await anyio.sleep(_QUESTION_SECONDS)
            finally:
                await asking.async_cancel()
            if due >= rescan:
                rescan = anyio.current_time() + rescan_seconds

    async def _network_changed(self) -> None:
        self.ask_soon(_AFTER_CHANGE_SECONDS)
        for service in self.known.values():  # other addresses are allowed now
            self._queue[service.key] = service
        self._queued.set()

    async def _resolve(self, group: TaskGroup) -> None:
        """Learn what services say, from the cache if it is there: most say all at once."""
        while True:
            await self._queued.wait()
            self._queued = anyio.Event()
            count = 0
            while self._queue:
                service = self._queue.pop(next(iter(self._queue)))
                info = self._info(service)
                if info is not None and info.load_from_cache(self._zeroconf):
                    self._resolved(service, info)
                elif info is not None and service.key not in self._asking:
                    self._asking.add(service.key)
                    group.start_soon(self._ask_for, service)
                count += 1
                if count % _WITHOUT_PAUSE == 0:
                    await anyio.lowlevel.checkpoint()

    async def _ask_for(self, service: Service) -> None:
        try:
            async with self._slots:
                info = self._info(service)
                if info is None or self.known.get(service.key) is not service:
                    return
                if await info.async_request(self._zeroconf, _RESOLVE_MS):
                    self._resolved(service, info)
                    return
            service.stale = service.resolved = True
            if service.advert is None:
                service.problem = "nobody answers for it: its address cannot be learnt"
            self._changed(service)
        finally:
            self._asking.discard(service.key)

    def _info(self, service: Service) -> AsyncServiceInfo | None:
        try:
            return AsyncServiceInfo(service.type, service.name)
        except Error:  # control characters, for example
            self._unusable(service, "its name is no name of a service")
            return None

    def _resolved(self, service: Service, info: AsyncServiceInfo) -> None:
        service.resolved, service.stale, service.problem = True, False, ""
        try:
            advert = read(info, self._session.network, self._settings)
        except UnusableError as error:
            self._unusable(service, str(error))
        else:
            service.advert = advert
            self._changed(service)

    def _unusable(self, service: Service, problem: str) -> None:
        # What it said before is kept: whoever overwrites it with nonsense must not make it vanish.
        service.resolved, service.problem = True, problem
        self._changed(service)
