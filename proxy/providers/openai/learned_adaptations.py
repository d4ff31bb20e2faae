"""Adaptations to what one model's provider rejects, remembered in the process until they expire."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from proxy.providers.openai.adaptation import Adaptation
from proxy.providers.openai.rejection import Rejection

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


class CallAdaptations(Struct):
    """Adaptations in one call: those learned before, and those found from its rejections.

    An error can quote the caller's text, and name a field there. Therefore what was found applies to other calls only
    if the provider accepts the request with it, and does not report the same error again.
    """

    current: frozenset[Adaptation]
    """Those learned before, at first."""
    found: list[tuple[Rejection, list[Adaptation]]] = []
    """What other calls need too, with its reasons, if the provider accepts the request."""

    def add(self, rejection: Rejection, changes: Mapping[Adaptation, bool]) -> bool:
        """Add what may get the request accepted; return whether any of it is new.

        The value of ``changes`` is whether it can apply to other calls.
        """
        if self.found and rejection.is_repetition_of(self.found[-1][0]):
            # The change before did not help.
            self.found.pop()
        new = changes.keys() - self.current
        self.current |= new
        if new:
            self.found.append((rejection, [one for one in changes if one in new and changes[one]]))
        return bool(new)
