"""One HTTP request and its response, as an ASGI application receives and sends them (ASGI specification, "HTTP").

It replaces uvicorn's ``RequestResponseCycle``, and has its names where uvicorn's protocol uses them. The application
also gets extensions (``routes.server_extensions``): the body of a request that is complete, and a writer for parts of a
response. They need no coroutine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from msgspec import field
from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from proxy.connection_state import ConnectionEvent
from proxy.errors import InternalTurnError, ProxyError, ShuttingDown
from proxy.routes.server_extensions import (
    BODY_WRITER,
    DISCONNECT,
    REQUEST_BODY,
    START_WITH_BODY,
    Disconnect,
)
from proxy.wire.chunk_sizes import size_lines
from proxy.wire.errors import envelope, error_response, headers_of

logger = logging.getLogger("uvicorn.error")

MAX_DISCARDED_BYTES = 64 * 1024
"""After an early response, the rest of a body of at most this size is read and discarded, and the connection stays
usable. Clients would have to reconnect otherwise."""
_OF_NAMES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
"""The bytes of a header's name in lower case (RFC 9110, 5.6.2)."""
_OF_VALUES = bytes(byte for byte in range(256) if byte == ord("\t") or (byte >= ord(" ") and byte != 0x7F))
"""The bytes of its value (RFC 9110, 5.5)."""
_line_of = b": ".join
_UNTIL_CLOSED = -1
"""As the length of a response, that its end is the end of the connection."""
_CHUNKED = -2
"""As the length of a response, that it has chunked encoding."""


class ExchangeConnection(Protocol):
    """The connection of an exchange."""

    transport: asyncio.Transport
    flow: FlowControl
    server_state: ServerState

    def on_response_complete(self) -> None:
        """Continue after the end of a response."""
        ...

    def close_after(self, exchange: HttpExchange) -> None:
        """Close the connection after a response."""
        ...


