"""From one worker to another: how late events arrive, and how long a cancellation takes; for each channel of messages.

Two servers share a database. A client reads a turn of one of them at the other, or cancels it there.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from bench.client import Answer, Connection, connections, request
from bench.figures import Variant
from bench.measures import greeting
from bench.processes import Field, Served, free_ports, migrate, proxy_process
from bench.scripts import SCRIPTS

MOST_DELAY, MOST_CANCEL = 100.0, 200.0
"""Milliseconds."""
CANCELLATIONS = 20


async def across_workers(field: Field, postgres: str | None, redis: str | None) -> list[Variant]:
    """Return the rows of all channels that are available."""
    rows = await _rows(field, "SQLite", {})
    if redis is not None:
        rows += await _rows(field, "Redis", {"PROXY_REDIS_URL": redis})
    if postgres is not None:
        rows += await _rows(field, "PostgreSQL", {"PROXY_DATABASE_URL": postgres})
    return rows


async def _rows(field: Field, name: str, environment: Mapping[str, str]) -> list[Variant]:
    async with _two_servers(field, environment) as (here, there):
        delay = await _delay(here, there)
        times = sorted([await _cancellation(here, there) for _ in range(CANCELLATIONS)])
    return [
        Variant(f"event at another worker, {name}: delay", "ms", delay, MOST_DELAY, 1.0),
        Variant(
            f"cancellation at another worker, {name}: median",
            "ms",
            statistics.median(times),
            MOST_CANCEL,
            1.0,
        ),
        Variant(f"the same, most of {CANCELLATIONS}", "ms", times[-1], MOST_CANCEL, 1.0),
    ]


@asynccontextmanager
async def _two_servers(field: Field, environment: Mapping[str, str]) -> AsyncIterator[tuple[Served, Served]]:
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as name:
        folder, models, (one, two) = Path(name), list(SCRIPTS), free_ports(2)
        if "PROXY_DATABASE_URL" in environment:
            await asyncio.to_thread(migrate, folder, environment)
        async with (
            proxy_process(folder, models, field.upstream.port, one, environment) as here,
            proxy_process(folder, models, field.upstream.port, two, environment) as there,
        ):
            yield here, there


async def _delay(here: Served, there: Served) -> float:
    """Return by how many milliseconds text arrives later at a reader of another worker, as the median."""
    # The database can have the turns of an earlier run.
    conversation = f"followed-{secrets.token_hex(8)}"
    headers = {"x-conversation-id": conversation}
    first = request("plain", greeting(), stream=False, headers=headers)
    feed = (
        f"GET /v1/conversations/{conversation}/events HTTP/1.1\r\n"
        "host: 127.0.0.1\r\nauthorization: Bearer bench\r\n\r\n"
    )
    async with connections(here.port, 1) as (client,), connections(there.port, 1) as (follower,):
        earlier = (await client.ask(first, SCRIPTS["plain"].chunks)).words
        never = follower.send(feed.encode(), is_timed=True)
        async with asyncio.timeout(30):
            await _until(follower, earlier)
            answer = await client.send(
                request("single", greeting(), stream=True, headers=headers), is_timed=True
            )
            await _until(follower, earlier + answer.words)
        never.cancel()
        sent, received = _times(answer, 0), _times(follower.answer, earlier)
    return statistics.median(received[word] - sent[word] for word in sent) * 1e3


async def _until(follower: Connection, words: int) -> None:
    while follower.answer.words < words:  # noqa: ASYNC110 - an event for each word would delay the follower
        await asyncio.sleep(0.01)


def _times(answer: Answer, earlier: int) -> dict[int, float]:
    """Return when each word arrived, by its number after the first ``earlier`` words."""
    times: dict[int, float] = {}
    for moment, words in answer.arrivals or ():
        for word in range(max(times, default=0) + 1, words - earlier + 1):
            times[word] = moment
    return times


async def _cancellation(here: Served, there: Served) -> float:
    """Cancel a turn of one worker at the other; return the milliseconds until its stream has ended."""
    async with connections(here.port, 1) as (client,), connections(there.port, 1) as (other,):
        async with asyncio.timeout(30):
            ending = client.send(request("waiting", greeting(), stream=True), is_timed=True)
            await client.first_word.wait()
            cancel = (
                f"POST /v1/chat/completions/{client.answer.completion_id}/cancel HTTP/1.1\r\n"
                "host: 127.0.0.1\r\nauthorization: Bearer bench\r\ncontent-length: 0\r\n\r\n"
            )
            loop = asyncio.get_running_loop()
            began = loop.time()
            cancelled = other.send(cancel.encode())
            await ending
            seconds = loop.time() - began
            await cancelled
    return seconds * 1e3
