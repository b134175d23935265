"""Which services are advertised: hears of them, asks again and again, and learns what each one says."""

import logging
import random
import time
from collections.abc import Callable, Sequence

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from zeroconf import Error, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from opencode_mcp_mdns.advert import UnusableError, is_candidate, read, service_types
from opencode_mcp_mdns.asking import AFTER_CHANGE_SECONDS, AFTER_GOODBYE_SECONDS, Asking
from opencode_mcp_mdns.service import Service, Worth
from opencode_mcp_mdns.session import Session
from opencode_mcp_mdns.settings import MDnsSettings

logger = logging.getLogger(__name__)

_AT_ONCE = 16
_RESOLVE_MS = 3_000
"""A service may be heard of before its address: with avahi-publish by 0.7 s."""
_RECONSIDER_SECONDS = 2.0
_RECONSIDERED = 256
_COMPARED = 64
"""With how many services a newcomer is compared when there are too many."""
_WITHOUT_PAUSE = 32
"""Services that are read from the cache before anybody else has a turn."""


class Services:
    """The services that are advertised, at most so many as the settings allow.

    Args:
        session: Zeroconf.
        settings: Say what counts.
        changed: Told of each service that has changed.
        worth: What a service is worth when there are too many.

    Attributes:
        known: The services by key.
    """

    def __init__(
        self,
        session: Session,
        settings: MDnsSettings,
        *,
        changed: Callable[[Service], None],
        worth: Callable[[Service], Worth],
    ) -> None:
        self.known: dict[str, Service] = {}
        self._session = session
        self._settings = settings
        self._changed = changed
        self._worth = worth
        self._types = service_types(settings)
        self._queue: dict[str, Service] = {}
        self._in_doubt: set[Service] = set()
        self._slots = anyio.CapacityLimiter(_AT_ONCE)
        self._queued = anyio.Event()
        self._asking = Asking(session, self._types, self._heard)
        self._flooded = self._overlooked = False

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
                group.start_soon(self._asking.run, rescan_seconds)
                group.start_soon(self._reconsider)
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
                service.gone_at = time.monotonic()
                self._asking.soon(AFTER_GOODBYE_SECONDS)
                self._changed(service)
            return
        if service is None:
            service = self._admitted(Service(service_type, name))
        if service is not None:
            service.gone_at = None
            self._queue[service.key] = service
            self._queued.set()

    def _admitted(self, service: Service) -> Service | None:
        """Take a service in, if need be for a worse one; return None if there is no room."""
        if len(self.known) >= self._settings.max_services:
            self._tell_of_flood()
            self._read_from_cache(service)
            worth = self._worth(service)
            worse = () if worth is Worth.NOTHING else self._worse(worth)
            if not worse:
                self._overlooked = True
                return None
            self.drop(random.choice(worse))  # noqa: S311 - so that nobody can foresee which
        elif len(self.known) < self._settings.max_services // 2:
            self._flooded = False
        self.known[service.key] = service
        return service

    def _worse(self, worth: Worth) -> Sequence[Service]:
        """Return services that are worth nothing; if there are none, others that are worth less."""
        known = list(self.known.values())
        some = random.sample(known, min(_COMPARED, len(known)))  # all of them would hold up everybody
        by_worth = [(self._worth(one), one) for one in some]
        worst = max(value for value, _ in by_worth)
        return [one for value, one in by_worth if value is worst and worst > worth]

    def _tell_of_flood(self) -> None:
        if not self._flooded:
            logger.warning(
                "More than MDNS_MAX_SERVICES (%d) services are advertised: some are left out.",
                self._settings.max_services,
            )
        self._flooded = True

    async def _reconsider(self) -> None:
        """Give those for whom there was no room another chance, in no foreseeable order."""
        while True:
            await anyio.sleep(_RECONSIDER_SECONDS)
            if not self._overlooked:
                continue
            self._overlooked = False
            overlooked = await self._unknown()
            random.shuffle(overlooked)
            for service_type, name in overlooked[:_RECONSIDERED]:
                self._heard(self._zeroconf, service_type, name, ServiceStateChange.Added)

    async def _unknown(self) -> list[tuple[str, str]]:
        """Return the types and names of the services that only zeroconf knows."""
        found: list[tuple[str, str]] = []

        def collect(service_type: str, name: str, **_: object) -> None:
            if name.lower() not in self.known:
                found.append((service_type, name))

        # It tells at once what zeroconf knows, and is ended before it asks the network.
        await AsyncServiceBrowser(self._zeroconf, self._types, handlers=[collect]).async_cancel()
        return found

    async def _network_changed(self) -> None:
        self._asking.soon(AFTER_CHANGE_SECONDS)
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
                if self._read_from_cache(service):
                    self._changed(service)
                elif service not in self._in_doubt:
                    self._in_doubt.add(service)
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
                    self._read(service, info)
                else:
                    service.stale = service.resolved = True
                    if service.advert is None:
                        service.problem = "nobody answers for it: its address cannot be learnt"
            self._changed(service)
        finally:
            self._in_doubt.discard(service)

    def _read_from_cache(self, service: Service) -> bool:
        """Learn what a service says if zeroconf knows; return whether it does, or never will."""
        info = self._info(service)
        if info is None:
            return True
        known = info.load_from_cache(self._zeroconf)
        if known:
            self._read(service, info)
        return known

    def _info(self, service: Service) -> AsyncServiceInfo | None:
        try:
            return AsyncServiceInfo(service.type, service.name)
        except Error:  # control characters, for example
            service.resolved, service.problem = True, "its name is no name of a service"
            return None

    def _read(self, service: Service, info: AsyncServiceInfo) -> None:
        service.resolved, service.stale, service.problem = True, False, ""
        try:
            service.advert = read(info, self._session.network, self._settings)
        except UnusableError as error:
            # What it said before is kept: whoever overwrites it with nonsense must not make it vanish.
            service.problem = str(error)
            if service.advert is not None and service.advert.expired:
                service.advert = None
