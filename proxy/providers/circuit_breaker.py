"""Circuit breaker: after many failures in a row, a provider is not called for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.errors import UpstreamCircuitOpen, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable

_OUTAGE_LABELS = frozenset({"status_5xx", "broken", "incomplete"})


class Circuit:
    """What is known of one provider's health. Not one key's: a key that is refused is answered after all."""

    def __init__(
        self, *, failures: int = 10, rest_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures_allowed = failures
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._is_tried = False

    def admit(self) -> None:
        """Let one attempt through; every admitted attempt is reported by ``answered``, ``failed`` or
        ``abandoned``.

        Raises:
            UpstreamCircuitOpen: The provider rests, or one attempt is finding out whether it is back.
        """
        if self._opened_at is None:
            return
        remaining = self._opened_at + self._rest_seconds - self._clock()
        if remaining > 0 or self._is_tried:
            raise UpstreamCircuitOpen("circuit_open", retry_after=max(1.0, remaining))
        self._is_tried = True

    def answered(self) -> None:
        """Record that the provider is available: it answered, if only with an error."""
        self._failures = 0
        self._opened_at = None
        self._is_tried = False

    def failed(self, failure: UpstreamFailed) -> None:
        """An attempt ended with ``failure``; a refusal is an answer."""
        is_outage = isinstance(failure, UpstreamUnreachable | UpstreamTimeout)
        if not is_outage and failure.label not in _OUTAGE_LABELS:
            self.answered()
            return
        self._is_tried = False
        self._failures += 1
        if self._failures >= self._failures_allowed:
            self._opened_at = self._clock()

    def abandoned(self) -> None:
        """An attempt was given up from our side; it says nothing."""
        self._is_tried = False