class HttpExchange(Disconnect, eq=False):
    """One request and its response, and whether its client has disconnected: one object less for each request.

    It refers to its connection until it is over.
    """

    _connection: ExchangeConnection | None
    _transport: asyncio.Transport
    _flow: FlowControl
    _is_head: bool
    _is_http_1_0: bool
    announced_bytes: int | None
    """The length of the request's body; None if it is not known."""
    keep_alive: bool
    waiting_for_100_continue: bool
    more_body: bool = True
    _body: list[bytes] | None = field(default_factory=list)
    """The parts of the request's body that the application has not read; None once it has the last one."""
    _has_news: bool = False
    """Whether ``receive`` has nothing to wait for."""
    _news: ConnectionEvent | None = None
    """Wakes a call of ``receive``."""
    _received_bytes: int = 0
    _is_server_stopping: bool = False
    is_over: bool = False
    """Whether the client has left, or the response is complete."""
    response_started: bool = False
    response_complete: bool = False
    _left: int = 0
    """The rest of the announced length of the response, or ``_CHUNKED`` or ``_UNTIL_CLOSED``."""
    _held_head: bytes = b""
    """The head of a response whose body follows."""

    # That of ``Struct`` would show the request's body.
    __repr__ = object.__repr__

    @classmethod
    def of(
        cls,
        connection: ExchangeConnection,
        scope: Scope,
        *,
        announced_bytes: int | None,
        keep_alive: bool,
        expects_continue: bool = False,
        body: bytes | None = None,
    ) -> HttpExchange:
        """Return the exchange of a request, whose application gets the extensions through ``scope``.

        ``body`` is the complete body, None if it is added later.
        """
        exchange = cls(
            connection,
            connection.transport,
            connection.flow,
            scope["method"] == "HEAD",
            scope["http_version"] == "1.0",
            announced_bytes,
            keep_alive,
            expects_continue,
        )
        if body is not None:
            exchange.more_body, exchange._has_news, exchange._body = False, True, [body]
        scope["extensions"] = {
            DISCONNECT: exchange,
            BODY_WRITER: exchange,
            REQUEST_BODY: exchange,
            START_WITH_BODY: True,
        }
        return exchange

    # --- of the protocol ---

    def add_body(self, data: bytes) -> None:
        """Add a part of the request's body.

        The application is woken at the end of the body, and before it only if it can have to act: a body without an
        announced length can be too large, and the connection reads no more than ``HIGH_WATER_LIMIT`` ahead.
        """
        assert self._body is not None
        self._body.append(data)
        self._received_bytes += len(data)
        if self._received_bytes > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
            self._wake()
        elif self.announced_bytes is None:
            self._wake()

    def end_body(self) -> None:
        """Mark the end of the request's body."""
        self.more_body = False
        self._wake()

    def report_disconnect(self) -> None:
        """Report to the application that the client has gone."""
        self.is_over = True
        self._connection = None
        self._wake()
        self.happen()

    def stop_waiting_for_body(self) -> None:
        """Let ``receive`` fail if the body is not complete: the server stops, and the application has not begun."""
        self._is_server_stopping = True
        if self.more_body:
            self._wake()

    def _wake(self) -> None:
        self._has_news = True
        if self._news is not None:
            self._news.set()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application. A failure is answered, or closes the connection if the response was begun.

        Raises:
            CancelledError: The server stops and does not wait for the application.
        """
        try:
            await app(scope, self.receive, self.send)
            if not self.is_over:
                started = "completing" if self.response_started else "starting"
                logger.error("ASGI callable returned without %s response.", started)
        except GeneratorExit:
            # The event loop was closed.
            raise
        except BaseException as error:
            # SystemExit and KeyboardInterrupt too, which libraries raise: they would stop the event loop, and with it
            # all requests. A CancelledError that a library raised by itself is a failure as well.
            if isinstance(error, asyncio.CancelledError) and is_task_cancelled():
                if not self.is_over:
                    self._fail(scope, ShuttingDown())
                raise
            logger.error("Exception in ASGI application\n", exc_info=error)
        if not self.is_over:
            self._fail(scope, InternalTurnError())

    def _fail(self, scope: Scope, error: ProxyError) -> None:
        """Answer with the error if nothing was written and the client reads; otherwise close the connection."""
        if (self.response_started and not self._held_head) or self._flow.write_paused:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close_after(self)
        else:
            self._held_head = b""
            self._write_error(error, scope.get("state", {}).get("request_id"))

    def _write_error(self, error: ProxyError, request_id: str | None) -> None:
        problem = error_response(error)
        body = envelope(problem)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *((name.lower().encode(), value.encode()) for name, value in headers_of(problem).items()),
            (b"connection", b"close"),
        ]
        if request_id is not None:
            headers.append((b"x-request-id", request_id.encode()))
        self._write_head({"status": problem.status, "headers": headers})
        self._write_body({"body": body})

    # --- of the application ---

    def take_complete(self) -> bytes | None:
        """Implement ``RequestBody``."""
        parts = self._body
        if self.more_body or parts is None or self.is_over:
            return None
        self._body, self._has_news = None, False
        if self._flow.read_paused:
            # Only a connection that is read shows that the client has gone, and streams do not call ``receive``.
            self._flow.resume_reading()
        # A single part is not copied.
        return b"".join(parts)

    async def receive(self) -> Message:
        """Return the next part of the request's body, or the disconnect of the client.

        Raises:
            ShuttingDown: The body is not complete, and the server does not wait for it.
        """
        if self.waiting_for_100_continue and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.is_over:
            self._flow.resume_reading()
            if not self._has_news:
                news = self._news = self._news or ConnectionEvent()
                news.clear()
                await news.wait()
            if self._is_server_stopping and self.more_body and not self.response_started:
                raise ShuttingDown
            self._has_news = False
        if self.is_over:
            return {"type": "http.disconnect"}
        if not self.more_body:
            return {"type": "http.request", "body": self.take_complete() or b"", "more_body": False}
        parts, self._body, self._received_bytes = self._body or (), [], 0
        return {"type": "http.request", "body": b"".join(parts), "more_body": True}

    async def send(self, message: Message) -> None:
        """Write the head or a part of the body, when the client reads.

        Raises:
            RuntimeError: The message is not allowed now, or not valid.
        """
        if self._flow.write_paused and not self.has_happened:
            await self._flow.drain()
        if self.has_happened:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._write_head(message)
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._write_body(message)
        else:
            expected = "http.response.body" if self.response_started else "http.response.start"
            found = f"'{kind}' after the end" if self.response_complete else f"'{kind}'"
            raise RuntimeError(f"Expected ASGI message '{expected}', but got {found}.")

    def _write_head(self, message: Message) -> None:
        status: int = message["status"]
        connection = self._connection
        assert connection is not None
        # The server replaces the list each second.
        headers = [*connection.server_state.default_headers, *message.get("headers", ())]
        lines, by_name = header_lines(headers)
        if self.more_body and self._may_not_read_body():
            self.keep_alive = False
        if b"connection" in by_name and _says_close(headers):
            self.keep_alive = False
        elif not self.keep_alive:
            lines += b"connection: close\r\n"
        if b"transfer-encoding" in by_name and by_name[b"transfer-encoding"].lower() == b"chunked":
            self._left = _CHUNKED
        elif b"content-length" in by_name:
            self._left = int(by_name[b"content-length"])
        elif self._is_head or status in (204, 304):
            self._left = 0
        elif self._is_http_1_0:
            # Its client does not know chunked encoding (RFC 9112, 6.1). The response ends with the connection (6.3),
            # which closes after a request of this version.
            self._left = _UNTIL_CLOSED
        else:
            self._left = _CHUNKED
            lines += b"transfer-encoding: chunked\r\n"
        self.response_started = True
        self.waiting_for_100_continue = False
        head = b"%b%b\r\n" % (STATUS_LINE[status], lines)
        if "body" in message:
            self._held_head = head
            self._write_body(message)
        elif self._left > 0 and not self._is_head:
            # One write less: a system call, and for the client a second read.
            self._held_head = head
        else:
            self._transport.write(head)

    def _may_not_read_body(self) -> bool:
        """Whether a response that starts before the body is read has to close the connection.

        The rest of the body may be too large to be discarded, or may never come: after a final status a client can omit
        a body that waits for ``100 Continue`` (RFC 9110, 10.1.1), and the next request would be read as that body.
        """
        announced = self.announced_bytes
        return self.waiting_for_100_continue or announced is None or announced > MAX_DISCARDED_BYTES

    def _write_body(self, message: Message) -> None:
        data: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        left = self._left
        if self._is_head:
            self._left, data = 0, b""
        elif left >= 0:
            left -= len(data)
            if left < 0 or (left and is_last):
                raise RuntimeError(
                    f"Response content {'longer' if left < 0 else 'shorter'} than Content-Length"
                )
            self._left = left
        elif left == _CHUNKED:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if is_last:
                data += b"0\r\n\r\n"
        if self._held_head:
            data, self._held_head = self._held_head + data, b""
        if data:
            self._transport.write(data)
        if not is_last:
            return
        self.response_complete = self.is_over = True
        # Parts that the application has not read.
        self._body = None
        if self._news is not None:
            self._news.set()
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self.keep_alive:
                connection.close_after(self)
            connection.on_response_complete()

    @property
    def is_ready(self) -> bool:
        """Implement ``BodyWriter``."""
        # The head of a chunked response is never held.
        return self._left == _CHUNKED and not (self.is_over or self._flow.write_paused)

    def write(self, body: bytes) -> None:
        """Implement ``BodyWriter``."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def text_writer(self, start: bytes, end: bytes) -> Callable[[bytes], bool]:
        """Implement ``BodyWriter``."""
        flow, write = self._flow, self._transport.write
        size, last = len(start) + len(end), end + b"\r\n"

        def write_text(text: bytes) -> bool:
            # ``is_ready`` without the call, see ``turns.text_relay``.
            if flow.write_paused or self.is_over:
                return False
            write(size_lines[size + len(text)] + start + text + last)
            return True

        return write_text


def is_task_cancelled() -> bool:
    """Whether the task was cancelled: a library can raise ``CancelledError`` by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _says_close(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response asks for the end of the connection (RFC 9112, 9.6)."""
    return any(name == b"connection" and b"close" in value.lower() for name, value in headers)


def header_lines(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the lines of the headers of a response, whose names are in lower case, and their last values by name.

    Raises:
        RuntimeError: A name or a value is not valid.
    """
    lines, by_name = b"\r\n".join([*map(_line_of, headers), b""]), dict(headers)
    if (
        # What is left are the ends of the lines.
        lines.translate(None, _OF_VALUES) != b"\r\n" * len(headers)
        or b"".join(by_name).translate(None, _OF_NAMES)
        or b"" in by_name
    ):
        raise RuntimeError("Invalid HTTP header.")
    return lines, by_name
