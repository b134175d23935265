"""What counts as a sign that an instance is gone, and what does not."""

import pytest

from opencode_mcp import Status, TransportError
from opencode_mcp.errors import (
    CredentialsError,
    LocalError,
    NotListeningError,
    OpenCodeMCPError,
    ProtocolError,
    RequestError,
    UnreachableError,
)
from opencode_mcp.fleet.health import Health
from opencode_mcp.fleet.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def fail(health: Health, clock: list[float], error: OpenCodeMCPError, *, seconds: float, every: float = 10.0):
    until = clock[0] + seconds
    while clock[0] < until:
        health.failed(error, lasted=0)
        clock[0] += every


@pytest.mark.parametrize(
    "error", [UnreachableError("x"), NotListeningError("x"), ProtocolError("x"), TransportError("x")]
)
def test_what_does_not_answer_as_an_opencode_for_the_whole_time_is_gone(error, clock):
    health = Health(Pace())
    fail(health, clock, error, seconds=590)
    assert not health.is_gone(600)
    fail(health, clock, error, seconds=30)
    assert health.is_gone(600)
    assert not health.is_gone(600)  # said once


@pytest.mark.parametrize(
    "error", [CredentialsError("x"), RequestError("x", 503), LocalError("no descriptors")]
)
def test_what_answers_or_is_our_own_fault_is_never_gone(error, clock):
    health = Health(Pace())
    fail(health, clock, error, seconds=5000)
    assert not health.is_gone(600)


def test_one_answer_in_between_starts_the_time_anew(clock):
    health = Health(Pace())
    fail(health, clock, UnreachableError("x"), seconds=590)
    health.answers()
    fail(health, clock, UnreachableError("x"), seconds=590)
    assert not health.is_gone(600)


def test_time_in_which_nobody_looked_does_not_count(clock):
    health = Health(Pace())
    health.failed(UnreachableError("x"), lasted=0)
    clock[0] += 86_400  # the gateway slept
    health.failed(UnreachableError("x"), lasted=0)
    assert not health.is_gone(600)


def test_after_a_failure_an_answer_alone_does_not_make_it_online(clock):
    health = Health(Pace())
    health.answers()
    assert health.status is Status.ONLINE
    health.failed(UnreachableError("x"), lasted=0)
    health.answers()
    assert health.status is Status.UNREACHABLE
    health.works()
    assert health.status is Status.ONLINE
    assert health.detail == ""


def test_the_waits_grow_and_start_afresh_after_a_stable_connection(clock):
    health = Health(Pace(retries=(1, 2, 3), stable=5))
    waits = [health.failed(UnreachableError("x"), lasted=lasted) for lasted in (0, 0, 0, 0, 6, 0)]
    assert waits == [1, 2, 3, 3, 1, 2]
