"""WebSocket connections: uvicorn's protocol, with rejected handshakes in the error envelope.

Handshakes that the application rejects are responses of the application and have its headers. The others are rejected
here: a handshake that is not valid, and one whose application fails.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Response
from websockets.server import ServerProtocol

from proxy.wire.errors import ErrorResponse, envelope


class EnvelopeServerProtocol(ServerProtocol):
    """Creates rejections as JSON instead of plain text."""

    def reject(self, status: Any, text: str) -> Response:
        """Return the response that rejects a handshake."""
        response = super().reject(status, "")
        kind = "server_error" if response.status_code >= 500 else "invalid_request_error"
        # The first line; the others are addressed to people who open the address in a browser.
        message = text.strip().partition("\n")[0] or "The WebSocket handshake was rejected."
        response.body = envelope(ErrorResponse(response.status_code, kind, message))
        for name, value in (
            ("Content-Length", str(len(response.body))),
            ("Content-Type", "application/json"),
            ("x-request-id", f"req_{secrets.token_hex(16)}"),
        ):
            if name in response.headers:
                del response.headers[name]
            response.headers[name] = value
        return response


class EnvelopeWebSocket(WebSocketsSansIOProtocol):
    """One WebSocket connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Compression is off (``server_config``), so there are no extensions.
        self.conn = EnvelopeServerProtocol(
            max_size=self.config.ws_max_size, logger=logging.getLogger("uvicorn.error")
        )

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
