"""Connections whose responses have a maximum size, for packages that read a response, or an event, as a whole."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx

MAX_BYTES = 16 * 1024 * 1024
"""Of a response, and of each event of a stream."""
_MAX_LINES = 10_000
"""Lines of an event. Packages read it line by line, which takes seconds for millions of short ones."""
_BLANK_LINE = re.compile(rb"\r?\n\r?\n|\r\r")
_TAIL = 3
"""Bytes of a blank line that the network can cut off."""


class BoundedTransport(httpx.AsyncHTTPTransport):
    """Raises ``httpx.ReadError`` while a response is read that is too large, and for compressed ones.

    The content of a compressed response can be a thousand times larger, so none is requested.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the stream of its response is bounded."""
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            await response.aclose()
            raise httpx.ReadError("the response is compressed", request=request)
        is_events = response.headers.get("Content-Type", "").startswith("text/event-stream")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _BoundedStream(response.stream, request, is_events=is_events)
        return response


def _lines(data: bytes) -> int:
    """Return about how many lines end for httpx, which also ends them at a lone CR and at the separators of Unicode."""
    return len(f"{data.decode(errors='replace')}.".splitlines()) - 1


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, request: httpx.Request, *, is_events: bool) -> None:
        self._stream = stream
        self._request = request
        self._is_events = is_events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, lines, tail = 0, 0, b""
        async for received in self._stream:
            size += len(received)
            if self._is_events:
                searched = tail + received
                ends = [one.end() for one in _BLANK_LINE.finditer(searched)]
                if ends:
                    size, lines = len(searched) - ends[-1], _lines(searched[ends[-1] :])
                else:
                    lines += _lines(received)
                tail = searched[-_TAIL:]
            if size > MAX_BYTES or lines > _MAX_LINES:
                raise httpx.ReadError("the response is too large", request=self._request)
            yield received

    async def aclose(self) -> None:
        await self._stream.aclose()
