"""Counting requests and tokens, in memory and in Redis."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator

import pytest
import redis

from proxy.errors import RateLimitExceeded, StoreUnavailable
from proxy.limits import Limiter, RateLimits, RateLimitStatus, go_duration, rate_limit_headers

REDIS = os.environ.get("HANDOFF_TEST_REDIS") or "redis://127.0.0.1:6379/0"


@pytest.fixture(scope="session")
def redis_server() -> str:
    try:
        with redis.Redis.from_url(REDIS, socket_timeout=2) as server:
            server.ping()
    except redis.RedisError as error:
        reason = f"no Redis for tests ({type(error).__name__}): start one, or set HANDOFF_TEST_REDIS"
        if os.environ.get("HANDOFF_TEST_REQUIRE_ALL"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return REDIS


@pytest.fixture(params=["memory", "redis"])
async def limiter(request: pytest.FixtureRequest) -> AsyncIterator[Limiter]:
    if request.param == "memory":
        yield Limiter()
        return
    url = request.getfixturevalue("redis_server")
    prefix = f"test-{secrets.token_hex(6)}"
    created = Limiter(url, prefix=prefix)
    yield created
    await created.close()
    with redis.Redis.from_url(url) as server:
        for key in server.scan_iter(f"{prefix}*"):
            server.delete(key)


async def test_the_request_limit_is_exact(limiter: Limiter) -> None:
    limits = RateLimits(requests=2)

    first = await limiter.admit("anna", limits)
    second = await limiter.admit("anna", limits)
    with pytest.raises(RateLimitExceeded) as refused:
        await limiter.admit("anna", limits)

    assert [(stand.kind, stand.limit, stand.remaining) for stand in (*first, *second)] == [
        ("requests", 2, 1),
        ("requests", 2, 0),
    ]
    assert 0 < refused.value.retry_after <= 60
    assert "on requests per min (RPM): Limit 2." in refused.value.message
    assert (await limiter.admit("bert", limits))[0].remaining == 1


async def test_tokens_count_when_they_are_used(limiter: Limiter) -> None:
    limits = RateLimits(tokens=100)

    assert (await limiter.admit("anna", limits))[0].remaining == 100
    await limiter.record_tokens("anna", limits, 30)
    assert (await limiter.admit("anna", limits))[0].remaining == 70
    await limiter.record_tokens("anna", limits, 1_000_000)

    with pytest.raises(RateLimitExceeded) as refused:
        await limiter.admit("anna", limits)
    assert refused.value.retry_after >= 1
    assert [stand.remaining for stand in refused.value.stands] == [0]


async def test_what_one_worker_counts_another_knows(redis_server: str) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    one, other = Limiter(redis_server, prefix=prefix), Limiter(redis_server, prefix=prefix)

    await one.admit("anna", RateLimits(requests=1))

    with pytest.raises(RateLimitExceeded):
        await other.admit("anna", RateLimits(requests=1))
    for limiter in (one, other):
        await limiter.close()


async def test_requests_fail_if_the_counter_is_unavailable() -> None:
    limiter = Limiter("redis://127.0.0.1:1/0")

    with pytest.raises(StoreUnavailable):
        await limiter.admit("anna", RateLimits(requests=1))
    with pytest.raises(StoreUnavailable):
        await limiter.record_tokens("anna", RateLimits(tokens=1), 1)
    await limiter.record_tokens("anna", RateLimits(requests=1), 1)
    await limiter.close()


def test_the_headers_are_those_of_the_official_api() -> None:
    assert rate_limit_headers(
        [RateLimitStatus("requests", 60, 59, 1.0), RateLimitStatus("tokens", 1000, 0, 0.012)]
    ) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
        (b"x-ratelimit-limit-tokens", b"1000"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", b"12ms"),
    ]


@pytest.mark.parametrize(
    ("seconds", "content"),
    [(0.0, "0ms"), (0.0121, "13ms"), (1.0, "1s"), (1.5, "1.5s"), (59.9996, "1m0s"), (360.0, "6m0s")],
)
def test_times_are_written_as_go_does(seconds: float, content: str) -> None:
    assert go_duration(seconds) == content
