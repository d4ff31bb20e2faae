"""Rate limits of a caller per minute: requests, counted before they are served, and tokens, counted after use.

The library ``limits`` counts in this process, or in a Redis server, where the limits are exact across all workers.
Requests have a moving window with one entry per request. Tokens, of which there are many, have the counters of two
fixed windows; the weight of the older one decreases (sliding window counter).
"""

from __future__ import annotations

import math
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from proxy.errors import ConfigurationError, RateLimitExceeded, StoreUnavailable

if TYPE_CHECKING:
    # Imported on demand: with Redis's client they take 7 MB of memory and 0.1 s of the start.
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
    from redis.asyncio import ConnectionPool

MINUTE = 60.0
REDIS_TIMEOUT = 2.0
"""Seconds."""


class RateLimits(Struct, frozen=True):
    """Limits of a caller per minute; None stands for unlimited."""

    requests: int | None = None
    tokens: int | None = None

    @property
    def are_set(self) -> bool:
        """Whether there is a limit."""
        return self.requests is not None or self.tokens is not None


class RateLimitStatus(Struct, frozen=True):
    """Usage of one limit; ``reset`` is in seconds."""

    kind: str
    limit: int
    remaining: int
    reset: float


class Limiter:
    """Counts requests and tokens; there is one for the process."""

    def __init__(self, redis_url: str | None = None, *, prefix: str = "handoff-proxy") -> None:
        """Without ``redis_url``, this process counts alone. Redis is connected when it is first needed.

        Raises:
            ConfigurationError: The URL is invalid. The message does not repeat it: it may have a password.
        """
        self._pool: ConnectionPool | None = None
        self._redis: RedisStorage | None = None
        if redis_url is not None:
            self._pool, self._redis = _redis(redis_url, prefix)

    @cached_property
    def _counters(self) -> tuple[MovingWindowRateLimiter, SlidingWindowCounterRateLimiter]:
        """The counters of requests and of tokens."""
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

        storage = self._redis or MemoryStorage()
        return MovingWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._pool is not None:
            await self._pool.aclose()

    async def admit(self, caller: str, limits: RateLimits) -> list[RateLimitStatus]:
        """Count a request and return the status of each limit after it.

        Raises:
            RateLimitExceeded: The request exceeds a limit, or the tokens are used up. It was not counted.
            StoreUnavailable: Redis did not answer. The request must not be served without a limit.
        """
        from limits.errors import StorageError

        try:
            return await self._admit(caller, limits)
        except StorageError:
            raise StoreUnavailable from None

    async def record_tokens(self, caller: str, limits: RateLimits, tokens: int) -> None:
        """Count used tokens. If more were used than remain, none remain.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        if limits.tokens is None or tokens <= 0:
            return
        from limits import RateLimitItemPerMinute
        from limits.errors import StorageError

        item = RateLimitItemPerMinute(limits.tokens)
        _, counter = self._counters
        try:
            if not await counter.hit(item, "tokens", caller, cost=min(tokens, limits.tokens)):
                left = (await counter.get_window_stats(item, "tokens", caller)).remaining
                if left > 0:
                    await counter.hit(item, "tokens", caller, cost=left)
        except StorageError:
            raise StoreUnavailable from None

    async def _admit(self, caller: str, limits: RateLimits) -> list[RateLimitStatus]:
        from limits import RateLimitItemPerMinute

        request_counter, token_counter = self._counters
        statuses = []
        if limits.tokens is not None:
            item = RateLimitItemPerMinute(limits.tokens)
            reset, remaining = await token_counter.get_window_stats(item, "tokens", caller)
            status = RateLimitStatus("tokens", limits.tokens, remaining, _until(reset))
            if remaining <= 0:
                raise RateLimitExceeded("tokens", limits.tokens, [status], max(status.reset, 1.0))
            statuses.append(status)
        if limits.requests is not None:
            item = RateLimitItemPerMinute(limits.requests)
            is_admitted = await request_counter.hit(item, "requests", caller)
            reset, remaining = await request_counter.get_window_stats(item, "requests", caller)
            status = RateLimitStatus("requests", limits.requests, remaining, _until(reset))
            statuses.append(status)
            if not is_admitted:
                raise RateLimitExceeded("requests", limits.requests, statuses, status.reset)
        return statuses


def rate_limit_headers(statuses: list[RateLimitStatus]) -> list[tuple[bytes, bytes]]:
    """Return the ``x-ratelimit-*`` response headers (OpenAI rate limits guide, "Rate limits in headers")."""
    headers = []
    for status in statuses:
        for name, value in (
            ("limit", str(status.limit)),
            ("remaining", str(max(status.remaining, 0))),
            ("reset", go_duration(status.reset)),
        ):
            headers.append((f"x-ratelimit-{name}-{status.kind}".encode(), value.encode()))
    return headers


def go_duration(seconds: float) -> str:
    """Return a duration in the format of Go, as in the official headers: ``12ms``, ``1s``, ``1.5s``, ``6m0s``."""
    milliseconds = math.ceil(max(seconds, 0.0) * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _until(moment: float) -> float:
    return min(max(moment - time.time(), 0.0), MINUTE)


def _redis(url: str, prefix: str) -> tuple[ConnectionPool, RedisStorage]:
    from limits.aio.storage import RedisStorage
    from limits.errors import ConfigurationError as InvalidStorageConfiguration
    from redis.asyncio import ConnectionPool

    try:
        pool = ConnectionPool.from_url(
            url, socket_connect_timeout=REDIS_TIMEOUT, socket_timeout=REDIS_TIMEOUT
        )
        options: dict[str, Any] = {"connection_pool": pool}
        storage = RedisStorage(
            f"async+{url}", wrap_exceptions=True, implementation="redispy", key_prefix=prefix, **options
        )
    # Both libraries read the URL.
    except (ValueError, InvalidStorageConfiguration):
        raise ConfigurationError("PROXY_REDIS_URL: should be an address like redis://host:6379/0") from None
    return pool, storage
