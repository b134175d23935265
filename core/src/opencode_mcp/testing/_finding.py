"""Standard tests of finding: what `discover` returns and `watch` publishes, and when."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import anyio
import pytest

from opencode_mcp.model import Endpoint
from opencode_mcp.testing._claims import Claims
from opencode_mcp.testing._leftovers import Leftovers
from opencode_mcp.testing._trial import MOST_SECONDS, Trial, Watching, describe, fail, require

_NEVER_SECONDS = 3600.0
_QUIET_SECONDS = 1.0
"""How long looking fails, for a watch that goes on meanwhile."""
_LATE_SECONDS = 0.3
"""So long nothing may be published any more after the watch was cancelled and something has changed."""


class FindingTests(Claims):
    """The part of `TransportSuite` about finding."""

    async def test_nothing_to_find_is_an_empty_set(self, trial: Trial) -> None:
        """Where nothing is, an empty set is published: only then core knows that it was looked."""
        async with trial.watching() as watching:
            await watching.until(
                lambda: watching.sets,
                "Nothing is published, so `watch` has to publish an empty set once it has looked.",
            )
            require(not watching.now, f"Nothing was published, but there is {watching.shown}.")

    async def test_the_first_set_is_complete(self, trial: Trial) -> None:
        """What is there already is in the first set: whatever is missing in it counts as gone."""
        await trial.publish(key="one")
        await trial.publish(key="two")
        async with trial.watching() as watching:
            await watching.until(lambda: watching.sets, "Two are there, so `watch` has to publish both.")
            found = {one.id for one in watching.sets[0]}
            require(
                len(found) == 2,
                f"Two are there before `watch` begins, but its first set has {len(found)}. Call `publish` "
                "with the whole set, once it is complete, not with one endpoint after the other.",
            )

    async def test_discover_returns_what_watch_publishes(self, trial: Trial) -> None:
        """Both ways of looking find the same: commands look once, the server watches."""
        await trial.publish(key="one")
        await trial.publish(key="two")
        async with trial.watching() as watching:
            await watching.until(lambda: len(watching.now) == 2, _published(2))
            watched = watching.now
        found = await self._discovered(trial)
        require(
            {one.id: (one.name, one.url) for one in found}
            == {one.id: (one.name, one.url) for one in watched.values()},
            "`discover` finds something else than `watch` published: "
            f"{_shown(found)} instead of {_shown(list(watched.values()))}.",
        )

    async def test_what_appears_is_added(self, trial: Trial) -> None:
        """What comes later is published with all that was there before."""
        async with trial.watching() as watching:
            await trial.publish(key="one")
            await watching.until(lambda: len(watching.now) == 1, _published(1))
            await trial.publish(key="two")
            await watching.until(
                lambda: len(watching.now) == 2,
                "A second one has appeared, so the set has to hold both: `publish` takes the whole set.",
            )

    async def test_what_changes_keeps_its_id(self, trial: Trial) -> None:
        """A server that moves to another port and has another name is the same one."""
        await trial.publish(name="before")
        async with trial.watching() as watching:
            [before] = (await self._found(watching, 1)).values()
            await trial.publish(name="after")
            await watching.until(
                lambda: watching.now and before not in watching.now.values(),
                "It has another name and another port by now, so another endpoint has to be published.",
            )
            require(
                set(watching.now) == {before.id},
                f"It has another name and another port, but is the same one. Its id was {before.id!r}; now "
                f"there is {watching.shown}. Make the id of what stays, not of the port or the name.",
            )

    async def test_what_is_withdrawn_goes_and_stays_away(self, trial: Trial) -> None:
        """What was withdrawn is in no set any more, whatever happens to others."""
        await trial.publish(key="one")
        async with trial.watching() as watching:
            [known] = await self._found(watching, 1)
            await trial.publish(key="two")
            await self._found(watching, 2)
            await trial.withdraw("one")
            await watching.until(
                lambda: len(watching.now) == 1 and known not in watching.now,
                "One of two is withdrawn, so the other one has to be published alone.",
            )
            gone = len(watching.sets) - 1
            await trial.publish(key="three")
            await self._found(watching, 2)
            await trial.withdraw("three")
            await watching.until(lambda: len(watching.now) == 1, _published(1))
            require(
                not any(watching.states(known)[gone:]),
                "It was withdrawn and gone, and was published again as something else changed. Do not keep "
                "what is not there any more.",
            )

    async def test_changes_come_in_order(self, trial: Trial) -> None:
        """However quickly it changes, the last state stays, and none returns that was over."""
        await trial.publish(name="step-0")
        async with trial.watching() as watching:
            [(known, first)] = (await self._found(watching, 1)).items()
            await trial.publish(name="step-1")
            await watching.until(
                lambda: first not in watching.now.values(),
                "It has another name and another port by now, so another endpoint has to be published.",
            )
            for step in range(2, 5):
                await trial.publish(name=f"step-{step}")
            await trial.publish(key="two")
            await self._found(watching, 2)
            async with trial.watching() as fresh:
                await fresh.until(lambda: known in fresh.now, "It is there, so it has to be found by its id.")
                wanted = _state(fresh.now[known])
            await watching.until(
                lambda: known in watching.now and _state(watching.now[known]) == wanted,
                f"It changed four times, so the last state, {wanted}, has to be published last.",
            )
            states = [_state(one) for one in watching.states(known) if one is not None]
            steps = [one for one, before in zip(states, [None, *states], strict=False) if one != before]
            require(
                len(steps) == len(set(steps)),
                f"A state that was over was published again: {steps}. Publish what is, in the order in which "
                "it was learnt.",
            )

    async def test_ids_are_unique_and_stable(self, trial: Trial) -> None:
        """An id is one endpoint's, and stays the same when the transport is opened again."""
        await trial.publish(key="one", name="alike")
        await trial.publish(key="two", name="alike")
        first = await self._discovered(trial)
        again = await self._discovered(trial)
        async with trial.watching() as watching:
            await self._found(watching, 2)
            watched = watching.sets[-1]
        for found in (first, watched):
            ids = [one.id for one in found]
            require(
                len(ids) == len(set(ids)) == 2,
                f"Two with the same name are there, but the ids are {ids}. Give each its own, and each once.",
            )
        require(
            {one.id for one in first} == {one.id for one in again},
            f"The ids were {sorted(one.id for one in first)}; opened again, the transport calls the same two "
            f"{sorted(one.id for one in again)}. Make the id of what it finds, not of chance or order.",
        )

    async def test_two_watchers_see_the_same(self, trial: Trial) -> None:
        """Two processes of a user look at the same time: neither takes anything from the other."""
        await trial.publish(key="one")
        async with trial.watching() as first, trial.watching() as second:
            for each in (first, second):
                await self._found(each, 1)
            await trial.publish(key="two")
            for each in (first, second):
                await each.until(
                    lambda each=each: len(each.now) == 2,
                    "Two watch at the same time, and something has appeared: both have to publish it.",
                )
            await first.stop()
            await trial.withdraw("two")
            await second.until(
                lambda: len(second.now) == 1,
                "Two watched and one has ended: the other one has to notice what changes later.",
            )

    async def test_a_cancelled_watch_ends_and_leaves_nothing_behind(self, trial: Trial) -> None:
        """No task, socket or file is left, and nothing is published any more."""
        await trial.publish(key="one")
        async with trial.watching() as warmed_up:
            await self._found(warmed_up, 1)
        before = Leftovers()
        async with trial.watching() as watching:
            await self._found(watching, 1)
            began = anyio.current_time()
            await watching.stop()
            took = anyio.current_time() - began
        require(
            took < MOST_SECONDS,
            f"`watch` took {took:.0f} s to end once it was cancelled. Let the cancellation through at once, "
            "and bound what has to be awaited on the way out.",
        )
        await trial.until(
            lambda: not before.now,
            lambda: (
                f"`watch` was cancelled and the transport closed, but there is left: "
                f"{', '.join(before.now)}. Use a task group, and close on the way out what was opened."
            ),
        )
        published = len(watching.sets)
        await trial.publish(key="two")
        async with trial.watching() as again:
            await self._found(again, 2)
            await anyio.sleep(_LATE_SECONDS)
        require(
            len(watching.sets) == published,
            "Something was published after the watch was cancelled. End what calls `publish` with it.",
        )

    async def test_changes_are_noticed_without_looking_again(self, trial: Trial) -> None:
        """A transport that watches natively does not wait for `rescan_seconds`."""
        if not self.watches_natively:
            pytest.skip("It does not claim to watch natively (`watches_natively`).")
        trial.rescan_seconds = _NEVER_SECONDS
        await trial.publish(key="one")
        async with trial.watching() as watching:
            await self._found(watching, 1)
            await trial.publish(key="two")
            await watching.until(
                lambda: len(watching.now) == 2,
                "It claims to watch natively, so what appears has to be published long before "
                "`rescan_seconds`, which was set to an hour.",
            )
            await trial.withdraw("two")
            await watching.until(
                lambda: len(watching.now) == 1,
                "It claims to watch natively, so what goes has to go long before `rescan_seconds`, which was "
                "set to an hour.",
            )

    async def test_an_error_is_raised_and_never_an_empty_set(self, trial: Trial) -> None:
        """An empty set means that everybody is gone; what cannot be learnt is an error."""
        await trial.publish()
        async with trial.watching() as watching:
            [known] = await self._found(watching, 1)
            async with _broken(trial):
                seen = len(watching.sets)
                discovered = await _discovered_anyhow(trial)
                async with trial.watching() as late:
                    with anyio.move_on_after(_QUIET_SECONDS):
                        await watching.ended.wait()
                        await late.ended.wait()
                    began_with, went_on_with = [*late.sets], watching.states(known)[seen:]
            if discovered is not None:
                fail(
                    f"Looking fails, but `discover` returns {len(discovered)} endpoints. Raise "
                    "TransportError with what is wrong: an empty set would mean that every instance is gone."
                )
            require(
                all(began_with),
                "Looking fails, but a `watch` that begins now publishes an empty set. Raise "
                "TransportError with what is wrong, or wait until looking works.",
            )
            require(
                all(went_on_with),
                "Looking fails, but `watch` publishes a set without the one that was there. Raise "
                "TransportError, which core reports, and it keeps the last set; or keep it yourself.",
            )
            if not watching.ended.is_set():
                await watching.until(lambda: known in watching.now, "Looking works again.")
        async with trial.watching() as again:
            await again.until(lambda: known in again.now, "Looking works again, so it has to be found.")

    async def _discovered(self, trial: Trial) -> Sequence[Endpoint]:
        async with trial.opened() as transport:
            try:
                return await transport.discover()
            except Exception as error:
                fail(f"`discover` raised {describe(error)}")

    async def _found(self, watching: Watching, count: int) -> dict[str, Endpoint]:
        await watching.until(lambda: len(watching.now) == count, _published(count))
        return watching.now


def _broken(trial: Trial) -> AbstractAsyncContextManager[None]:
    try:
        return trial.publisher.broken()
    except NotImplementedError:
        fail(
            "The publisher cannot let looking fail: define `broken` in it, for example so that it makes the "
            "file unreadable or takes the server away. If looking cannot fail, override this test and mark "
            "it with pytest.mark.xfail(reason=...)."
        )


async def _discovered_anyhow(trial: Trial) -> Sequence[Endpoint] | None:
    """Return what `discover` returns, or None if it raises."""
    async with trial.opened() as transport:
        try:
            return await transport.discover()
        except Exception:
            return None


def _published(count: int) -> str:
    return f"{count} of the publisher's endpoints are there, so a set of {count} has to be published."


def _state(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.name, endpoint.url


def _shown(endpoints: Sequence[Endpoint]) -> str:
    return ", ".join(f"{one.id!r} ({one.name!r}, {one.url!r})" for one in endpoints) or "nothing"
