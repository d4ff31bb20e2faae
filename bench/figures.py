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
    spread: tuple[float, float] | None = None
    """The least and the greatest ratio to the reference in the rounds of this run."""

    @classmethod
    def of_rounds(cls, name: str, unit: str, rounds: Sequence[Sequence[float]], *, goal: float) -> Figure:
        """Create a row from rounds of values in the order of ``Field.servers``; each value is the median."""
        baseline, reference, proxy = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = sorted(own / other for _, other, own in rounds if other > 0)
        spread = (ratios[0], ratios[-1]) if len(ratios) > 1 else None
        return cls(name, unit, baseline, reference, proxy, goal, goal_is_ratio=True, spread=spread)

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
