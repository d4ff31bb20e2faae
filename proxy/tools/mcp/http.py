"""The way to a server that is asked over streamable HTTP: the SDK's, over connections that are guarded.

The SDK reads a JSON answer of any size, and an exception in one request ends the whole session with everything that
runs over it. So each answer is looked at before the SDK gets it: what is wrong with it becomes an error of the one
request that it answers.
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
    BAD_STATUS,
    BROKEN_OFF,
    OURS,
    REFUSED,
    SESSION_OVER,
    TOO_MUCH,
    UNREACHABLE,
    UNREADABLE,
)
from proxy.tools.mcp.setup import Address

_WRITE_SECONDS = 30.0
_MAX_ERROR_BYTES = 64 * 1024
_SESSION = "mcp-session-id"


class Guard(httpx2.AsyncBaseTransport):
    """Answers every request, and with no more than ``max_bytes`` unless it is a stream of events."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, *, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, and return an answer that can be read without harm."""
        try:
            response = await self._inner.handle_async_request(request)
        except (httpx2.TransportError, OSError):
            return _error(UNREACHABLE)
        try:
            return await self._looked_at(request, response)
        except (httpx2.TransportError, OSError):
            await response.aclose()
            return _error(BROKEN_OFF)
        except BaseException:
            await response.aclose()
            raise

    async def _looked_at(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_plain = response.headers.get("content-encoding", "identity").strip().lower() in ("", "identity")
        if response.is_success and is_plain and kind == "text/event-stream":
            # The SDK bounds its events one by one.
            return response
        most = self._max_bytes if response.is_success else _MAX_ERROR_BYTES
        # A redirect is the SDK's to judge, which stays at the origin that the operator set; its body is nobody's.
        body = b"" if response.has_redirect_location else await _read(response, most)
        await response.aclose()
        if body is None:
            return _error(TOO_MUCH if response.is_success else BAD_STATUS)
        if response.status_code == 404 and _SESSION in request.headers:
            return _error(SESSION_OVER)
        if response.status_code >= 400 and not (kind == "application/json" and is_plain and _is_error(body)):
            return _error(REFUSED if response.status_code in (401, 403) else BAD_STATUS)
        if response.status_code == 200 and body and not (kind == "application/json" and is_plain):
            return _error(UNREADABLE)
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _FRAMING]
        return httpx2.Response(response.status_code, headers=headers, content=body)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


_FRAMING = ("content-encoding", "content-length", "transfer-encoding")


@asynccontextmanager
async def http_streams(address: Address, *, connect_seconds: float, max_bytes: int) -> AsyncGenerator[Any]:
    """Give the streams of a session with a server; only its own origin is ever asked."""
    inner = httpx2.AsyncHTTPTransport(
        verify=await asyncio.to_thread(_authorities),
        trust_env=False,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
    )
    async with (
        httpx2.AsyncClient(
            transport=Guard(inner, max_bytes=max_bytes),
            headers={**address.headers, "Accept-Encoding": "identity"},
            # Who waits for an answer has a limit of its own, and a stream of events may be silent for long.
            timeout=httpx2.Timeout(connect=connect_seconds, write=_WRITE_SECONDS, pool=None, read=None),
            trust_env=False,
        ) as client,
        streamable_http_client(address.url, http_client=client, max_sse_event_size=max_bytes) as streams,
    ):
        yield streams


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Whom to trust, as with models: the system's authorities, and those of SSL_CERT_FILE; a tenth of a second."""
    return ssl.create_default_context()


async def _read(response: httpx2.Response, most: int) -> bytes | None:
    """Return the body as it came; None when it is longer than ``most`` bytes."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    body = bytearray()
    async for chunk in response.stream:
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _is_error(body: bytes) -> bool:
    """Whether a body is an error of JSON-RPC, which says more than a status."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict)


def _error(code: int) -> httpx2.Response:
    """Return an answer that the SDK takes for an error of the request, whatever its id is."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": OURS[code]}}
    return httpx2.Response(
        502, headers={"content-type": "application/json"}, content=msgspec.json.encode(error)
    )
