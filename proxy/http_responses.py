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
from typing import Any, cast

from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.connection_state import ConnectionEvent
from proxy.http_exchange import HttpExchange

LINGER_IDLE_SECONDS = 2.0
"""A lingering close ends when the client has sent nothing for this long, ..."""
LINGER_SECONDS = 30.0
"""... and after this time in any case. nginx has 5 and 30 seconds (``lingering_timeout``, ``lingering_time``)."""
_RESET = struct.pack("ii", 1, 0)
"""``SO_LINGER`` with a time of zero."""


class LingeringHttp(HttpToolsProtocol):
    """Closes a connection so that the last response reaches a client that is still sending.

    A connection whose client reads nothing is aborted after a time: a response to it would stay in memory.
    """

    stall_timeout = 60.0
    """Seconds in which a client has to read a part of what is written."""

    # An instance with more than 30 attributes in its dictionary takes a kilobyte more (CPython, dictobject.c).
    __slots__ = ("_linger", "_linger_seconds", "_linger_until", "_running", "_stall", "is_lingering")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start a connection."""
        super().connection_made(transport)
        # uvicorn's deque takes 760 bytes, and most connections never need one. Only this package uses it.
        self.pipeline: Any = ()
        self.flow._is_writable_event = cast("Any", ConnectionEvent(is_set=True))
        self.is_lingering = False
        self._linger: asyncio.TimerHandle | None = None
        self._linger_until = 0.0
        self._linger_seconds = LINGER_SECONDS
        self._stall: asyncio.TimerHandle | None = None
        self._running: HttpExchange | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        if self._linger is not None:
            self._linger.cancel()
        self._stop_stall_timer()
        # The newest request, which is ``self.cycle``, has not started if it is pipelined.
        newest: Any = self.cycle
        for exchange in (self._running, newest):
            if exchange is not None and not exchange.response_complete:
                exchange.report_disconnect()
        # uvicorn would report it through an event that the exchange does not have.
        self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)

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

    def start(self, exchange: HttpExchange, scope: dict[str, Any]) -> None:
        """Run the application for one request."""
        self._running = exchange
        app: Any = self.app
        if (limit := self.limit_concurrency) is not None:
            is_busy = len(self.connections) >= limit or len(self.tasks) >= limit
            app = service_unavailable if is_busy else app
        task = self.loop.create_task(exchange.run(app, scope))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def close_after(self, exchange: HttpExchange) -> None:
        """Implement ``ExchangeConnection``: close slowly if the client may still send."""
        if exchange.more_body or self.pipeline:
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
            try:
                self.transport.write_eof()
            except OSError:
                # The client has answered with a reset, which a connection whose reading is paused would never notice.
                self.transport.abort()
                return
        self.flow.resume_reading()
        self._linger_until = self.loop.time() + self._linger_seconds
        self.keep_lingering()

    def shutdown(self) -> None:
        """Close when the server stops, after the response to a request that has arrived completely.

        A lingering close ends at once, a later one soon. A body can take any time, so it is not waited for.
        """
        if self.is_lingering:
            self.transport.close()
            return
        super().shutdown()
        self._linger_seconds = LINGER_IDLE_SECONDS
        # The newest request: only its body can be incomplete.
        exchange: Any = self.cycle
        if exchange is not None:
            exchange.stop_waiting_for_body()

    def keep_lingering(self) -> None:
        """Restart the idle timeout of a lingering close."""
        if self._linger is not None:
            self._linger.cancel()
        seconds = min(LINGER_IDLE_SECONDS, max(self._linger_until - self.loop.time(), 0.0))
        self._linger = self.loop.call_later(seconds, self.transport.abort)
