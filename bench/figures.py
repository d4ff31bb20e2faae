"""The rows of the result: a value of each server, and a target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table; a value is None if it does not apply to the server."""

    name: str
    unit: str
    baseline: float | None
    reference: float | None
    proxy: float | None
    goal: float
    goal_is_ratio: bool = False
    """The target is a multiple of the reference's value; otherwise of the unit."""
    is_least: bool = False
    """The target is the least value instead of the greatest."""
    ratios: tuple[float, ...] = ()
    """The ratios to the reference in the rounds of this run, in ascending order; none if it has no rounds."""

    @property
    def ratio(self) -> float | None:
        """The ratio to the reference: the median of the rounds, or that of the values."""
        if self.ratios:
            return statistics.median(self.ratios)
        return self.proxy / self.reference if self.proxy is not None and self.reference else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The ratios between which half of the rounds are."""
        if len(self.ratios) < 2:
            return None
        quarter = len(self.ratios) // 4
        return self.ratios[quarter], self.ratios[-1 - quarter]

    @classmethod
    def of_rounds(cls, name: str, unit: str, rounds: Sequence[Sequence[float]], *, goal: float) -> Figure:
        """Create a row from rounds of values in the order of ``Field.servers``; each value is the median.

        The speed of a shared machine changes from second to second. The ratios of many short rounds depend on it less
        than the ratio of the medians.
        """
        baseline, reference, proxy = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = tuple(sorted(own / other for _, other, own in rounds if other > 0))
        return cls(name, unit, baseline, reference, proxy, goal, goal_is_ratio=True, ratios=ratios)

    @classmethod
    def of_proxy(cls, name: str, unit: str, values: Iterable[float], *, goal: float) -> Figure:
        """Create a row for this server only; the value is the median."""
        return cls(name, unit, None, None, statistics.median(values), goal)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the second table: the same measurement with a part of the server exchanged, or another one."""

    name: str
    unit: str
    value: float
    compared_with: float
    """The value of the server as it is by default."""
    goal: float | None = None
    """The greatest ratio of both."""
    is_least: bool = False
    """The target is the least ratio instead."""
