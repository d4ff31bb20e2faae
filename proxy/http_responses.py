"""The end of responses and connections: what uvicorn does differently from HTTP, or cannot know.

Closing a connection with unread input sends a TCP reset, which can discard the response before the client reads it
(RFC 9112, 9.6). A client that sends a large body and gets an early response (413, 401, 429) would see only the reset.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast
from weakref import ref

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.connection_state import ConnectionEvent, Pipeline
from proxy.routes.streaming import BODY_WRITER, DISCONNECT, Disconnect

LINGER_IDLE_SECONDS = 2.0
"""A lingering close ends when the client has sent nothing for this long, ..."""
LINGER_SECONDS = 30.0
"""... and after this time in any case. nginx has 5 and 30 seconds (``lingering_timeout``, ``lingering_time``)."""
MAX_DISCARDED_BYTES = 64 * 1024
"""After an early response, the rest of a body of at most this size is read and discarded, and the connection stays
usable. Clients would have to reconnect otherwise."""
_RESET = struct.pack("ii", 1, 0)
"""``SO_LINGER`` with a time of zero."""


class LingeringHttp(HttpToolsProtocol):
    """Closes a connection so that the last response reaches a client that is still sending.

    A connection whose client reads nothing is aborted after a time: a response to it would stay in memory.
    """

    stall_timeout = 60.0
    """Seconds in which a client has to read a part of what is written."""

    # An instance with more than 30 attributes in its dictionary takes a kilobyte more (CPython, dictobject.c).
    __slots__ = ("_linger", "_linger_until", "_running", "_stall", "is_lingering")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start a connection."""
        super().connection_made(transport)
        self.pipeline = cast("Any", Pipeline())
        self.flow._is_writable_event = cast("Any", ConnectionEvent(is_set=True))
        self.is_lingering = False
        self._linger: asyncio.TimerHandle | None = None
        self._linger_until = 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._running: ref[RequestResponseCycle] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        if self._linger is not None:
            self._linger.cancel()
        self._stop_stall_timer()
        cycle = self._running() if self._running is not None else None
        if cycle is not None and not cycle.response_complete:
            # ``self.cycle``, to which uvicorn reports it, is the newest pipelined request, which has not started.
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        self.report_disconnect()

    def report_disconnect(self) -> None:
        """Report to the running request that its client has gone."""
        cycle = self._running() if self._running is not None else None
        if cycle is not None and cycle.disconnected:
            extensions: Any = cycle.scope.get("extensions", {})
            if (disconnect := extensions.get(DISCONNECT)) is not None:
                disconnect.happen()

    def pause_writing(self) -> None:
        """Wait for the client, which reads more slowly than the application writes."""
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        """Continue: the client has read most of what was written."""
        super().resume_writing()
        self._stop_stall_timer()

    def _start_stall_timer(self) -> None:
        self._stop_stall_timer()
        self._stall = self.loop.call_later(self.stall_timeout, self._check_progress, self._unread())

    def _stop_stall_timer(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _unread(self) -> int:
        """Return the number of bytes that the client has not received.

        The kernel accepts data again only when a third of its send buffer is free, which can be more than a megabyte.
        """
        connection = self.transport.get_extra_info("socket")
        try:
            # tcp(7), SIOCOUTQ: bytes in the send buffer that are not acknowledged.
            queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            queued = b""
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _check_progress(self, unread: int) -> None:
        if self._unread() < unread:
            self._start_stall_timer()
            return
        # A reset frees the send buffer of the kernel too, which has up to 4 MB: it would wait for the client.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Run the application for one request."""
        cycle.message_event = cast("Any", ConnectionEvent(is_set=cycle.message_event.is_set()))
        # Weak references: as a part of a cycle, each request would wait for the garbage collector.
        weak = self._running = ref(cycle)
        cast("Any", cycle.scope)["extensions"] = {
            DISCONNECT: Disconnect(),
            BODY_WRITER: ChunkedBodyWriter(weak),
        }
        cycle.transport = cast("Any", CycleTransport(self.transport, partial(self._close_after, weak)))
        if cycle.more_body:
            app = cast("Any", closing_early(cycle, app))
        if cycle.scope["http_version"] == "1.0":
            app = cast("Any", ended_by_closing(cycle, app))
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or wait for one, unless the connection is closing."""
        if self.is_lingering:
            self.server_state.total_requests += 1
            self.pipeline.clear()
            return
        super().on_response_complete()

    def _close_after(self, cycle: ref[RequestResponseCycle]) -> None:
        """Close the connection after a response; slowly if the client may still send."""
        answered = cycle()
        if (answered is not None and answered.more_body) or self.pipeline:
            self.close_slowly()
        else:
            self.transport.close()

    def close_slowly(self) -> None:
        """Send what is written and the end of the stream, discard input for a while, then close."""
        if self.is_lingering or self.transport.is_closing():
            return
        self.is_lingering = True
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._linger_until = self.loop.time() + LINGER_SECONDS
        self.keep_lingering()

    def shutdown(self) -> None:
        """Close when the server stops; a lingering close ends at once."""
        if self.is_lingering:
            self.transport.close()
        else:
            super().shutdown()

    def keep_lingering(self) -> None:
        """Restart the idle timeout of a lingering close."""
        if self._linger is not None:
            self._linger.cancel()
        seconds = min(LINGER_IDLE_SECONDS, max(self._linger_until - self.loop.time(), 0.0))
        self._linger = self.loop.call_later(seconds, self.transport.abort)


class ChunkedBodyWriter:
    """Implements ``routes.streaming.BodyWriter`` for a response with chunked encoding (RFC 9112, 7.1)."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: ref[RequestResponseCycle]) -> None:
        self._cycle = cycle

    @property
    def is_ready(self) -> bool:
        """Whether the response has started, is chunked, and the client reads it."""
        cycle = self._cycle()
        # ``chunked_encoding`` is None before the start, and if the response has no body.
        return (
            cycle is not None
            and bool(cycle.chunked_encoding)
            and not (cycle.flow.write_paused or cycle.disconnected or cycle.response_complete)
        )

    def write(self, body: bytes) -> None:
        """Write a chunk."""
        cycle = self._cycle()
        assert cycle is not None, "the task of the request, which writes, refers to it"
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))


class CycleTransport:
    """The transport of one request and response: the three methods that uvicorn uses, with another ``close``."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def closing_early(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """Return the application for a request whose body is incomplete.

    A response that starts before the body is read announces that the connection closes if the rest of the body is
    too large to be discarded, or may never come: after a final status a client can omit a body that waits for
    ``100 Continue`` (RFC 9110, 10.1.1), and the next request would be read as that body.
    """

    # Plain functions: a coroutine would add a frame to every streamed chunk.
    def respond(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        def send_closing(message: Message) -> Any:
            if message["type"] == "http.response.start" and cycle.more_body:
                is_small = _announced_length(cycle) <= MAX_DISCARDED_BYTES
                if cycle.waiting_for_100_continue or not is_small:
                    cycle.keep_alive = False
            return send(message)

        return app(scope, receive, send_closing)

    return respond


def _announced_length(cycle: RequestResponseCycle) -> float:
    """Return the length of a body, infinite for a chunked one."""
    lengths = [value for name, value in cycle.scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else float("inf")


def ended_by_closing(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """Return the application for a client of HTTP/1.0, which does not know chunked encoding (RFC 9112, 6.1).

    A response without Content-Length ends when the connection closes (6.3). uvicorn would send chunks.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        has_length = True

        async def send_unchunked(message: Message) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
                cycle.chunked_encoding = None if has_length else False
            elif not has_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unchunked)

    return respond
