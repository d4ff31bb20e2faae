"""Streamable HTTP transport of MCP: the SDK's transport over connections that limit and check each response.

The SDK reads a JSON response of any size, and an exception in one request ends the whole session with all its calls.
Therefore each response is checked before the SDK receives it, and a bad response becomes an error of its request only.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
from mcp.client.streamable_http import streamable_http_client

from proxy.tools.mcp.failures import (
    CONNECTION_LOST,
    HTTP_ERROR,
    INVALID_MESSAGE,
    MESSAGE_TOO_LARGE,
    REASONS,
    SESSION_EXPIRED,
    UNAUTHORIZED,
    UNREACHABLE,
)
from proxy.tools.mcp.setup import HttpEndpoint

_WRITE_SECONDS = 30.0
_MAX_ERROR_BYTES = 64 * 1024
_SESSION = "mcp-session-id"


class GuardedTransport(httpx2.AsyncBaseTransport):
    """HTTP transport that returns a response to every request; a body other than an event stream has a size limit."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, *, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return the response, or a JSON-RPC error instead of a failure or an unusable response."""
        try:
            response = await self._inner.handle_async_request(request)
        except (httpx2.TransportError, OSError):
            return _error(UNREACHABLE)
        try:
            return await self._check(request, response)
        except (httpx2.TransportError, OSError):
            await response.aclose()
            return _error(CONNECTION_LOST)
        except BaseException:
            await response.aclose()
            raise

    async def _check(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_plain = response.headers.get("content-encoding", "identity").strip().lower() in ("", "identity")
        if response.is_success and is_plain and kind == "text/event-stream":
            # The SDK limits each event (``max_sse_event_size``).
            return response
        limit = self._max_bytes if response.is_success else _MAX_ERROR_BYTES
        # Redirects are passed to the SDK, which follows them only within the configured origin; it ignores the body.
        body = b"" if response.has_redirect_location else await _read(response, limit)
        await response.aclose()
        if body is None:
            return _error(MESSAGE_TOO_LARGE if response.is_success else HTTP_ERROR)
        if response.status_code == 404 and _SESSION in request.headers:
            return _error(SESSION_EXPIRED)
        if response.status_code >= 400 and not (kind == "application/json" and is_plain and _is_error(body)):
            return _error(UNAUTHORIZED if response.status_code in (401, 403) else HTTP_ERROR)
        if response.status_code == 200 and body and not (kind == "application/json" and is_plain):
            return _error(INVALID_MESSAGE)
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _FRAMING]
        return httpx2.Response(response.status_code, headers=headers, content=body)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


_FRAMING = ("content-encoding", "content-length", "transfer-encoding")


@asynccontextmanager
async def http_streams(
    address: HttpEndpoint, *, connect_seconds: float, max_bytes: int
) -> AsyncGenerator[Any]:
    """Provide the streams of a session with a server. Requests go only to the origin of the configured URL."""
    inner = httpx2.AsyncHTTPTransport(
        verify=await asyncio.to_thread(_ssl_context),
        trust_env=False,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
    )
    async with (
        httpx2.AsyncClient(
            transport=GuardedTransport(inner, max_bytes=max_bytes),
            headers={**address.headers, "Accept-Encoding": "identity"},
            # No read timeout: calls have their own limit, and an event stream can be idle for a long time.
            timeout=httpx2.Timeout(connect=connect_seconds, write=_WRITE_SECONDS, pool=None, read=None),
            trust_env=False,
        ) as client,
        streamable_http_client(address.url, http_client=client, max_sse_event_size=max_bytes) as streams,
    ):
        yield streams


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Trust the CAs of the system and of SSL_CERT_FILE, as for model providers. Loading takes 0.1 s: cached."""
    return ssl.create_default_context()


async def _read(response: httpx2.Response, max_bytes: int) -> bytes | None:
    """Return the body without decompression; None if it is longer than ``max_bytes``."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    body = bytearray()
    async for chunk in response.stream:
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def _is_error(body: bytes) -> bool:
    """Return whether a body is a JSON-RPC error, which is more specific than the HTTP status."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict)


def _error(code: int) -> httpx2.Response:
    """Return a response that the SDK reports as an error of the request; with the id null it fits any request."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": REASONS[code]}}
    return httpx2.Response(
        502, headers={"content-type": "application/json"}, content=msgspec.json.encode(error)
    )
