"""Two workers on one database: a turn is followed live, cancelled, and kept alive by readers of the other worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.behaviour.chat_client import Caller, turn_after_running, user
from tests.contracts.test_worker_messages import REDIS, require_redis
from tests.fakes.upstream import FakeUpstream, hang, text
from tests.polling import until
from tests.server import Served, serve

WITHIN = 10.0


@dataclass
class Pair:
    """Two workers and their provider."""

    here: Served
    there: Served
    upstream: FakeUpstream


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres), "redis"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Pair]:
    changes: dict[str, Any] = {}
    if request.param == "postgresql":
        changes["database_url"] = request.getfixturevalue("postgresql_database")
    if request.param == "redis":
        require_redis()
        changes["redis_url"] = REDIS
    async with AsyncExitStack() as stack:
        here, there = [
            await stack.enter_async_context(serve(tmp_path, upstream.base_url, **changes)) for _ in range(2)
        ]
        yield Pair(here, there, upstream)


class Reader:
    """Reads server-sent events of a path in the background; ``lines`` are the non-empty ones so far."""

    def __init__(self, served: Served, path: str) -> None:
        self.lines: list[str] = []
        self.is_over = False
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(f"{served.base_url}{path}"))

    async def _read(self, url: str) -> None:
        headers = {"authorization": "Bearer test-key"}
        async with (
            httpx2.AsyncClient(timeout=20) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            async for line in answer.aiter_lines():
                if line:
                    self.lines.append(line)
                    self._changed.set()
        self.is_over = True
        self._changed.set()

    async def until(self, part: str) -> None:
        """Wait for a line with this part."""
        async with asyncio.timeout(WITHIN):
            while not any(part in line for line in self.lines):
                assert not self.is_over, self.lines
                self._changed.clear()
                await self._changed.wait()

    async def end(self) -> None:
        """Wait for the end of the stream."""
        async with asyncio.timeout(WITHIN):
            await self._task

    async def leave(self) -> None:
        """Disconnect."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def begin(pair: Pair, **more: Any) -> tuple[str, asyncio.Task[Any]]:
    """Begin a turn at ``here`` and return its id and the task of its client."""
    pending = asyncio.create_task(Caller(pair.here).completion([user("Hi")], **more))
    await pair.upstream.received(1)
    return await pair.here.running_turn(), pending


async def test_a_stream_at_another_worker_shows_text_while_the_turn_runs(pair: Pair) -> None:
    go = asyncio.Event()
    pair.upstream.reply(text("First, second and last", chunks=["First, ", go, "second ", "and last"]))
    turn_id, pending = await begin(pair)

    stream, feed = (
        Reader(pair.there, f"/chat/completions/{turn_id}/stream"),
        Reader(pair.there, f"/turns/{turn_id}/events"),
    )
    await stream.until("First")
    await feed.until("First")
    assert not pending.done()
    go.set()

    await stream.end()
    await feed.end()
    assert stream.lines[-1] == "data: [DONE]"
    assert any("turn.completed" in line for line in feed.lines)
    assert (await pending).choices[0].message.content == "First, second and last"
    again = Reader(pair.here, f"/chat/completions/{turn_id}/stream")
    await again.end()
    assert stream.lines == again.lines


async def test_a_listener_of_a_conversation_shows_a_turn_that_begins_at_another_worker(pair: Pair) -> None:
    pair.upstream.reply(text("Hello"))
    first = await Caller(pair.here).completion([user("Hi")], headers={"X-Conversation-Id": "chat-1"})
    feed = Reader(pair.there, "/conversations/chat-1/events")
    await feed.until(first.id)
    go = asyncio.Event()
    pair.upstream.reply(text("Later, much later", chunks=["Later, ", go, "much ", "later"]))

    pending = asyncio.create_task(
        Caller(pair.here).completion([user("And now?")], headers={"X-Conversation-Id": "chat-1"})
    )
    await feed.until("Later")
    assert not pending.done()
    go.set()

    await pending
    await feed.until("much")
    await feed.leave()


async def test_a_turn_is_cancelled_from_another_worker_before_the_response_to_the_cancellation(
    pair: Pair,
) -> None:
    pair.upstream.reply(hang())
    turn_id, pending = await begin(pair)

    cancelled: Any = await pair.there.client().post(f"/chat/completions/{turn_id}/cancel", cast_to=object)

    assert (cancelled["status"], cancelled["cancelled"]) == ("cancelled", True)
    assert (await pending).choices[0].finish_reason == "stop"


async def test_a_reader_at_another_worker_keeps_a_turn_alive_whose_client_left(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    go = asyncio.Event()
    pair.upstream.reply(text("First and last", chunks=["First ", go, "and last"]))
    turn_id, pending = await begin(pair)
    stream = Reader(pair.there, f"/chat/completions/{turn_id}/stream")
    await stream.until("First")

    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)
    await until(lambda: any(getattr(one, "outcome", "") == "client_disconnect" for one in caplog.records))
    go.set()

    await stream.end()
    assert stream.lines[-1] == "data: [DONE]"
    turn = await turn_after_running(pair.there.client(), turn_id)
    assert turn["status"] == "completed"
