"""How much a caller may ask for in a minute: requests, before they are served, and tokens, once they are used.

The library ``limits`` does the counting: in this process, or in a Redis server, where it is exact over all workers.
Requests are counted one by one in a moving window; tokens, of which there are many, by counters of two windows, of
which the older one weighs less and less.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool

from proxy.errors import RateLimitExceeded, StoreUnavailable

MINUTE = 60.0
ANSWERS_WITHIN = 2.0
"""Seconds that Redis has for an answer."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a caller may have in a minute; None is as much as it likes."""

    requests: int | None = None
    tokens: int | None = None

    @property
    def are_any(self) -> bool:
        """Whether there is anything to be counted."""
        return self.requests is not None or self.tokens is not None


@dataclass(frozen=True, slots=True)
class Stand:
    """How a caller stands to one bound; ``reset`` is in seconds."""

    kind: str
    limit: int
    remaining: int
    reset: float


class Limiter:
    """Counts; one for the process."""

    def __init__(self, redis_url: str | None = None, *, prefix: str = "handoff-proxy") -> None:
        self._pool: ConnectionPool | None = None
        storage: MemoryStorage | RedisStorage = MemoryStorage()
        if redis_url is not None:
            self._pool = ConnectionPool.from_url(
                redis_url, socket_connect_timeout=ANSWERS_WITHIN, socket_timeout=ANSWERS_WITHIN
            )
            options: dict[str, Any] = {"connection_pool": self._pool}
            storage = RedisStorage(
                f"async+{redis_url}",
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix=prefix,
                **options,
            )
        self._requests = MovingWindowRateLimiter(storage)
        self._tokens = SlidingWindowCounterRateLimiter(storage)

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.aclose()

    async def admit(self, caller: str, bounds: Bounds) -> list[Stand]:
        """Count a request, and return how the caller stands behind it.

        Raises:
            RateLimitExceeded: It is one too many, or the tokens are used up; it was not counted.
            StoreUnavailable: Nobody knows. Then nothing is served, or a bound would be none.
        """
        try:
            return await self._admit(caller, bounds)
        except StorageError:
            raise StoreUnavailable from None

    async def spend(self, caller: str, bounds: Bounds, tokens: int) -> None:
        """Count tokens that were used; more than are left use up what is left.

        Raises:
            StoreUnavailable: They could not be counted.
        """
        if bounds.tokens is None or tokens <= 0:
            return
        item = RateLimitItemPerMinute(bounds.tokens)
        try:
            if not await self._tokens.hit(item, "tokens", caller, cost=min(tokens, bounds.tokens)):
                left = (await self._tokens.get_window_stats(item, "tokens", caller)).remaining
                if left > 0:
                    await self._tokens.hit(item, "tokens", caller, cost=left)
        except StorageError:
            raise StoreUnavailable from None

    async def _admit(self, caller: str, bounds: Bounds) -> list[Stand]:
        stands = []
        if bounds.tokens is not None:
            item = RateLimitItemPerMinute(bounds.tokens)
            reset, remaining = await self._tokens.get_window_stats(item, "tokens", caller)
            stand = Stand("tokens", bounds.tokens, remaining, _until(reset))
            if remaining <= 0:
                raise RateLimitExceeded("tokens", bounds.tokens, [stand], max(stand.reset, 1.0))
            stands.append(stand)
        if bounds.requests is not None:
            item = RateLimitItemPerMinute(bounds.requests)
            is_admitted = await self._requests.hit(item, "requests", caller)
            reset, remaining = await self._requests.get_window_stats(item, "requests", caller)
            stand = Stand("requests", bounds.requests, remaining, _until(reset))
            stands.append(stand)
            if not is_admitted:
                raise RateLimitExceeded("requests", bounds.requests, stands, stand.reset)
        return stands


def told(stands: list[Stand]) -> list[tuple[bytes, bytes]]:
    """Return the headers in which the official API tells this."""
    headers = []
    for stand in stands:
        for name, value in (
            ("limit", str(stand.limit)),
            ("remaining", str(max(stand.remaining, 0))),
            ("reset", go_duration(stand.reset)),
        ):
            headers.append((f"x-ratelimit-{name}-{stand.kind}".encode(), value.encode()))
    return headers


def go_duration(seconds: float) -> str:
    """Return a time as Go writes it: ``12ms``, ``1s``, ``1.5s``, ``6m0s``."""
    milliseconds = math.ceil(max(seconds, 0.0) * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _until(moment: float) -> float:
    return min(max(moment - time.time(), 0.0), MINUTE)
