"""HTTP as uvicorn reads it, with bounds on the head of a request, and errors in the envelope.

What is refused here never becomes a request: there is no route, no log line of a request, and no key is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from http import HTTPStatus
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.wire.errors import Problem, envelope

logger = logging.getLogger(__name__)

_LINGER = 1.0
"""Seconds."""
HEAD_BYTES = 64 * 1024
"""Request line and headers together, as the official API has it."""


class BoundedHttp(HttpToolsProtocol):
    """One connection of a client."""

    head_timeout = 30.0
    """Seconds in which a head has to come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; somebody who says nothing does not keep it."""
        super().connection_made(transport)
        self._is_in_head = True
        self._is_refused = False
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(self.head_timeout, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if self._is_refused:
            return
        super().data_received(data)
        if not self._is_in_head:
            self._stop_waiting()
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse(Problem(431, "invalid_request_error", "The headers of the request are too large."))
        elif self._deadline is None and not self._is_refused:
            self._deadline = self.loop.call_later(self.head_timeout, self._give_up)

    def on_message_begin(self) -> None:
        """Take the first byte of a request."""
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take the end of a head."""
        self._is_in_head = False
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Answer; a client of HTTP/1.0 in its own way."""
        if cycle.scope["http_version"] == "1.0":
            app = cast("Any", _ended_by_closing(cycle, app))
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(Problem(400, "invalid_request_error", msg))

    def _give_up(self) -> None:
        self._deadline = None
        if self._head_bytes:
            message = f"The headers of the request did not come within {self.head_timeout:g} seconds."
            self._refuse(Problem(408, "invalid_request_error", message, "request_timeout"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        self._stop_waiting()
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # Another answer is on its way: nothing can be put into it.
            self.transport.close()
            return
        logger.info("not a request", extra={"status": problem.status})
        body = envelope(problem)
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: req_{secrets.token_hex(16)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._close_slowly()

    def _close_slowly(self) -> None:
        """Let the answer arrive: closing while the client still sends would take it back."""
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _ended_by_closing(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """Return the application for a client that knows no chunks: its body ends with the connection.

    uvicorn writes chunks for everybody whose answer has no length, unless it thinks that it knows one.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        has_length = True

        async def send_bare(message: Message) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
                cycle.chunked_encoding = None if has_length else False
            elif not has_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_bare)

    return answer


def bounded_http(head_timeout: float) -> type[BoundedHttp]:
    """Return the protocol with this limit, in seconds."""
    return type("BoundedHttp", (BoundedHttp,), {"head_timeout": head_timeout})
