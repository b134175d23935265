"""Suites that deviate from the standard tests, in the open and in silence: run by `test_kit`."""

import pytest

from kit.board_parts import BoardSuite
from opencode_mcp.testing import Trial


class TestExcused(BoardSuite):
    @pytest.mark.xfail(reason="On this board nothing is ever empty.")
    async def test_nothing_to_find_is_an_empty_set(self, trial: Trial) -> None:
        await super().test_nothing_to_find_is_an_empty_set(trial)
        pytest.fail("as expected")


class TestOverridden(BoardSuite):
    async def test_nothing_to_find_is_an_empty_set(self, trial: Trial) -> None: ...


class TestWithoutReason(BoardSuite):
    @pytest.mark.xfail
    async def test_nothing_to_find_is_an_empty_set(self, trial: Trial) -> None: ...


class TestExcusedMaybe(BoardSuite):
    @pytest.mark.xfail(False, reason="On this board nothing is ever empty.")
    async def test_nothing_to_find_is_an_empty_set(self, trial: Trial) -> None: ...


class TestExcusedMaybeByName(BoardSuite):
    @pytest.mark.xfail(condition=False, reason="On this board nothing is ever empty.")
    async def test_nothing_to_find_is_an_empty_set(self, trial: Trial) -> None: ...


class TestSkipped(BoardSuite):
    @pytest.mark.skip(reason="It is not for us.")
    async def test_nothing_to_find_is_an_empty_set(self, trial: Trial) -> None: ...


class TestDeleted(BoardSuite):
    test_nothing_to_find_is_an_empty_set = None  # pyright: ignore[reportAssignmentType] - that is the point


class TestPlain(BoardSuite):
    """The least that a transport can be, with a suite that claims nothing."""

    named = "plain"
    able = False


class TestBoard(BoardSuite):
    """A transport that can everything."""
