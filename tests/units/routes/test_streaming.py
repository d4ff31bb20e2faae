"""A turn written to a client that may leave at any moment."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.events import Started, TextDelta
from proxy.routes.streaming import Connection, StreamTimeouts, stream
from proxy.turns.live import LiveTurn
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.stream import ChunkEncoder


async def test_a_client_that_leaves_while_it_is_sent_something_is_noticed_at_once() -> None:
    live = LiveTurn("chatcmpl-1")
    live.emit(Started("chatcmpl-1", "triage"))
    live.emit(TextDelta("Hello"))
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            gone.set()
            # The network takes its time, and the departure is known before the sending ends.
            for _ in range(10):
                await asyncio.sleep(0)

    encoder = ChunkEncoder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"))
    connection = Connection({"type": "http"}, receive, send)
    async with asyncio.timeout(5):
        took_all = await stream(live, encoder, [], connection, StreamTimeouts(keep_alive=60))

    assert not took_all
    assert not live.has_readers
