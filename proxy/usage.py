"""Record the usage of turns in the rate limits of callers and in the metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from proxy.errors import StoreUnavailable
from proxy.events import Entry, model_calls
from proxy.limits import Limiter, RateLimits
from proxy.messages import Usage

if TYPE_CHECKING:
    from proxy.metrics import Metrics

logger = logging.getLogger(__name__)


class UsageRecorder:
    """Records the usage of turns of this process and of passthrough responses."""

    def __init__(
        self, limiter: Limiter, limits_of: Callable[[str], RateLimits], metrics: Metrics | None
    ) -> None:
        self._limiter = limiter
        self._limits_of = limits_of
        self._metrics = metrics
        self._spending: set[asyncio.Task[None]] = set()

    def turn_ended(self, caller: str, team: str, entries: Sequence[Entry]) -> None:
        """Record a turn by its log."""
        if self._metrics is not None:
            self._metrics.turn_ended(team, entries)
        limits = self._limits_of(caller)
        if limits.tokens is not None:
            used = (call.usage for entry in entries for call in model_calls(entry.event) if call.usage)
            self._record_tokens(caller, limits, sum(usage.prompt + usage.completion for usage in used))

    def record_passthrough(self, caller: str, model: str, usage: Usage | None) -> None:
        """Record a response of a passthrough model."""
        if self._metrics is not None:
            self._metrics.model_called(model, usage)
        if usage is not None:
            self._record_tokens(caller, self._limits_of(caller), usage.prompt + usage.completion)

    async def close(self) -> None:
        """Wait until all tokens are recorded."""
        await asyncio.gather(*self._spending, return_exceptions=True)

    def _record_tokens(self, caller: str, limits: RateLimits, tokens: int) -> None:
        if limits.tokens is None or tokens <= 0:
            return
        task = asyncio.create_task(self._count(caller, limits, tokens), name="count tokens")
        self._spending.add(task)
        task.add_done_callback(self._spending.discard)

    async def _count(self, caller: str, limits: RateLimits, tokens: int) -> None:
        try:
            await self._limiter.record_tokens(caller, limits, tokens)
        except StoreUnavailable:
            logger.warning("failed to record tokens", extra={"tokens": tokens})
