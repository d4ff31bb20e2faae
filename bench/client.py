"""HTTP client with low overhead: it sends a prepared request, counts words in the response and detects its end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from bench.scripts import WORD

Messages = Sequence[Mapping[str, Any]]


class UnexpectedResponse(Exception):
    """The response differs from the expected one, which invalidates the measurement."""


def request(
    model: str, messages: Messages, *, stream: bool, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a complete HTTP request."""
    body = json.dumps(
        {"model": model, "messages": messages, "stream": stream}, separators=(",", ":")
    ).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"accept: */*\r\nauthorization: Bearer bench\r\n{more}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Answer:
    """The received response; times are values of ``time.perf_counter``."""

    words: int = 0
    sent_at: float = 0.0
    first_word_at: float = 0.0
    head: bytes = b""
    body_start: bytes = b""
    """The first data of the body."""
    arrivals: list[tuple[float, int]] | None = None
    """When each read of data arrived, and the number of words until then; None if it is not recorded."""

    @property
    def completion_id(self) -> str:
        """The id in the first chunk of a stream."""
        return self.body_start.partition(b'"id":"')[2].partition(b'"')[0].decode()


class Connection(asyncio.Protocol):
    """A persistent connection; one request at a time."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.first_word = asyncio.Event()
        self._transport: asyncio.Transport
        self._done: asyncio.Future[Answer] | None = None
        self._left: int | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was closed after {self.answer}")

    def send(self, asked: bytes, *, is_timed: bool = False) -> asyncio.Future[Answer]:
        """Send a request; the future completes at the end of the response."""
        self.answer = Answer(sent_at=time.perf_counter(), arrivals=[] if is_timed else None)
        self.first_word.clear()
        self._left, self._tail = None, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(asked)
        return self._done

    async def ask(self, asked: bytes, words: int) -> Answer:
        """Send a request and return the response, which must contain ``words`` words.

        Raises:
            UnexpectedResponse: The number of words differs.
        """
        answer = await self.send(asked)
        if answer.words != words:
            raise UnexpectedResponse(f"{words} words expected, got {answer}")
        return answer

    def close(self) -> None:
        """Abort the connection."""
        self._done = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if not answer.head:
            data = self._begin(data)
        answer.body_start = answer.body_start or data
        # A word can be split between two reads, so include the end of the previous data.
        seen = self._tail + data
        count = seen.count(WORD) - self._tail.count(WORD)
        if count:
            if not answer.words:
                answer.first_word_at = time.perf_counter()
                self.first_word.set()
            answer.words += count
            if answer.arrivals is not None:
                answer.arrivals.append((time.perf_counter(), answer.words))
        self._tail = seen[-5:]
        if self._left is not None:
            self._left -= len(data)
        if self._left == 0 if self._left is not None else self._tail == b"0\r\n\r\n":
            self._end()

    def _begin(self, data: bytes) -> bytes:
        head, separator, body = data.partition(b"\r\n\r\n")
        if not separator or not head.startswith(b"HTTP/1.1 200"):
            self._fail(data[:2000].decode(errors="replace"))
        self.answer.head = head
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self._left = int(line.partition(b":")[2])
        return body

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(self.answer)

    def _fail(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(UnexpectedResponse(reason))


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """Open a connection and close it on exit."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    try:
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """Open ``count`` connections and close them on exit."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(port)) for _ in range(count)]
