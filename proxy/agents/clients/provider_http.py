"""HTTP to providers: the connections of a process, how one is let go, and what their errors mean."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import aiohttp
from aiohttp import http_exceptions

from proxy.errors import UpstreamFailed, UpstreamUnreachable

_ERROR_BODY_BYTES = 64 * 1024
_FOR_ERROR_BODY = 2.0
"""Seconds."""
TRANSPORT_ERRORS = (aiohttp.ClientError, http_exceptions.HttpProcessingError, OSError, RuntimeError)
"""What aiohttp raises when a connection fails. It has a bare ``RuntimeError`` for a read after the loss."""


class HttpSession:
    """The connections of one process, opened when they are first needed."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def get(self) -> aiohttp.ClientSession:
        """Return the session; must be called inside the loop that it is for."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # How many calls run at once is decided where turns are admitted, not by a queue down here.
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session

    async def close(self) -> None:
        """Close every connection; ``get`` opens anew."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def error_body(response: aiohttp.ClientResponse) -> bytes:
    """Return what can be had of it; the status alone says the most."""
    body = bytearray()
    try:
        async with asyncio.timeout(_FOR_ERROR_BODY):
            while len(body) < _ERROR_BODY_BYTES and (received := await response.content.readany()):
                body += received
    except (TimeoutError, *TRANSPORT_ERRORS):
        pass
    finally:
        abort(response)
    return bytes(body[:_ERROR_BODY_BYTES])


def abort(response: aiohttp.ClientResponse) -> None:
    """Let go of the connection at once; one that was read to its end has been given back already."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        # Closing would wait for the other side of TLS to agree.
        connection.transport.abort()
    response.close()


def watch(response: aiohttp.ClientResponse, on_loss: Callable[[], None]) -> Callable[[], object]:
    """Have ``on_loss`` called when the connection is lost; calling what is returned ends the watch.

    aiohttp 3.14 closes the connection on bad chunk framing and leaves its reader waiting.
    """
    connection = response.connection
    if connection is None or connection.protocol is None:
        return _nothing
    lost = connection.protocol.closed
    if lost is None:
        on_loss()
        return _nothing

    def tell(_: asyncio.Future[None]) -> None:
        on_loss()

    # The future outlives this answer: somebody has to look at its exception, or asyncio complains that nobody
    # did.
    lost.remove_done_callback(_look_at)
    lost.add_done_callback(_look_at)
    lost.add_done_callback(tell)
    return lambda: lost.remove_done_callback(tell)


def unreachable(error: Exception) -> UpstreamFailed:
    """Return what an exception before the head of an answer means."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return UpstreamUnreachable("dns", is_retryable=True)
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return UpstreamUnreachable("tls")
        case aiohttp.ConnectionTimeoutError():
            return UpstreamUnreachable("connect_timeout", is_retryable=True)
        case aiohttp.ClientConnectorError():
            return UpstreamUnreachable("refused", is_retryable=True)
        case aiohttp.InvalidURL():
            return UpstreamUnreachable("refused")
        case _:
            return UpstreamUnreachable("broken", is_retryable=True)


def _nothing() -> None:
    """There is no watch to end."""


def _look_at(lost: asyncio.Future[None]) -> None:
    if not lost.cancelled():
        lost.exception()
