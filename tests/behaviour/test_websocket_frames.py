"""WebSocket messages in many small frames: answered as one message, and parsed in short steps of the event loop."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from tests.server import Served

TEXT, CONTINUATION, LAST = 0x1, 0x0, 0x80
_HANDSHAKE = (
    "GET /v1/ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Authorization: Bearer k\r\n\r\n"
)


def frame(code: int, content: bytes = b"") -> bytes:
    """A masked frame of less than 126 bytes; the mask is zero (RFC 6455, 5.2)."""
    return bytes((code, 0x80 | len(content))) + bytes(4) + content


def fragments(message: bytes, *, empty: int) -> bytes:
    """The message in frames of one byte, after ``empty`` frames without content."""
    frames = [frame(CONTINUATION, bytes((byte,))) for byte in message[1:-1]]
    return b"".join(
        (
            frame(TEXT, message[:1]),
            frame(CONTINUATION) * empty,
            *frames,
            frame(CONTINUATION | LAST, message[-1:]),
        )
    )


async def connection(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host = served.url.removeprefix("http://")
    reader, writer = await asyncio.open_connection(host.partition(":")[0], int(host.rpartition(":")[2]))
    writer.write(_HANDSHAKE.format(host=host).encode())
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def measure_steps(found: list[float]) -> None:
    """Note the CPU time of each step of this event loop, in which the server runs too."""
    while True:
        began = time.thread_time()
        await asyncio.sleep(0)
        found.append(time.thread_time() - began)


async def answer(reader: asyncio.StreamReader, part: bytes) -> bytes:
    received = b""
    while part not in received:
        async with asyncio.timeout(20):
            received += await reader.read(65_536)
    return received


async def test_a_message_in_frames_of_one_byte_is_answered(served: Served) -> None:
    reader, writer = await connection(served)

    writer.write(fragments(b'{"type": "ping", "id": "a"}', empty=3) + frame(0x8A) * 5000)
    writer.write(frame(TEXT | LAST, b'{"type": "ping", "id": "b"}'))

    answered = await answer(reader, b'"id":"b"')
    assert answered.index(b'"id":"a"') < answered.index(b'"id":"b"')
    writer.close()


async def test_empty_frames_do_not_block_the_event_loop(served: Served) -> None:
    reader, writer = await connection(served)
    message = fragments(b'{"type": "ping", "id": "c"}', empty=60_000)
    steps: list[float] = []
    measuring: asyncio.Task[Any] = asyncio.create_task(measure_steps(steps))

    writer.write(message)
    await writer.drain()
    await answer(reader, b'"id":"c"')

    measuring.cancel()
    with suppress(asyncio.CancelledError):
        await measuring
    # A step of ``STEP_BYTES`` is 2 % of the whole. Without them, the three largest steps would be all of it. A garbage
    # collection can be part of one step.
    assert sorted(steps)[-2] < sum(steps) / 8
    writer.close()
