"""One connection to a provider: HTTP/1.1 over asyncio, one exchange after the other.

Own code on llhttp's parser, because a general client costs more for each chunk of a stream than everything else that
is done with it (figures in ``docs/performance.md``). It supports what model calls need: one POST at a time, with a
response that is read as it arrives. Redirects, content encodings and cookies are not supported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import chain
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from proxy.wire.chunk_sizes import size_lines

_HEAD_BYTES = 64 * 1024
"""Of the head, or of the trailer. The parser keeps a header until its end, so that bytes are counted too."""
HIGH_WATER = 256 * 1024
"""Unread bytes, above which the proxy stops reading from the connection."""


class ConnectionBroken(Exception):
    """The connection ended before its answer did, or what came was not HTTP."""


class Response:
    """The answer to one request, as it comes. Its owner calls ``release`` in the end."""

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        """0 until the head of the response is there."""
        self.fields: dict[bytes, bytes] = {}
        """Headers by lower-case name; of a name that comes twice, the first counts."""
        self.is_complete = False
        self.is_over = False
        """Whether nothing more will come: the response is complete, or has failed."""
        self._connection = connection
        self._loop = loop
        self._received: dict[bytes, bytes] = {}
        """Headers as they came, and those of a trailer."""
        self.on_header = self._received.setdefault
        """Called by the parser with name and value of each header. Providers send many, most of which are not used."""
        self._parsed_bytes = 0
        """Bytes of the network since the last piece of the body, those that are being parsed included."""
        self._is_framed = False
        """Whether the head says where the body ends."""
        self._body: list[bytes] = []
        self._unread = 0
        """Bytes of the network since the last read."""
        self._is_held_back = False
        self._can_be_followed = False
        """Whether the head lets the connection be used again."""
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.on_news: Callable[[], None] | None = None
        """Called when a part of the body, the end or a failure came, instead of completing a wait."""
        self.is_between_chunks = False
        """Whether the last read that was parsed was whole chunks (RFC 9112, 7.1)."""
        self.observes_chunks = False
        """Whether ``is_between_chunks`` is determined; only with ``on_news``."""
        self.on_body = self._body.append
        """Called by the parser with each piece of the body."""
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    # --- for who asked ---

    @property
    def headers(self) -> dict[str, str]:
        """The decoded headers."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.fields.items()}

    def news(self) -> asyncio.Future[None]:
        """Wait for status and headers; after these, for a part of the body or the end.

        Raises:
            ConnectionBroken: They will not come.
        """
        # Plain function: a coroutine would be one more frame of each waiting stream.
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        return self._waiter

    def forget_headers(self) -> None:
        """Free the headers, of which providers send some kilobytes, before the body is waited for."""
        self.fields.clear()

    async def read(self) -> bytes:
        """Return everything that came since the last read, waiting while there is nothing; b"" at the end.

        What came before a failure is returned before it is raised.

        Raises:
            ConnectionBroken: The rest will not come.
        """
        while not self._body:
            if self.is_complete:
                return b""
            await self.news()
        return self.read_now()

    def read_now(self) -> bytes:
        """Return everything that came since the last read, without waiting; b"" if nothing did."""
        body = self._body
        if not body:
            return b""
        received = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._unread = 0
        if self._is_held_back:
            self._is_held_back = False
            self._connection.resume()
        return received

    async def end(self) -> None:
        """Return when all of it came, read or not.

        Raises:
            ConnectionBroken: It does not come.
        """
        while not self.is_complete:
            await self.news()

    @property
    def has_begun(self) -> bool:
        """Whether a part of the answer came, if only of its first line."""
        return bool(self.status) or self._parsed_bytes > 0

    def fail(self, failure: Exception) -> None:
        """Let the reader have this, behind what came before; an answer that is complete stays so."""
        if not self.is_complete and self._failure is None:
            self._failure = failure
            self.is_over = True
            self._wake()

    def process_directly(self, process: Callable[[bytes], None] | None) -> None:
        """Let a function get the next reads, not ``receive``; only when ``is_between_chunks``. None to end it."""
        self._connection.redirect(process)

    def release(self) -> None:
        """Release the connection: for reuse if the response is complete, otherwise it is closed."""
        self._connection.release(can_be_used=self.is_complete and self._can_be_followed)
        # It refers to this object: as a cycle, both would wait for the garbage collector.
        self._parser = None

    def _wake(self) -> None:
        if self.on_news is not None:
            self.on_news()
        elif self._waiter is not None and not self._waiter.done():
            # Who waits for the head does not look at it again; what reads the body does, after what came before.
            if self._failure is not None and not self.status:
                self._waiter.set_exception(self._failure)
            else:
                self._waiter.set_result(None)

    # --- for the connection ---

    def receive(self, data: bytes) -> None:
        """Take bytes of the network."""
        parser = self._parser
        if parser is None:
            return
        body = self._body
        before = len(body)
        size = len(data)
        self._parsed_bytes += size
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._break()
        if body:
            self._parsed_bytes = 0
            self._unread += size
            if self._unread > HIGH_WATER and not self._is_held_back:
                self._is_held_back = True
                self._connection.hold_back()
        elif self._parsed_bytes > _HEAD_BYTES:
            self._break()
        if (on_news := self.on_news) is not None:
            if self.observes_chunks:
                pieces = body[before:]
                self.is_between_chunks = data == b"".join(
                    [b"%b%b\r\n" % (size_lines[len(piece)], piece) for piece in pieces]
                )
            on_news()
        elif self.status and (waiter := self._waiter) is not None and not waiter.done():
            waiter.set_result(None)

    def lose(self) -> None:
        """Handle a lost connection: the end of a response without a length, a failure of any other."""
        if self.status and not self._is_framed:
            self.is_complete = self.is_over = True
            self._wake()
        else:
            self.fail(ConnectionBroken())

    def _break(self) -> None:
        self.fail(ConnectionBroken())
        self._connection.abort()

    # --- for the parser ---

    def on_message_begin(self) -> None:
        """Handle the first byte of a response; after the end it belongs to no request."""
        if self.is_complete:
            raise ConnectionBroken

    def on_headers_complete(self) -> None:
        """Take the end of a head; one of an interim response is forgotten."""
        parser, received = self._parser, self._received
        assert parser is not None
        status = parser.get_status_code()
        if status >= 200 and not self.status:
            # Counted only if the head can be so long: the bytes include those of the body in the same read.
            if (
                self._parsed_bytes > _HEAD_BYTES
                and sum(map(len, chain.from_iterable(received.items()))) > _HEAD_BYTES
            ):
                raise ConnectionBroken
            fields = self.fields
            for name, value in received.items():
                fields.setdefault(name.lower(), value)
            self._can_be_followed = parser.should_keep_alive()
            self._is_framed = (
                self._can_be_followed or b"content-length" in fields or b"transfer-encoding" in fields
            )
            self.status = status
        received.clear()

    def on_message_complete(self) -> None:
        """Take the end of a response."""
        if self.status and not self.is_complete:
            self.is_complete = self.is_over = True


