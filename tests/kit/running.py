"""Runs suites in this process, and says on stdout what became of each test, as JSON.

`running.py FILE... CLASS...`: a pytest of its own, since many of these tests are to fail.
"""

import functools
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

WHOLE = ("TestBoard", "TestPlain")
"""Of the suites that are no mutants', those of which every test runs."""
DEVIATES = "test_nothing_to_find_is_an_empty_set"
GUARD = "test_standard_tests_are_overridden_only_with_a_reason"


class Outcomes:
    """Takes down how each test ended, and leaves out those that need not run.

    Attributes:
        found: By class and test, how it ended: `passed`, `failed`, `skipped`, or `error` if not in the test
            itself; and what was said.
        refused: What was said of what could not be collected.
    """

    def __init__(self, classes: list[str]) -> None:
        self.found: dict[str, dict[str, tuple[str, str]]] = {one: {} for one in classes}
        self.refused: list[str] = []
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._is_wanted(item)]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.refused.append(str(report.longrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        _, suite, test = report.nodeid.split("::")
        if report.when == "call" or report.outcome != "passed":
            outcome = "error" if report.failed and report.when != "call" else report.outcome
            self.seconds[suite] = self.seconds.get(suite, 0.0) + report.duration
            self.found[suite][test] = outcome, str(report.longrepr or "")[-2000:]

    def _is_wanted(self, item: pytest.Item) -> bool:
        from kit.mutants import MUTANTS, SLOW  # not before pytest has started: it rewrites what they import

        suite = item.nodeid.split("::")[1]
        mutant = MUTANTS.get(suite.removeprefix("Test"))
        if suite not in self.found:
            return False
        if item.path.stem == "deviations" and suite not in WHOLE:
            return item.name in (DEVIATES, GUARD)
        return mutant is None or item.name in mutant.fails or not (mutant.alone or item.name in SLOW)


if __name__ == "__main__":
    # Nothing is installed meanwhile, and looking through all distributions is a third of the work.
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
    files = [one for one in sys.argv[1:] if one.endswith(".py")]
    outcomes = Outcomes([one for one in sys.argv[1:] if one not in files])
    root = Path(__file__).parent
    options = ["-p", "no:cacheprovider", "-p", "no:terminal", f"--rootdir={root}", f"--confcutdir={root}"]
    options += ["--continue-on-collection-errors", "-c", str(root / "suites.ini")]
    pytest.main([*options, *(str(root / one) for one in files)], plugins=[outcomes])
    print()
    print(json.dumps({"found": outcomes.found, "refused": outcomes.refused, "seconds": outcomes.seconds}))
