"""What agents used of models during a turn, call by call."""

from __future__ import annotations

from proxy.events import ModelCalled
from proxy.messages import Usage


class Use:
    """Calls of one model by one agent, summed."""

    __slots__ = ("calls", "cost", "seconds", "usage")

    def __init__(self) -> None:
        self.calls = 0
        self.usage = Usage()
        self.seconds = 0.0
        self.cost: float | None = 0.0
        """None as soon as one call has no price."""

    def add(self, called: ModelCalled) -> None:
        """Count one more."""
        self.calls += 1
        self.usage = self.usage + (called.usage or Usage())
        self.seconds += called.seconds
        self.cost = None if self.cost is None or called.cost is None else self.cost + called.cost


def rounded_cost(cost: float) -> float:
    """Return a cost as it leaves."""
    return round(cost, 9)
