"""Answers of some size are compressed for those who can take it; streams never are.

Starlette's middleware does the work. What is added: no compression for who refuses it by ``q=0``, none of the
``text/plain`` streams of older clients, and an ``ETag`` of a compressed answer is a weak one, because these are other
bytes: a download that is taken up again in the middle would mix the two.

It stands around the framework's routes only. The short ways (chat completions, responses) go without: their answers
are small, or streams, and their CPU is what the server is there for.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALLEST_BYTES = 2048
"""Less fits into one packet or two, and is sent as fast as it is compressed."""
LEVEL = 5
"""Of zlib: 9 takes twice as long for next to nothing."""
APART_FROM_BYTES = 64 * 1024
"""So much is compressed in a thread, where it holds nobody up."""
NEVER = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "text/plain")
"""Types that are compressed already, and streams whose every piece has to arrive at once."""


class Compression:
    """Compresses with gzip."""

    def __init__(self, app: ASGIApp) -> None:
        self._compressed = GZipMiddleware(
            app,
            minimum_size=SMALLEST_BYTES,
            compresslevel=LEVEL,
            thread_minimum_size=APART_FROM_BYTES,
            exclude_content_types=NEVER,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and refuses_gzip(Headers(scope=scope).get("accept-encoding", "")):
            others = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = {**scope, "headers": others}
        await self._compressed(scope, receive, _with_weak_tags(send))


def refuses_gzip(accepted: str) -> bool:
    """Whether an ``Accept-Encoding`` names gzip only to say that it is not wanted."""
    for one in accepted.split(","):
        coding, _, parameters = one.partition(";")
        if coding.strip().lower() == "gzip":
            name, _, weight = parameters.strip().partition("=")
            return name.strip().lower() == "q" and not weight.strip().strip("0.")
    return False


def _with_weak_tags(send: Send) -> Send:
    # Not a coroutine of its own: it is in the way of every chunk.
    def send_weak(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            tag = headers.get("etag", "")
            if tag.startswith('"') and headers.get("content-encoding") == "gzip":
                headers["etag"] = f"W/{tag}"
        return send(message)

    return send_weak
