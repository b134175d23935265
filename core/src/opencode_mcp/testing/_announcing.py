"""Standard tests of announcing, for a transport that is an `Announcer`; the others are skipped."""

import anyio
import pytest

from opencode_mcp.model import Endpoint
from opencode_mcp.testing._announced import Announcement, announcing_process, kill
from opencode_mcp.testing._claims import Claims
from opencode_mcp.testing._connecting import only, reach
from opencode_mcp.testing._leftovers import Leftovers
from opencode_mcp.testing._trial import Trial, Watching, describe, fail, require

_WITHDRAW_SECONDS = 2.0
_STAYS_SECONDS = 5.0
"""So long is waited at most for what was withdrawn to go, where it may stay."""
_MARGIN_SECONDS = 1.0
"""For a busy machine."""


class AnnouncingTests(Claims):
    """The part of `TransportSuite` about announcing."""

    async def test_what_is_announced_is_found(self, trial: Trial) -> None:
        """It is visible to others once `announce` says so, and can be reached."""
        self._skip_unless_announcing()
        await trial.publish()
        async with trial.watching() as watching, trial.instance() as instance:
            before = await _known(watching)
            async with trial.announced(instance) as announcement:
                _require_visible(announcement)
                found = await _appeared(watching, before)
                require(
                    instance.endpoint.name in found.name,
                    f"{instance.endpoint.name!r} is announced, and found by another name: {found.name!r}.",
                )
                await reach(trial, watching.transport, found)
                require(
                    instance.fake.requests,
                    f"What is announced is found at {found.url}, but a request to it does not come to the "
                    "instance.",
                )

    async def test_what_is_announced_goes_when_cancelled(self, trial: Trial) -> None:
        """Cancelling withdraws, within 2 s: `opencode-connected` waits no longer as it ends."""
        self._skip_unless_announcing()
        await trial.publish()
        async with trial.watching() as watching:
            before = await _known(watching)
            async with trial.instance() as instance, trial.announced(instance) as announcement:
                _require_visible(announcement)
                found = await _appeared(watching, before)
                began = anyio.current_time()
                await announcement.stop()
                took = anyio.current_time() - began
            require(
                took < _WITHDRAW_SECONDS + _MARGIN_SECONDS,
                f"`announce` took {took:.1f} s to withdraw once it was cancelled: bound that by "
                f"{_WITHDRAW_SECONDS:g} s, for example with `anyio.move_on_after(1.5, shield=True)`.",
            )
            require(
                announcement.failure is None,
                f"`announce` was cancelled, and raised {describe(announcement.failure)} Withdraw, and let "
                "the cancellation through.",
            )
            with anyio.move_on_after(self.gone_within_seconds - took):
                await watching.gone(found.id)
            require(
                found.id not in watching.now,
                "`announce` was cancelled, and what it announced is still there after "
                f"{self.gone_within_seconds:g} s. Withdraw it on the way out: in a `finally`, shielded.",
            )

    async def test_what_is_announced_again_has_the_same_id(self, trial: Trial) -> None:
        """Core announces anew after an error, and after a restart: gateways have to take it for the same."""
        self._skip_unless_announcing()
        await trial.publish()
        async with trial.watching() as watching, trial.instance() as instance:
            before = await _known(watching)
            async with trial.announced(instance) as announcement:
                _require_visible(announcement)
                first = await _appeared(watching, before)
            with anyio.move_on_after(min(self.gone_within_seconds, _STAYS_SECONDS)):  # while it answers
                await watching.gone(first.id)
            async with trial.announced(instance) as announcement:
                _require_visible(announcement)
                again = await _appeared(watching, before)
            require(
                again.id == first.id,
                f"The same endpoint was announced twice, and found as {first.id!r} and {again.id!r}. Make "
                "the id of `endpoint.id`.",
            )

    async def test_an_announcement_leaves_nothing_behind(self, trial: Trial) -> None:
        """No task, socket or file is left of an announcement that was cancelled."""
        self._skip_unless_announcing()
        async with trial.instance() as instance:
            async with trial.announced(instance) as announcement:
                _require_visible(announcement)
            before = Leftovers()
            async with trial.announced(instance) as announcement:
                _require_visible(announcement)
            await trial.until(
                lambda: not before.now,
                lambda: (
                    f"`announce` was cancelled and the transport closed, but there is left: "
                    f"{', '.join(before.now)}. Use a task group, and close on the way out what was opened."
                ),
            )

    async def test_what_is_announced_expires_when_its_process_is_killed(self, trial: Trial) -> None:
        """Nobody can withdraw after a kill: what is announced goes by itself."""
        self._skip_unless_announcing()
        if not self.expires:
            pytest.skip("It does not claim that what a killed process announced goes by itself (`expires`).")
        await trial.publish()
        async with trial.watching() as watching:
            before = await _known(watching)
            async with (
                trial.instance() as instance,
                announcing_process(trial.under_test, instance.endpoint) as process,
            ):
                found = await _appeared(watching, before)
                await kill(process)
            with anyio.move_on_after(self.expires_within_seconds + trial.patience):
                await watching.gone(found.id)
                return
        fail(
            "The process that announced it was killed, and it is still there after "
            f"{self.expires_within_seconds:g} s. Let what is announced expire unless it is renewed, or do "
            "not claim `expires`."
        )

    def _skip_unless_announcing(self) -> None:
        if not self.announces:
            pytest.skip("It does not claim to announce (`announces`).")


def _require_visible(announcement: Announcement) -> None:
    require(
        announcement.failure is None,
        f"`announce` raised {describe(announcement.failure)} An instance on this machine that wants a "
        "password was to be announced.",
    )
    require(
        announcement.visible and not announcement.ended.is_set(),
        "`announce` has not called `task_status.started()`. Call it once others can see it, and then stay "
        "until cancelled.",
    )


async def _known(watching: Watching) -> set[str]:
    """Wait until the endpoint that is not announced is there, and return its id."""
    return {(await only(watching)).id}


async def _appeared(watching: Watching, before: set[str]) -> Endpoint:
    await watching.until(
        lambda: len(set(watching.now) - before) == 1,
        "An instance was announced, so it has to be found by another transport of this kind.",
    )
    [known] = set(watching.now) - before
    return watching.now[known]
