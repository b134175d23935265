"""Shows a desktop notification when an agent finishes, waits for you, or cannot be reached any more."""

import asyncio
import logging

from desktop_notifier import DesktopNotifier

from opencode_mcp import Activity, Instance, Status, clean_line, hookimpl

SECONDS = 5
"""How long the desktop may take to answer."""
NO_MARKUP = str.maketrans("<>&", "()+")  # many desktops read tags, and what is shown comes from outside

logger = logging.getLogger(__name__)


class Desktop:
    """The notifications of a desktop: connected by the first one, given up at the first failure."""

    def __init__(self) -> None:
        self.loop = asyncio.Runner()  # kept between the calls, as the connection belongs to it
        self._notifier: DesktopNotifier | None = None
        self._works = True

    def show(self, title: str, text: str) -> None:
        """Show a notification. If there is no desktop, log that once."""
        if not self._works:
            return
        try:
            self.loop.run(self._send(*(clean_line(one).translate(NO_MARKUP) for one in (title, text))))
        except Exception as error:  # each platform has its own
            self._works = False
            logger.warning("There are no desktop notifications: %s: %s", type(error).__name__, error)

    async def _send(self, title: str, text: str) -> None:
        sent = asyncio.Event()
        async with asyncio.timeout(SECONDS):
            self._notifier = self._notifier or DesktopNotifier(app_name="opencode-mcp")
            await self._notifier.get_capabilities()  # raises without a desktop, where `send` would not
            await self._notifier.send(title, text, on_dispatched=sent.set)
        if not sent.is_set():
            raise ConnectionError("the desktop took no notification")


desktop = Desktop()


@hookimpl
def opencode_mcp_instance_changed(before: Instance | None, after: Instance | None) -> None:
    """Show what a person would want to know. Core calls this in a thread where it may take its time."""
    if before is None or after is None:  # it joined, or was closed
        return
    if after.waiting_for and after.waiting_for != before.waiting_for:
        desktop.show(f"{after.name} waits for you", after.waiting_for)
    elif (before.activity, after.activity) == (Activity.BUSY, Activity.IDLE):
        desktop.show(f"{after.name} has finished", after.session.title if after.session else "")
    elif after.status is Status.OFFLINE and before.status is not Status.OFFLINE and after.last_seen:
        desktop.show(f"{after.name} is offline", after.detail)
