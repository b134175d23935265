"""The suite for transports: what is right passes, and for each test there is something wrong that it finds.

The suites run in a few processes of their own, in which the transports are installed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.mutants import MUTANTS
from kit.running import DEVIATES, GUARD
from opencode_mcp.testing import TransportSuite
from support.distributions import Site

pytestmark = pytest.mark.slow  # most of a minute

HERE = Path(__file__).parent
SECONDS = 500
AT_ONCE = 8
"""So many processes run mutants: mostly they wait."""
STANDARD = frozenset(name for name in dir(TransportSuite) if name.startswith("test_"))
DEVIATE_IN_SILENCE = (
    "TestOverridden",
    "TestWithoutReason",
    "TestExcusedMaybe",
    "TestExcusedMaybeByName",
    "TestSkipped",
)
EXCUSED_ALTOGETHER = {
    "TestExcusedAltogether": "TestExcusedAltogether is marked with xfail",
    "TestSkippedAltogether": "TestSkippedAltogether is marked with skip",
    "TestSkippedMaybe": "TestSkippedMaybe is marked with skipif",
    "TestBelowSkipped": "TestBelowSkipped is marked with skip",
    "TestInSkippedModule": "skipped_module.py is marked with skip",
}
OTHERS = ("TestBoard", "TestPlain", "TestExcused", "TestDeleted", *DEVIATE_IN_SILENCE, *EXCUSED_ALTOGETHER)
"""Suites that are no mutants'."""
CLAIMED = frozenset(
    {
        "test_changes_are_noticed_without_looking_again",
        "test_what_is_announced_is_found",
        "test_what_is_announced_goes_when_cancelled",
        "test_what_is_announced_again_has_the_same_id",
        "test_an_announcement_leaves_nothing_behind",
        "test_what_is_announced_expires_when_its_process_is_killed",
    }
)


class Outcome(NamedTuple):
    """How a standard test ended, and what it said."""

    outcome: str
    said: str


class Run(NamedTuple):
    """What became of some suites: by class and test; and what could not even be collected."""

    found: Mapping[str, Mapping[str, Outcome]]
    refused: str

    def ended(self, suite: str, *outcomes: str) -> set[str]:
        """The tests of a suite that ended so."""
        return {test for test, one in self.found[suite].items() if one.outcome in outcomes}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What became of all suites; they run in a few processes, in which the transports are installed."""
    site = Site(tmp_path_factory.mktemp("kit") / "site")
    plugins = {name: f"kit.mutants:plugins.{name}" for name in MUTANTS}
    own = {name: f"kit.board:{name}" for name in ("board", "plain")}
    site.install("kit", transports={**plugins, "ImportsHeavily": "kit.heavy:plugin", **own})
    paths = [str(site.path), str(HERE.parent), *filter(None, sys.path)]

    def run(arguments: Sequence[str]) -> Mapping[str, Any]:
        process = subprocess.run(
            [sys.executable, HERE / "running.py", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=site.path,
            stdout=subprocess.PIPE,
            timeout=SECONDS,
            check=True,
        )
        return json.loads(process.stdout.splitlines()[-1])

    mutants = [f"Test{name}" for name in MUTANTS]
    orders = [["mutant_suites.py", *mutants[start::AT_ONCE]] for start in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE + 1) as pool:
        said = list(pool.map(run, [["deviations.py", "excused.py", "skipped_module.py", *OTHERS], *orders]))
    found = {
        suite: {test: Outcome(*one) for test, one in tests.items()}
        for one in said
        for suite, tests in one["found"].items()
    }
    return Run(found, "\n".join(what for one in said for what in one["refused"]))


def test_a_transport_that_does_everything_right_passes(ran: Run) -> None:
    found = ran.found["TestBoard"]
    assert {test: one for test, one in found.items() if one.outcome != "passed"} == {}
    assert set(found) == STANDARD


def test_what_a_transport_does_not_claim_is_skipped_with_the_reason(ran: Run) -> None:
    found = ran.found["TestPlain"]
    assert ran.ended("TestPlain", "skipped") == CLAIMED
    assert all("It does not claim" in found[test].said for test in CLAIMED)
    assert ran.ended("TestPlain", "passed") == STANDARD - CLAIMED


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_transport_fails_just_the_tests_that_are_about_it(ran: Run, name: str) -> None:
    suite = f"Test{name}"
    failed = ran.ended(suite, "failed", "error")
    assert failed == MUTANTS[name].fails, {test: ran.found[suite][test].said for test in failed}
    for test in failed:
        outcome, said = ran.found[suite][test]
        assert outcome == "failed"
        assert "Traceback" not in said
        assert "core/src" not in said, "The author is shown our code, not a sentence."


def test_every_standard_test_finds_something() -> None:
    found = {test for one in MUTANTS.values() for test in one.fails}
    assert found == STANDARD - {GUARD}


def test_a_deviation_with_its_reason_is_accepted(ran: Run) -> None:
    assert ran.ended("TestExcused", "failed", "error") == set()
    assert DEVIATES in ran.ended("TestExcused", "skipped")  # xfailed


@pytest.mark.parametrize("suite", DEVIATE_IN_SILENCE)
def test_a_deviation_without_a_reason_that_always_holds_fails(ran: Run, suite: str) -> None:
    assert ran.ended(suite, "failed", "error") == {GUARD}
    said = f"The standard test {DEVIATES} was overridden. Mark it with pytest.mark.xfail(reason=...)"
    assert said in ran.found[suite][GUARD].said


def test_a_standard_test_that_is_deleted_fails(ran: Run) -> None:
    assert ran.ended("TestDeleted", "failed", "error") == {GUARD}
    assert f"The standard test {DEVIATES} was deleted." in ran.found["TestDeleted"][GUARD].said


@pytest.mark.parametrize("suite", EXCUSED_ALTOGETHER)
def test_excusing_all_tests_at_once_is_refused(ran: Run, suite: str) -> None:
    assert ran.found[suite] == {}
    assert f"{EXCUSED_ALTOGETHER[suite]}, and with it every standard test" in ran.refused


def test_the_guard_itself_cannot_be_overridden() -> None:
    with pytest.raises(TypeError, match=f"overrides {GUARD}"):
        type("TestMine", (TransportSuite,), {GUARD: None})


def test_a_server_for_a_demonstration_needs_no_pytest() -> None:
    program = "import sys; from opencode_mcp.testing import FakeOpenCode; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
