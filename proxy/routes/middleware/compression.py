"""Compression of larger responses with gzip, if the client accepts it. Streams are never compressed.

It extends Starlette's middleware: a client can refuse gzip with ``q=0``, the ``text/plain`` streams of legacy endpoints
are not compressed, and the ``ETag`` of a compressed response is weak. The compressed bytes are different ones, and a
client that resumes a download must not combine both (RFC 9110, 8.8.1).

Only routes of the framework have this middleware. Chat completions and responses bypass the framework: their responses
are small, or streams, and the CPU time is needed for them.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.routes.server_extensions import START_WITH_BODY

SMALLEST_BYTES = 2048
"""Smaller responses fit into one or two packets."""
LEVEL = 5
"""Of zlib: 9 takes twice as long for almost the same size."""
THREAD_FROM_BYTES = 64 * 1024
"""Larger responses are compressed in a thread, so that the event loop is not blocked."""
NEVER = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "text/plain")
"""Types that are already compressed, and streams whose chunks must not be delayed."""


class Compression:
    """Compresses responses with gzip."""

    def __init__(self, app: ASGIApp) -> None:
        self._compressed = GZipMiddleware(
            app,
            minimum_size=SMALLEST_BYTES,
            compresslevel=LEVEL,
            thread_minimum_size=THREAD_FROM_BYTES,
            exclude_content_types=NEVER,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            # Starlette's middleware expects the body in the next messages.
            scope.get("extensions", {}).pop(START_WITH_BODY, None)
            if refuses_gzip(Headers(scope=scope).get("accept-encoding", "")):
                others = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
                scope = {**scope, "headers": others}
        await self._compressed(scope, receive, _with_weak_tags(send))


def refuses_gzip(accepted: str) -> bool:
    """Whether ``Accept-Encoding`` excludes gzip (``gzip;q=0``; RFC 9110, 12.4.2)."""
    for one in accepted.split(","):
        coding, _, parameters = one.partition(";")
        if coding.strip().lower() == "gzip":
            name, _, weight = parameters.strip().partition("=")
            return name.strip().lower() == "q" and not weight.strip().strip("0.")
    return False


def _with_weak_tags(send: Send) -> Send:
    # Plain function: a coroutine would add a frame to every streamed chunk.
    def send_weak(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            tag = headers.get("etag", "")
            if tag.startswith('"') and headers.get("content-encoding") == "gzip":
                headers["etag"] = f"W/{tag}"
        return send(message)

    return send_weak
