"""How long to wait before another attempt to announce."""

import pytest

from opencode_mcp.connect.keeping import Backoff


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)


def test_waits_double_up_to_a_minute(no_jitter: None) -> None:
    backoff = Backoff()
    assert [backoff.wait(0) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_each_wait_is_up_to_a_quarter_longer() -> None:
    waits = [Backoff().wait(0) for _ in range(500)]
    assert 1 <= min(waits) < 1.05
    assert 1.2 < max(waits) <= 1.25


def test_half_a_minute_of_health_makes_waits_short_again(no_jitter: None) -> None:
    backoff = Backoff()
    assert [backoff.wait(health) for health in (0, 29.9, 29.9, 30, 0, 31)] == [1, 2, 4, 1, 2, 1]
