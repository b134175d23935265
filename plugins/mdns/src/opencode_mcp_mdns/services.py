"""Which services are advertised: hears of them, asks again and again, and learns what each one says."""

import logging
import random
import time
from collections.abc import Callable, Sequence

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from zeroconf import (
    DNSRecord,  # pyright: ignore[reportPrivateImportUsage] - but not in __all__
    Error,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from opencode_mcp_mdns.advert import UnusableError, is_candidate, is_sendable, read, service_types
from opencode_mcp_mdns.asking import AFTER_CHANGE_SECONDS, AFTER_GOODBYE_SECONDS, Asking
from opencode_mcp_mdns.service import Service, Worth
from opencode_mcp_mdns.session import Session
from opencode_mcp_mdns.settings import MDnsSettings

logger = logging.getLogger(__name__)

_AT_ONCE = 16
_RESOLVE_MS = 3_000
"""A service may be heard of before its address: with avahi-publish by 0.7 s."""
_RECONSIDER_SECONDS = 2.0
_RECONSIDERED = 128
_TOLD_AGAIN_SECONDS = 3600.0
_PTR, _IN = 12, 1
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
        self._asking = Asking(session, self._types, self._read_again)
        self._overlooked = False
        self._told_at: float | None = None

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
        """Take note of an event, whatever somebody sent. Zeroconf waits for it, so it must be quick."""
        if not is_sendable(name):
            self._forget_pointer(service_type, name)
            return
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
            if len(self.known) >= self._settings.max_services:
                self._overlooked = True
                return
            service = self._follow(Service(service_type, name))
        service.gone_at = None
        self._enqueue(service)

    def _follow(self, service: Service) -> Service:
        self.known[service.key] = service
        return service

    def _enqueue(self, *services: Service) -> None:
        self._queue.update((service.key, service) for service in services)
        self._queued.set()

    def _forget_pointer(self, service_type: str, name: str) -> None:
        """Let zeroconf forget a service whose name it cannot send, and would try to with every question."""
        cache = self._zeroconf.cache
        unsendable = [one for one in self._pointers(service_type) if getattr(one, "alias", "") == name]
        cache.async_remove_records(unsendable)

    def _pointers(self, service_type: str) -> Sequence[DNSRecord]:
        return self._zeroconf.cache.get_all_by_details(service_type, _PTR, _IN)

    async def _reconsider(self) -> None:
        """Give those for whom there was no room another chance, in no foreseeable order."""
        while True:
            await anyio.sleep(_RECONSIDER_SECONDS)
            if self._overlooked:
                self._overlooked = False
                self._tell_of_flood()
                self._compare(self._unknown())

    def _unknown(self) -> Sequence[Service]:
        """Return some of the services that only zeroconf knows."""
        found = [
            (type_, name)
            for type_ in self._types
            for pointer in self._pointers(type_)
            if (name := str(getattr(pointer, "alias", ""))).lower() not in self.known
        ]
        some = random.sample(found, min(_RECONSIDERED, len(found)))
        return [Service(type_, name) for type_, name in some if is_candidate(type_, name)]

    def _compare(self, newcomers: Sequence[Service]) -> None:
        """Let newcomers displace those that are worth less."""
        worths = [(self._worth(one), random.random(), one) for one in self.known.values()]  # noqa: S311
        worths.sort(key=lambda one: one[:2])
        for service in newcomers:
            self._read_from_cache(service)
            worth = self._worth(service)
            if len(self.known) >= self._settings.max_services:
                self._overlooked = True
                if not worths or worths[-1][0] <= worth:
                    continue
                self.drop(worths.pop()[2])
            self._enqueue(self._follow(service))

    def _tell_of_flood(self) -> None:
        now = time.monotonic()
        if self._told_at is None or now - self._told_at > _TOLD_AGAIN_SECONDS:
            logger.warning(
                "More than MDNS_MAX_SERVICES (%d) services are advertised: some are left out.",
                self._settings.max_services,
            )
        self._told_at = now

    def slept(self) -> None:
        """Take what is known for old: time has passed that zeroconf has not noticed."""
        cache = self._zeroconf.cache
        for name in cache.names():
            cache.async_remove_records(cache.entries_with_name(name))
        self._network_changed()

    def _read_again(self) -> None:
        self._enqueue(*self.known.values())

    def _network_changed(self) -> None:
        self._asking.soon(AFTER_CHANGE_SECONDS)
        self._read_again()  # other addresses are allowed now

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
