"""Around every request: its id, the headers that every answer carries, and one log line.

Pure ASGI: a middleware that reads or wraps bodies would hold streams back.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("proxy.requests")

API_VERSION = b"2020-10-01"
"""What the official API sends as ``openai-version``."""


Ended = Callable[[str, int, str], None]


class RequestContext:
    """Gives each request an id (``scope["state"]["request_id"]``) and logs how it ended, without what was said."""

    def __init__(self, app: ASGIApp, ended: Ended | None = None) -> None:
        """``ended`` is told path, status and outcome of every request."""
        self._app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(16)}"
        facts: dict[str, object] = {"request_id": request_id}
        if named := _client_request_id(scope):
            facts["client_request_id"] = named
        scope.setdefault("state", {})["facts"] = facts
        scope["state"]["request_id"] = request_id
        began = time.monotonic()
        status = 0

        # Not a coroutine of its own: it is in the way of every chunk.
        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = facts["status"] = message["status"]
                took = int((time.monotonic() - began) * 1000)
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-version", API_VERSION),
                    (b"openai-processing-ms", b"%d" % took),
                    (b"vary", b"Origin"),
                ]
            return send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            if self._ended is not None:
                self._ended(
                    scope["path"], status, str(facts.get("outcome", "ok" if status < 400 else "refused"))
                )
            level = logging.INFO if status < 500 else logging.WARNING
            if logger.isEnabledFor(level):
                logger.log(
                    level,
                    "request",
                    extra={
                        **facts,
                        "method": scope["method"],
                        "path": scope["path"][:200],
                        "ms": round((time.monotonic() - began) * 1000, 1),
                    },
                )


def _client_request_id(scope: Scope) -> str | None:
    """Return what the client calls the request, if it is as the official API takes it."""
    for name, value in scope["headers"]:
        if name == b"x-client-request-id" and len(value) <= 512 and value.isascii():
            told: str = value.decode("ascii")
            return told if told.isprintable() else None
    return None
