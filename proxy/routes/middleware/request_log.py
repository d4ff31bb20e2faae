"""The outermost middleware: request id, headers of every response, and one log line per request and WebSocket.

Plain ASGI: middleware that reads or wraps bodies would delay streams.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.errors import InternalTurnError
from proxy.log_record import constant_attributes, fields_record
from proxy.request_id import REQUEST_ID
from proxy.routes.request_body import headers_of
from proxy.tracing import accept_trace_context

logger = logging.getLogger("proxy.requests")

API_VERSION = b"2020-10-01"
"""The value of ``openai-version`` in responses of the official API."""

_CONSTANT_HEADERS = ((b"openai-version", API_VERSION), (b"vary", b"Origin"))

OnEnd = Callable[[str, int, str], None]


class _Sender(Struct):
    """Sends the messages of one response, with the headers of all responses.

    An object and not a function, which would hold a cell for each variable while a stream waits.
    """

    send: Send
    request_id: str
    facts: dict[str, object]
    started: float
    """By the monotonic clock."""
    status: int = 0
    """The status of the response; 0 before it starts, 101 for an accepted WebSocket."""

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def forward(self, message: Message) -> Awaitable[None]:
        """Send one message."""
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self.status = self.facts["status"] = message.get("status", 101)
            milliseconds = int((time.monotonic() - self.started) * 1000)
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                (b"openai-processing-ms", b"%d" % milliseconds),
                *_CONSTANT_HEADERS,
            ]
        return self.send(message)


class RequestContext:
    """Gives each request an id (``scope["state"]["request_id"]``) and logs its result without message contents.

    The id is also in the response headers of a WebSocket handshake. Its line is logged when the socket closes, with
    status 101, or when the handshake is rejected.
    """

    def __init__(self, app: ASGIApp, ended: OnEnd | None = None, *, is_traced: bool = False) -> None:
        """``ended`` is called with path, status and outcome of every request.

        With ``is_traced``, ``traceparent`` of a request is accepted.
        """
        self._app = app
        self._ended = ended
        self._is_traced = is_traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        request_id = f"req_{os.urandom(16).hex()}"
        facts: dict[str, object] = {"request_id": request_id}
        state = scope.setdefault("state", {})
        state["facts"], state["request_id"] = facts, request_id
        client_id = headers_of(scope).get("x-client-request-id")
        # The form that the official API accepts.
        if client_id and len(client_id) <= 512 and client_id.isascii() and client_id.isprintable():
            facts["client_request_id"] = client_id
        REQUEST_ID.set(request_id)
        if self._is_traced:
            accept_trace_context(scope["headers"])
        sender = _Sender(send, request_id, facts, time.monotonic())
        try:
            await self._app(scope, receive, sender.forward)
        except asyncio.CancelledError:
            facts["outcome"] = "cancelled"
            raise
        except Exception:
            if sender.status < 400 and scope["type"] == "http":
                facts["outcome"] = InternalTurnError.code
            raise
        finally:
            self._end(scope, facts, sender)

    def _end(self, scope: Scope, facts: dict[str, object], sender: _Sender) -> None:
        status = sender.status
        if self._ended is not None:
            outcome = facts.get("outcome", "ok" if status < 400 else "refused")
            self._ended(scope["path"], status, str(outcome))
        level = logging.INFO if status < 500 else logging.WARNING
        if logger.isEnabledFor(level):
            # A WebSocket handshake is a GET, and its scope has no method.
            facts["method"] = scope.get("method", "GET")
            facts["path"] = scope["path"][:200]
            facts["ms"] = round((time.monotonic() - sender.started) * 1000, 1)
            record = fields_record(_CONSTANT[level], facts)
            if logger.filters:
                # They can add attributes.
                logger.handle(logging.makeLogRecord(record.__dict__))
            else:
                # The rest of ``handle``: the logger is enabled.
                logger.callHandlers(record)


_CONSTANT = {
    level: constant_attributes(logger.name, level, "request") for level in (logging.INFO, logging.WARNING)
}
