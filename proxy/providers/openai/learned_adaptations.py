"""Adaptations to what one model's provider rejects, remembered in the process until they expire."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from proxy.providers.openai.adaptation import Adaptation

EXPIRY_SECONDS = 3600.0
"""A provider may accept tomorrow what it rejects today; then one call fails and is repeated."""
MAX_LEARNED = 64
"""Values of parameters come from callers, so their number is limited; the oldest are forgotten."""


class LearnedAdaptations:
    """What calls of one model have in common."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expiry: dict[Adaptation, float] = {}
        """Oldest first."""

    def current(self) -> frozenset[Adaptation]:
        """Return those that have not expired."""
        if not self._expiry:
            return frozenset()
        now = self._clock()
        for adaptation in [one for one, expiry in self._expiry.items() if expiry <= now]:
            del self._expiry[adaptation]
        return frozenset(self._expiry)

    def learn(self, adaptations: Iterable[Adaptation]) -> list[Adaptation]:
        """Remember these from now on; return those that were not known."""
        known = self.current()
        new = []
        for adaptation in adaptations:
            if adaptation not in known:
                new.append(adaptation)
            # Again at the end, so that the oldest stay first.
            self._expiry.pop(adaptation, None)
            if len(self._expiry) >= MAX_LEARNED:
                del self._expiry[next(iter(self._expiry))]
            self._expiry[adaptation] = self._clock() + EXPIRY_SECONDS
        return new
