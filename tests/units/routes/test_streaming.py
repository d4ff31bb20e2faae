"""A turn written to a client that may leave at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.events import Completed, Started, TextDelta
from proxy.messages import Usage
from proxy.routes.client_connection import ClientConnection, StreamTimeouts
from proxy.routes.request_body import ClientDisconnected
from proxy.routes.server_extensions import BODY_WRITER, DISCONNECT, Disconnect
from proxy.routes.streaming import SSE, answer, stream
from proxy.turns.live import LiveTurn
from proxy.wire.chat.completion import AnswerOptions, CompletionBuilder
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
    connection = ClientConnection({"type": "http"}, receive, send)
    left = asyncio.Event()
    async with asyncio.timeout(5):
        await stream(live, encoder, [], connection, StreamTimeouts(keep_alive=60), left=left.set)

    assert left.is_set()
    assert not live.clients


async def test_a_client_that_left_while_the_turn_was_begun_is_noticed_at_once() -> None:
    live, disconnect = LiveTurn("chatcmpl-1"), Disconnect()
    live.emit(Started("chatcmpl-1", "triage"))
    disconnect.happen()

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        raise AssertionError

    builder = CompletionBuilder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"))
    connection = ClientConnection({"type": "http", "extensions": {DISCONNECT: disconnect}}, receive, send)
    left = asyncio.Event()
    async with asyncio.timeout(5):
        await answer(live, builder, [], connection, StreamTimeouts(), left=left.set)
    assert left.is_set()
    assert not live.clients


async def test_a_client_that_does_not_read_in_time_is_left() -> None:
    live, left = LiveTurn("chatcmpl-1"), asyncio.Event()
    live.emit(Started("chatcmpl-1", "triage"))
    live.emit(TextDelta("Hello"))

    async def receive() -> Any:
        await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.get_running_loop().create_future()

    encoder = ChunkEncoder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"))
    connection = ClientConnection({"type": "http"}, receive, send)
    timeouts = StreamTimeouts(keep_alive=0.01, stall=0.01)
    async with asyncio.timeout(5):
        with pytest.raises(ClientDisconnected):
            await stream(live, encoder, [], connection, timeouts, left=left.set)
    assert left.is_set()
    assert not live.clients


class FakeBodyWriter:
    """Writes to a list; ``is_ready`` as the test says."""

    def __init__(self) -> None:
        self.is_ready = True
        self.written: list[bytes] = []

    def write(self, body: bytes) -> None:
        self.written.append(body)

    def text_writer(self, start: bytes, end: bytes) -> Callable[[bytes], bool]:
        def write_text(text: bytes) -> bool:
            self.written.append(start + text + end)
            return True

        return write_text


async def test_batches_are_written_directly_while_the_client_reads_fast_enough() -> None:
    live = LiveTurn("chatcmpl-1")
    live.emit(Started("chatcmpl-1", "triage"))
    live.emit(TextDelta("Hello"))
    writer, sent = FakeBodyWriter(), asyncio.Queue[bytes]()

    async def receive() -> Any:
        await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.put_nowait(message["body"])

    encoder = ChunkEncoder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"))
    connection = ClientConnection({"type": "http", "extensions": {BODY_WRITER: writer}}, receive, send)
    left = asyncio.Event()
    streaming = asyncio.create_task(
        stream(live, encoder, [], connection, StreamTimeouts(keep_alive=60), left=left.set)
    )
    async with asyncio.timeout(5):
        assert b"Hello" in await sent.get()
        await asyncio.sleep(0)
        live.emit_batch([TextDelta(" dear"), TextDelta(" client")])
        assert [texts_of(body) for body in writer.written] == [" dear client"]

        writer.is_ready = False
        live.emit_batch([TextDelta(", again")])
        assert texts_of(await sent.get()) == ", again"
        assert len(writer.written) == 1

        live.emit(Completed("triage", "stop", Usage()))
        assert b"[DONE]" in await sent.get()
        await streaming
    assert not left.is_set()


async def test_no_keep_alive_frame_is_sent_while_text_is_passed_on() -> None:
    live, interval = LiveTurn("chatcmpl-1"), 0.05
    live.emit(Started("chatcmpl-1", "triage"))
    live.emit(TextDelta("Hello"))
    writer, sent = FakeBodyWriter(), asyncio.Queue[bytes]()

    async def receive() -> Any:
        await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.put_nowait(message["body"])

    encoder = ChunkEncoder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"))
    connection = ClientConnection({"type": "http", "extensions": {BODY_WRITER: writer}}, receive, send)
    left = asyncio.Event()
    streaming = asyncio.create_task(
        stream(live, encoder, [], connection, StreamTimeouts(keep_alive=interval), left=left.set)
    )
    async with asyncio.timeout(5):
        assert b"Hello" in await sent.get()
        await asyncio.sleep(0)
        relay, now = live.open_relay(), asyncio.get_running_loop().time
        assert relay is not None
        until = now() + 4 * interval
        while now() < until:
            assert relay.write(b"!")
            relay.texts.append("!")
            relay.times.append(now())
            await asyncio.sleep(interval / 10)
        assert sent.empty()
        # Afterwards it is, behind the text.
        assert await sent.get() == SSE.ping
        assert live.length == 2 + len(writer.written)

        live.emit(Completed("triage", "stop", Usage()))
        assert b"[DONE]" in await sent.get()
        await streaming
    assert not left.is_set()
    assert {texts_of(body) for body in writer.written} == {"!"}


def texts_of(body: bytes) -> str:
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in body.split(b"\n\n")[:-1]]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
