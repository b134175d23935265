"""The suite for transports: what is right passes, and for each test there is something wrong that it finds.

The suites run in a few processes of their own, in which the transports are installed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.mutants import MUTANTS
from opencode_mcp.testing import TransportSuite
from support.distributions import Site

pytestmark = pytest.mark.slow  # a minute

HERE = Path(__file__).parent
SECONDS = 500
AT_ONCE = 6
"""So many processes run mutants: mostly they wait."""
STANDARD = frozenset(name for name in dir(TransportSuite) if name.startswith("test_"))
GUARD = "test_standard_tests_are_overridden_only_with_a_reason"
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
    refused: Sequence[str]

    def ended(self, suite: str, *outcomes: str) -> set[str]:
        """The tests of a suite that ended so."""
        return {test for test, one in self.found[suite].items() if one.outcome in outcomes}


Runner = Callable[..., Run]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Run the suites of a file, with the transports installed."""
    site = Site(tmp_path_factory.mktemp("kit") / "site")
    plugins = {name: f"kit.mutants:plugins.{name}" for name in MUTANTS}
    own = {name: f"kit.board:{name}" for name in ("board", "plain")}
    site.install("kit", transports={**plugins, "ImportsHeavily": "kit.heavy:plugin", **own})
    paths = [str(site.path), str(HERE.parent), *filter(None, sys.path)]

    def run(file: str, *classes: str) -> Run:
        process = subprocess.run(
            [sys.executable, HERE / "running.py", HERE / file, *classes],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=site.path,
            stdout=subprocess.PIPE,
            timeout=SECONDS,
            check=True,
        )
        said = json.loads(process.stdout.splitlines()[-1])
        found = {
            suite: {test: Outcome(*one) for test, one in tests.items()}
            for suite, tests in said["found"].items()
        }
        return Run(found, said["refused"])

    return run


@pytest.fixture(scope="module")
def mutants(run: Runner) -> Run:
    """What became of all broken transports."""
    suites = [f"Test{name}" for name in MUTANTS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        parts = [suites[start::AT_ONCE] for start in range(AT_ONCE)]
        runs = list(pool.map(lambda part: run("mutant_suites.py", *part), parts))
    return Run(
        {suite: tests for one in runs for suite, tests in one.found.items()},
        [what for one in runs for what in one.refused],
    )


@pytest.fixture(scope="module")
def deviations(run: Runner) -> Run:
    """What became of the suites that deviate, and of those that are right."""
    return run(
        "deviations.py",
        *("TestBoard", "TestPlain", "TestExcused"),
        *("TestOverridden", "TestWithoutReason", "TestSkipped", "TestDeleted"),
    )


def test_a_transport_that_does_everything_right_passes(deviations: Run) -> None:
    found = deviations.found["TestBoard"]
    assert {test: one for test, one in found.items() if one.outcome != "passed"} == {}
    assert set(found) == STANDARD


def test_what_a_transport_does_not_claim_is_skipped_with_the_reason(deviations: Run) -> None:
    found = deviations.found["TestPlain"]
    assert deviations.ended("TestPlain", "skipped") == CLAIMED
    assert all("It does not claim" in found[test].said for test in CLAIMED)
    assert deviations.ended("TestPlain", "passed") == STANDARD - CLAIMED


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_transport_fails_just_the_tests_that_are_about_it(mutants: Run, name: str) -> None:
    suite = f"Test{name}"
    failed = mutants.ended(suite, "failed", "error")
    assert failed == MUTANTS[name].fails, {test: mutants.found[suite][test].said for test in failed}
    for test in failed:
        outcome, said = mutants.found[suite][test]
        assert outcome == "failed"
        assert "Traceback" not in said
        assert "core/src" not in said, "The author is shown our code, not a sentence."


def test_every_standard_test_finds_something() -> None:
    found = {test for one in MUTANTS.values() for test in one.fails}
    assert found == STANDARD - {GUARD}


def test_a_deviation_with_its_reason_is_accepted(deviations: Run) -> None:
    assert deviations.ended("TestExcused", "failed", "error") == set()
    assert "test_nothing_to_find_is_an_empty_set" in deviations.ended("TestExcused", "skipped")  # xfailed


@pytest.mark.parametrize(
    ("suite", "why"),
    [
        ("TestOverridden", "was overridden. Mark it with pytest.mark.xfail(reason=...)"),
        ("TestWithoutReason", "was overridden. Mark it with pytest.mark.xfail(reason=...)"),
        ("TestSkipped", "was overridden. Mark it with pytest.mark.xfail(reason=...)"),
        ("TestDeleted", "was deleted."),
    ],
)
def test_a_deviation_in_silence_fails(deviations: Run, suite: str, why: str) -> None:
    assert deviations.ended(suite, "failed", "error") == {GUARD}
    assert (
        f"The standard test test_nothing_to_find_is_an_empty_set {why}" in deviations.found[suite][GUARD].said
    )


def test_excusing_all_tests_at_once_is_refused(run: Runner) -> None:
    excused = run("excused.py", "TestExcusedAltogether")
    assert excused.found == {"TestExcusedAltogether": {}}
    assert "TestExcusedAltogether is marked with xfail, and with it every standard test" in str(
        excused.refused
    )


def test_the_guard_itself_cannot_be_overridden() -> None:
    with pytest.raises(TypeError, match=f"overrides {GUARD}"):
        type("TestMine", (TransportSuite,), {GUARD: None})


def test_a_server_for_a_demonstration_needs_no_pytest() -> None:
    program = "import sys; from opencode_mcp.testing import FakeOpenCode; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
