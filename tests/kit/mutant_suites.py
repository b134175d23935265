"""A suite for each broken transport: run by `test_kit`, in a process that finds their entry points."""

from kit.board_parts import BoardSuite
from kit.mutants import MUTANTS


class MutantSuite(BoardSuite):
    """The suite for a broken transport."""

    @property
    def patience_seconds(self) -> float:
        """A mutant that is found by waiting costs so much; what is right takes a fraction of it."""
        return 4.0


for name, mutant in MUTANTS.items():
    globals()[f"Test{name}"] = type(f"Test{name}", (MutantSuite,), {"named": name, **mutant.claims})
