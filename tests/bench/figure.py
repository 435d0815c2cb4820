"""One figure: what was measured beside its yardstick, in the same rounds, and what it has to be."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Absolute figures are one machine's; the ratio to a yardstick measured in turns travels."""

    name: str
    pairs: Sequence[tuple[float, float]]
    """For each round: the measured value and its yardstick, in ``unit``."""
    yardstick: str
    unit: str
    at_most: float | None = None
    """The ratio's upper limit; else it has a lower one."""
    at_least: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """The median of all rounds' ratios."""
        return statistics.median(value / yardstick for value, yardstick in self.pairs)

    @property
    def met(self) -> bool:
        """Whether the ratio keeps its limits."""
        too_much = self.at_most is not None and self.ratio > self.at_most
        too_little = self.at_least is not None and self.ratio < self.at_least
        return not too_much and not too_little

    @property
    def target(self) -> str:
        """The limit, for people."""
        if self.at_most is not None:
            return f"at most {self.at_most:.0%}"
        return f"at least {self.at_least or 0:.0%}"

    def measured(self) -> str:
        """The median, for people."""
        return f"{statistics.median(value for value, _ in self.pairs):,.4g} {self.unit}"

    def compared(self) -> str:
        """The yardstick's median, for people."""
        median = statistics.median(yardstick for _, yardstick in self.pairs)
        return f"{median:,.4g} {self.unit} {self.yardstick}"
