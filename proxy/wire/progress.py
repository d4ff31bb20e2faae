"""How far a turn is, for teams whose work has known steps: the one definition of it.

Each agent that the team names as a step is one, and so is the end of the turn. A step is done when its agent gave the
floor away; one that gets the floor a second time takes no further step. So the figure never falls, and it is 100 when
the turn is completed and never before. Where no steps are known there is no figure, for it would be a guess.
"""

from __future__ import annotations

from collections.abc import Sequence


class Progress:
    """Of one turn; ``steps`` are names of agents."""

    def __init__(self, steps: Sequence[str] = ()) -> None:
        self._steps = frozenset(steps)
        self._done: set[str] = set()
        self._is_complete = False

    @property
    def percent(self) -> int | None:
        """The figure, 0 to 100; None when no steps are known."""
        if not self._steps:
            return None
        return 100 if self._is_complete else 100 * len(self._done) // (len(self._steps) + 1)

    def handed_over(self, agent: str) -> None:
        """The agent gave the floor away."""
        self._done |= self._steps & {agent}

    def completed(self) -> None:
        """The turn is completed."""
        self._is_complete = True
