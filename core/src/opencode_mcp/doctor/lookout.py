"""Watches what a transport publishes, until that is all it finds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import anyio

from opencode_mcp.doctor.judge import Judge, Verdict
from opencode_mcp.doctor.patience import Patience
from opencode_mcp.doctor.report import State
from opencode_mcp.doctor.walk import Walk
from opencode_mcp.fleet.foreign import contained
from opencode_mcp.fleet.publication import MOST, sound
from opencode_mcp.model import Endpoint, Rejection
from opencode_mcp.transport import Transport

_NAMED = 5


class Lookout:
    """Runs the `watch` of a transport and keeps what it publishes.

    Args:
        transport: The transport, open.
        judge: Judges what its code raises.
        patience: How long it may take.

    Attributes:
        endpoints: What it published last, without what does not count.
    """

    def __init__(self, transport: Transport, judge: Judge, patience: Patience) -> None:
        self.endpoints: Sequence[Endpoint] = ()
        self._transport = transport
        self._judge = judge
        self._patience = patience
        self._flaws: Sequence[str] = ()
        self._failure: Verdict | None = None
        self._published = anyio.Event()

    async def run(self) -> None:
        """Watch until cancelled, or until that fails."""
        try:
            with contained():
                await self._transport.watch(self._publish)
            self._failure = "Its watch ended without an error.", self._judge.report_it
        except (Exception, SystemExit) as error:  # foreign code
            self._failure = self._judge(error)
        self._published.set()

    async def look(self, walk: Walk) -> None:
        """Wait for what it finds, and end the present step of `walk` with that.

        Raises:
            Stopped: It fails, or says nothing.
        """
        began = anyio.current_time()
        with anyio.move_on_after(self._patience.look) as waiting:
            await self._published.wait()
        if waiting.cancelled_caught:
            detail, fix = self._judge.late("It has not said what it finds", self._patience.look)
            walk.stop(detail, fix=fix)
        if type(self._transport).watch is not Transport.watch:  # which looks once, and again much later
            await self._complete()
        if self._failure is not None:
            detail, fix = self._failure
            walk.stop(detail, fix=fix)
        if self.endpoints:
            count = len(self.endpoints)
            walk.end("1 endpoint" if count == 1 else f"{count} endpoints")
        else:
            seconds = anyio.current_time() - began
            walk.end(f"Nothing, in {seconds:.1f} s.", state=State.WARNING, fix=self._invitation())
        if self._flaws:
            walk.also("flaws", " ".join(self._flaws), state=State.WARNING, fix=self._judge.report_it)

    def rejections(self, walk: Walk) -> Sequence[Rejection]:
        """Ask the transport what it left out, and why."""
        try:
            found = [
                Rejection(source=str(one.source), reason=str(one.reason))
                for one in islice(self._transport.rejected(), MOST)
            ]
        except (Exception, SystemExit) as error:  # foreign code
            detail, fix = self._judge(error)
            walk.also("left out", f"It cannot say what it left out. {detail}", state=State.FAILED, fix=fix)
            return ()
        if found:
            walk.also("left out", f"{len(found)} of what it came across", state=State.WARNING)
        return found

    def still_looks(self, walk: Walk) -> None:
        """Tell if it has failed since it published."""
        if self._failure is not None:
            detail, fix = self._failure
            walk.also("watching", detail, state=State.FAILED, fix=fix)

    async def _complete(self) -> None:
        """Give a transport that publishes what it finds bit by bit the time that a whole look takes it."""
        try:
            with contained(), anyio.move_on_after(self._patience.complete):
                found, flaw = sound(await self._transport.discover(), {})
                known, flaws = self._known, self._flaws
                self._publish([*self.endpoints, *(one for one in found if one.id not in known)])
                self._flaws = [one for one in dict.fromkeys([*flaws, flaw, *self._flaws]) if one]
        except (Exception, SystemExit) as error:  # foreign code
            if not self.endpoints:  # else it is the watch that counts
                self._failure = self._judge(error)

    def _publish(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints, flaw = sound(endpoints, self._known)
        places = Counter(one.url for one in self.endpoints)
        shared = [url for url, count in places.items() if count > 1]
        twice = f"It publishes addresses twice ({_few(shared)}); each is one instance." if shared else ""
        self._flaws = [one for one in (flaw, twice) if one]
        self._published.set()

    @property
    def _known(self) -> Mapping[str, Endpoint]:
        return {one.id: one for one in self.endpoints}

    def _invitation(self) -> str:
        try:
            return str(self._transport.invitation)
        except Exception:  # foreign code
            return ""


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
