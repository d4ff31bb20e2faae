"""Request heads that a connection repeats, which are checked and decoded once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proxy.http_head import RawHeaders
from proxy.routes.request_body import RequestHeaders, decoded_headers

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_MAX_DIGITS = 16
_MAX_BYTES = 8192
"""Larger heads are not held in memory."""
_NOT_REPEATED = frozenset((b"transfer-encoding", b"upgrade", b"expect"))


class KnownHead:
    """A head that the parser and the checks have accepted, for the requests of its connection that repeat it.

    Clients send the same head again and again, with another ``Content-Length``. Nothing else of it may differ, so its
    meaning is the same, and the parser is not needed to know where the body ends.
    """

    __slots__ = ("_end", "_headers", "_start", "decoded", "method", "path", "query", "raw_path")

    def __init__(self, start: bytes, end: bytes, scope: Mapping[str, Any]) -> None:
        """``start`` and ``end`` are what precedes and follows the digits of ``Content-Length``."""
        self._start = start
        self._end = end
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        # A copy: the application can change the list of its request.
        self._headers: tuple[tuple[bytes, bytes], ...] = (*scope["headers"],)
        self.decoded: RequestHeaders | None = None
        """The headers without ``Content-Length``, once the head was repeated."""

    def body_of(self, data: bytes) -> tuple[bytes, int] | None:
        """Return the digits of ``Content-Length`` and where the body begins; None if the data have another head."""
        if not data.startswith(self._start):
            return None
        begin = len(self._start)
        end = data.find(b"\r", begin, begin + _MAX_DIGITS)
        digits = data[begin:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._end, end):
            return None
        return digits, end + len(self._end)

    def repeated(self, digits: bytes) -> RawHeaders:
        """Return the headers of a request with this ``Content-Length``; sets ``decoded``."""
        if self.decoded is None:
            self.decoded = decoded_headers([one for one in self._headers if one[0] != b"content-length"])
        return [one if one[0] != b"content-length" else (one[0], digits) for one in self._headers]


def known_head(data: bytes, scope: Mapping[str, Any]) -> KnownHead | None:
    """Return the head at the beginning of ``data``, which belongs to a valid request of HTTP/1.1 that was accepted.

    None if other requests cannot repeat it: the body has no ``Content-Length``, the head needs more than an answer, or
    is large.
    """
    names = [name for name, _ in scope["headers"]]
    if names.count(b"content-length") != 1 or not _NOT_REPEATED.isdisjoint(names):
        return None
    head = data[: data.find(b"\r\n\r\n", 0, _MAX_BYTES) + 4]
    # Each line ends with CRLF, so a name at the beginning of a line is that of a header.
    if not head.count(b"\n") == head.count(b"\r\n") == len(names) + 2:
        return None
    found = _CONTENT_LENGTH.search(head)
    return None if found is None else KnownHead(head[: found.start(1)], head[found.end(1) :], scope)
