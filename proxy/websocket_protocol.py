"""WebSocket connections: uvicorn's protocol, with rejected handshakes in the error envelope, parsed in short steps.

Handshakes that the application rejects are responses of the application and have its headers. The others are rejected
here: a handshake that is not valid, and one whose application fails.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.server import ServerProtocol

from proxy.errors import ShuttingDown
from proxy.http_exchange import is_task_cancelled
from proxy.wire.errors import ErrorResponse, envelope, error_response, headers_of

STEP_BYTES = 8192
"""Bytes that are parsed in one step of the event loop. An empty frame has 6 and takes 2 to 20 µs."""


class EnvelopeServerProtocol(ServerProtocol):
    """Creates rejections as JSON instead of plain text."""

    def reject(self, status: Any, text: str) -> Response:
        """Return the response that rejects a handshake."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        # The first line; the others are addressed to people who open the address in a browser.
        message = text.strip().partition("\n")[0] or "The WebSocket handshake was rejected."
        return self.rejection(ErrorResponse(int(status), kind, message))

    def rejection(self, problem: ErrorResponse, request_id: str | None = None) -> Response:
        """Return the response that rejects a handshake with an error; without a request id, it has a new one."""
        response = super().reject(problem.status, "")
        response.body = envelope(problem)
        headers = {
            "Content-Length": str(len(response.body)),
            "Content-Type": "application/json",
            "x-request-id": request_id or f"req_{secrets.token_hex(16)}",
            **headers_of(problem),
        }
        for name, value in headers.items():
            if name in response.headers:
                del response.headers[name]
            response.headers[name] = value
        return response


class EnvelopeWebSocket(WebSocketsSansIOProtocol):
    """One WebSocket connection."""

    conn: EnvelopeServerProtocol

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Compression is off (``server_config``), so there are no extensions.
        self.conn = EnvelopeServerProtocol(
            max_size=self.config.ws_max_size, logger=logging.getLogger("uvicorn.error")
        )
        self._unparsed = bytearray()
        self._message = bytearray()

    def data_received(self, data: bytes) -> None:
        """Parse the data, in several steps of the event loop if frames have more than ``STEP_BYTES``."""
        if self._unparsed:
            self._unparsed += data
        elif not self.handshake_initiated:
            # The whole head, which ``handle_websocket_upgrade`` has written again.
            super().data_received(data)
            if not self.handshake_initiated:
                self._reject_unreadable(data)
        elif len(data) <= STEP_BYTES:
            super().data_received(data)
        else:
            self._unparsed += data
            self._parse_step()

    def _reject_unreadable(self, request: bytes) -> None:
        """Answer a request that is not a handshake; websockets 16 and older only close their side."""
        is_get = request.startswith(b"GET ")
        response = self.conn.reject(
            400 if is_get else 405,
            "The WebSocket handshake is not valid."
            if is_get
            else "A WebSocket handshake must be a GET request.",
        )
        if not is_get:
            response.headers["Allow"] = "GET"
        self.transport.write(response.serialize())
        self.transport.close()

    def shutdown(self) -> None:
        """Close when the server stops. A handshake that the application has not answered gets 503, like a request."""
        if self.handshake_complete or self.initial_response is not None:
            super().shutdown()
        elif not self.transport.is_closing():
            request_id = self.scope.get("state", {}).get("request_id")
            self.conn.send_response(self.conn.rejection(error_response(ShuttingDown()), request_id))
            self.transport.write(b"".join(self.conn.data_to_send()))
            # What the application sends now comes too late.
            self.handshake_complete = self.disconnected = True
            self.transport.close()

    def _parse_step(self) -> None:
        step = bytes(self._unparsed[:STEP_BYTES])
        del self._unparsed[:STEP_BYTES]
        if step and not self.transport.is_closing():
            super().data_received(step)
        if self._unparsed:
            # The end of the connection is read after the data.
            self.transport.pause_reading()
            self.loop.call_soon(self._parse_step)
        elif not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def handle_cont(self, event: Frame) -> None:
        """Add a fragment to its message.

        uvicorn's list takes memory for each fragment, of which a message can have any number if they are empty.
        """
        if self.frames:
            self._message = bytearray(self.frames.pop())
        self._message += event.data
        if event.fin:
            self.frames = [bytes(self._message)]
            self._message = bytearray()
            self.send_receive_event_to_app()

    async def run_asgi(self) -> None:
        """Run the application.

        Raises:
            CancelledError: The server stops and does not wait for the application; uvicorn would log it as a failure.
        """
        app, is_cancelled = self.app, False

        async def run(*arguments: Any) -> None:
            nonlocal is_cancelled
            try:
                await app(*arguments)
            except asyncio.CancelledError:
                is_cancelled = is_task_cancelled()
                if not is_cancelled:
                    raise
                # uvicorn closes the connection and logs nothing.
                raise ClientDisconnected from None

        self.app = run
        await super().run_asgi()
        if is_cancelled:
            raise asyncio.CancelledError

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]
        """Send a message of the application."""
        # Plain function: a coroutine would add a frame to every message.
        if message["type"] == "websocket.http.response.body":
            return self._send_rejection(message)
        return super().send(message)

    async def _send_rejection(self, message: Any) -> None:
        await super().send(message)
        if not message.get("more_body", False):
            # uvicorn sets this only after its own rejections, and logs an error after those of the application
            # ("ASGI callable returned without completing handshake").
            self.handshake_complete = True
