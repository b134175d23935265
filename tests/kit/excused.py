"""Suites whose tests are all excused at once, and a guard that is: run by `test_kit`."""

import pytest

from kit.board_parts import BoardSuite


@pytest.mark.xfail(reason="It is not ready.")
class TestExcusedAltogether(BoardSuite): ...


@pytest.mark.skip(reason="It is not ready.")
class TestSkippedAltogether(BoardSuite): ...


@pytest.mark.skipif(False, reason="It is not ready.")
class TestSkippedMaybe(BoardSuite): ...


class SkippedSuite(BoardSuite):
    pytestmark = pytest.mark.skip(reason="It is not ready.")


class TestBelowSkipped(SkippedSuite): ...