class Connection(asyncio.Protocol):
    """A connection. It calls ``idle`` of its owner when it can be used again, and ``lost`` when it is closed."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.loop = asyncio.get_running_loop()
        self._response: Response | None = None
        self._transport: asyncio.Transport
        self._is_redirected = False
        self.idle_since = 0.0
        self.is_open = False

    def ask(self, request: bytes) -> Response:
        """Send a request; the connection has to be open and idle."""
        response = self._response = Response(self, self.loop)
        self._transport.write(request)
        return response

    def release(self, *, can_be_used: bool) -> None:
        """End the exchange."""
        if self._response is None:
            return
        self._response = None
        if self._is_redirected:
            self.redirect(None)
        if can_be_used and self.is_open and not self._transport.get_write_buffer_size():
            self._owner.idle(self)
        else:
            self.abort()

    def redirect(self, process: Callable[[bytes], None] | None) -> None:
        """Let a function get the next reads from the transport; None to end it."""
        if self.is_open and (process is not None or self._is_redirected):
            self._is_redirected = process is not None
            self._transport.set_protocol(self if process is None else _Redirected(self, process))

    def abort(self) -> None:
        """Close at once: closing properly would wait for the other side of TLS to agree."""
        self.is_open = False
        self._transport.abort()

    def hold_back(self) -> None:
        """Read no more for now."""
        if self.is_open:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.is_open:
            self._transport.resume_reading()

    # --- for the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's are of no class of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if self._response is not None:
            self._response.receive(data)
        else:
            # Without a request; these bytes would be read as the response to the next one.
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end."""
        self.is_open = False
        self._owner.lost(self)
        if self._response is not None:
            self._response.lose()


class _Redirected(asyncio.Protocol):
    """The protocol of a transport whose reads a function gets: a chunk that arrives alone costs one call less."""

    def __init__(self, connection: Connection, process: Callable[[bytes], None]) -> None:
        self._connection = connection
        self.data_received = process  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end."""
        self._connection.connection_lost(error)


class Owner:
    """The owner of connections."""

    def idle(self, connection: Connection) -> None:
        """The connection can be used again."""

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""


def request_head(host: str, target: str, headers: Mapping[str, str], method: str = "POST") -> bytes:
    """Return the head of a request up to the length of its body, without the blank line.

    Raises:
        ValueError: Something in it would end a line.
    """
    given = {name: value for name, value in headers.items() if name.lower() not in _RESERVED}
    lines = [
        f"{method} {target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in ({"host": host} | given).items()),
    ]
    head = "\r\n".join([*lines, "content-length: "])
    if head.count("\r\n") != len(lines) or head.count("\n") != len(lines) or "\0" in head:
        raise ValueError("a header would end its line")
    return head.encode("ascii")


_RESERVED = frozenset({"content-length", "transfer-encoding", "connection"})
