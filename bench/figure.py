"""What a benchmark returns, and how it is shown: measured, promised, and the floor of the same run."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One promise, and what became of it.

    Attributes:
        name: What was measured.
        measured: The median, unless the name says otherwise.
        unit: Of `measured`, `floor` and an absolute `target`.
        target: At most this much; as a multiple of the floor if `relative`.
        relative: Whether the target is a multiple of the floor.
        floor: The same measure of the least that could do the work, taken in turns with `measured`.
        note: How many there were, the spread, and the like.
    """

    name: str
    measured: float
    unit: Literal["ms", "s", "MB", "MiB", "%", ""]
    target: float
    relative: bool = False
    floor: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the floor; None where there is none."""
        return self.measured / self.floor if self.floor else None

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        value = self.ratio if self.relative else self.measured
        return value is not None and value <= self.target

    def row(self) -> tuple[str, ...]:
        """The cells of a line of the table."""
        return (
            self.name,
            self._shown(self.measured),
            f"<= {self.target:g} x" if self.relative else f"<= {self.target:g} {self.unit}".rstrip(),
            "-" if self.floor is None else self._shown(self.floor),
            "-" if self.ratio is None else f"{self.ratio:.2f}",
            "OK" if self.met else "MISS",
            self.note,
        )

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return {**dataclasses.asdict(self), "ratio": self.ratio, "met": self.met}

    def _shown(self, value: float) -> str:
        digits = 0 if value >= 1000 or value == int(value) else 1 if value >= 10 else 2
        return f"{value:.{digits}f} {self.unit}".rstrip()


_HEADINGS = ("figure", "measured", "target", "floor", "ratio", "", "")


def table(figures: Sequence[Figure]) -> str:
    """Lay figures out in columns."""
    rows = [_HEADINGS, *(figure.row() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Say how many values there were, and where they lie."""
    low, *_, high = statistics.quantiles(values, n=10)
    return f"n={len(values)}, middle 80 %: {low:.{digits}f} to {high:.{digits}f}"
