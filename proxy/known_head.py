"""Request heads that a connection repeats, which are checked and decoded once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from proxy.http_head import RawHeaders
from proxy.routes.request_body import RequestHeaders, decoded_headers

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
_MAX_DIGITS = 16
_MAX_BYTES = 4096
"""Larger heads are not held in memory, where they take three times their size."""
_OF_ONE_REQUEST = ("headers", "state", "extensions")
_name_of = itemgetter(0)
_NOT_REPEATED = frozenset((b"transfer-encoding", b"upgrade", b"expect"))


class KnownHead:
    """A head that the parser and the checks have accepted, for the requests of its connection that repeat it.

    Clients send the same head again and again, with another ``Content-Length``. Nothing else of it may differ, so its
    meaning is the same, and the parser is not needed to know where the body ends.
    """

    __slots__ = ("_decoded", "_end", "_headers", "_length_at", "_scope", "_start", "_start_bytes")

    def __init__(self, start: bytes, end: bytes, scope: Mapping[str, Any], length_at: int) -> None:
        """``start`` and ``end`` are what precedes and follows the digits of ``Content-Length``.

        ``length_at`` is the index of that header.
        """
        self._start = start
        self._start_bytes = len(start)
        self._end = end
        self._scope = dict(scope)
        for name in _OF_ONE_REQUEST:
            self._scope.pop(name, None)
        # A copy: the application can change the list of its request.
        self._headers: RawHeaders = [*scope["headers"]]
        self._length_at = length_at
        self._decoded: RequestHeaders | None = None
        """Without ``Content-Length``; None until a request needs them."""

    def read(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return the digits of ``Content-Length`` and what follows the head; None if the data have another head."""
        if not data.startswith(self._start):
            return None
        # ``_end`` ends with an empty line, which neither ``_start`` nor digits have.
        head, end, body = data.partition(self._end)
        digits = head[self._start_bytes :]
        if not (end and digits.isdigit() and len(digits) < _MAX_DIGITS):
            return None
        return digits, body

    def scope_of(self, digits: bytes, state: dict[str, Any]) -> dict[str, Any]:
        """Return the ASGI scope of a request with this ``Content-Length`` and ``state``, to which headers are added."""
        if self._decoded is None:
            self._decoded = decoded_headers([one for one in self._headers if one[0] != b"content-length"])
            self._decoded.are_shared = True
        headers = self._headers.copy()
        headers[self._length_at] = (b"content-length", digits)
        scope = self._scope.copy()
        scope["headers"] = headers
        scope["state"] = {**state, "headers": self._decoded}
        return scope


def known_head(data: bytes, scope: Mapping[str, Any]) -> KnownHead | None:
    """Return the head at the beginning of ``data``, which belongs to a valid request of HTTP/1.1 that was accepted.

    None if other requests cannot repeat it: the body has no ``Content-Length``, the head needs more than an answer, or
    is large.
    """
    # Connections whose heads differ need one for each request.
    names = [*map(_name_of, scope["headers"])]
    if names.count(b"content-length") != 1 or not _NOT_REPEATED.isdisjoint(names):
        return None
    head = data[: data.find(b"\r\n\r\n", 0, _MAX_BYTES) + 4]
    # Each line ends with CRLF, so a name at the beginning of a line is that of a header.
    if not head.count(b"\n") == head.count(b"\r\n") == len(names) + 2:
        return None
    found = _CONTENT_LENGTH.search(head)
    if found is None:
        return None
    begin, end = found.span(1)
    return KnownHead(head[:begin], head[end:], scope, names.index(b"content-length"))
