"""Time limits of an HTTP connection, and requests that are rejected before they reach the application.

Such a response has the error envelope, but none of the headers that routes and middleware add.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from http import HTTPStatus

from proxy.http_exchange import HttpExchange
from proxy.http_responses import LingeringHttp
from proxy.wire.errors import ErrorResponse, envelope

logger = logging.getLogger(__name__)


class LimitedHttp(LingeringHttp):
    """Closes connections that wait for a request, or for the rest of one, for too long."""

    head_timeout = 30.0
    """Seconds in which a head has to be complete, and the rest of a body after an early response."""

    __slots__ = (
        "_body_deadline",
        "_deadline",
        "_head_bytes",
        "_idle_since",
        "_is_between_requests",
        "_is_in_head",
        "_is_refused",
        "_newest",
        "_problem",
    )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first head."""
        super().connection_made(transport)
        self._is_in_head = True
        self._is_between_requests = False
        self._head_bytes = 0
        self._problem: ErrorResponse | None = None
        self._is_refused = False
        self._newest: HttpExchange | None = None
        self._idle_since = 0.0
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(self.head_timeout, self._time_out)
        self._body_deadline: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all timers."""
        self._unset_keepalive_if_required()
        self._stop_deadline()
        self._stop_body_deadline()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or wait for one."""
        self.server_state.total_requests += 1
        if self.is_lingering:
            self.pipeline = ()
            return
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self.start(*self.pipeline.pop())
            return
        if self._problem is not None:
            self._send_problem(self._problem)
            return
        exchange = self._newest
        if exchange is not None and exchange.more_body:
            self._body_deadline = self.loop.call_later(self.head_timeout, self.close_slowly)
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

    def send_400_response(self, msg: str) -> None:
        """Reject what the parser rejects."""
        self._refuse(self._problem or bad_request(msg))

    def _time_out(self) -> None:
        self._deadline = None
        # Behind a request, how much of the next head came with it is not known.
        if self._head_bytes or self._newest is not None:
            message = f"The headers of the request did not arrive within {self.head_timeout:g} seconds."
            self._refuse(ErrorResponse(408, "invalid_request_error", message, "request_timeout"))
        else:
            self.transport.close()

    def _refuse(self, problem: ErrorResponse) -> None:
        """Send an error response, after those of earlier requests (RFC 9112, 9.3.2), and close."""
        self._stop_deadline()
        if self._is_refused or self.is_lingering or self.transport.is_closing():
            return
        self._is_refused = True
        self._problem = None
        exchange = self._newest
        if exchange is None or exchange.response_complete:
            # After an early response the error is in the body of a request that has its response.
            is_answered = exchange is not None and exchange.more_body and self._is_in_body
            self.close_slowly() if is_answered else self._send_problem(problem)
        elif not (exchange.more_body and self._is_in_body):
            self._problem = problem
        elif self.pipeline:
            # The invalid body belongs to the newest request, which has not started.
            self.pipeline.popleft()
            self._problem = problem
        elif exchange.response_started:
            exchange.keep_alive = False
        else:
            exchange.report_disconnect()
            self._send_problem(problem)

    @property
    def _is_in_body(self) -> bool:
        return not (self._is_in_head or self._is_between_requests)

    def _send_problem(self, problem: ErrorResponse) -> None:
        # Given, because the context can be that of an earlier request.
        request_id = f"req_{secrets.token_hex(16)}"
        logger.info("request rejected", extra={"request_id": request_id, "status": problem.status})
        body = envelope(problem)
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.close_slowly()

    def _check_idle(self) -> None:
        """Close a connection that waits for a request for too long.

        One timer checks the connection again and again: a timer for each request costs more than a comparison.
        """
        exchange = self._newest
        is_idle = self._is_between_requests and exchange is not None and exchange.response_complete
        left = self._idle_since + self.timeout_keep_alive - self.loop.time() if is_idle else math.inf
        # A timer may fire a little early.
        if left < 0.01:
            self.timeout_keep_alive_task = None
            self.transport.close()
            return
        delay = min(left, self.timeout_keep_alive)
        self.timeout_keep_alive_task = self.loop.call_later(delay, self._check_idle)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_body_deadline(self) -> None:
        if self._body_deadline is not None:
            self._body_deadline.cancel()
            self._body_deadline = None


def bad_request(message: str) -> ErrorResponse:
    """Return the error of a request that cannot be read."""
    return ErrorResponse(400, "invalid_request_error", message)
