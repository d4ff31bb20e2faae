"""Checks of a request head that the HTTP parser does not make: version, ``Host``, request target, transfer coding.

A head that is ambiguous is rejected. Two programs that read it differently, a reverse proxy and this server, would
otherwise disagree about the host that is called or about the end of the request (RFC 9112, 11.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from proxy.wire.errors import ErrorResponse

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together, as in the official API."""

CHECKED_HEADERS = frozenset((b"host", b"content-length", b"transfer-encoding", b"upgrade", b"expect"))
"""Headers that have a meaning for the connection."""

RawHeaders = list[tuple[bytes, bytes]]

# RFC 9110, 7.2 and RFC 3986, 3.2.2. Names of containers can have underscores, which both allow.
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


Target = tuple[bytes, bytes | None]
"""A request target in origin-form, and the authority of an absolute-form target, else None."""


def read_target(target: bytes, method: bytes) -> Target | None:
    """Return the request target in origin-form; None if it has none of the forms that this server accepts.

    Servers have to accept the absolute-form in every request (RFC 9112, 3.2.2). The asterisk-form of ``OPTIONS``
    (3.2.4) is about the whole server; it is read as the root.
    """
    if target.startswith(b"/"):
        return target, None
    if target == b"*" and method == b"OPTIONS":
        return b"/", None
    found = _ABSOLUTE.fullmatch(target)
    # An authority with user information or without a host is invalid (RFC 9110, 4.2.1 and 4.2.4).
    if found is None or found[1].startswith(b":") or not found[1] or _HOST.fullmatch(found[1]) is None:
        return None
    return (found[2] if found[2].startswith(b"/") else b"/" + found[2]), found[1]


def head_bytes(url: bytes, headers: RawHeaders) -> int:
    """Return the size of a head without white space and the rest of the request line."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def head_problem(
    version: str, method: bytes, headers: RawHeaders, target: Target | None
) -> ErrorResponse | None:
    """Return the reason to reject a head, or None.

    ``headers`` are the ``CHECKED_HEADERS`` in lower case, ``target`` is the result of ``read_target``.
    """
    if version == "0.9":
        return _problem(400, "The request line has no HTTP version.")
    if version not in ("1.0", "1.1"):
        return _problem(505, f"HTTP/{version} is not supported. Use HTTP/1.1.")
    hosts, codings, offers_websocket = [], [], False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
        elif name == b"upgrade" and value.strip().lower() == b"websocket":
            offers_websocket = True
    if method == b"CONNECT":
        return _problem(501, "The method CONNECT is not supported.")
    if target is None:
        return _problem(400, "The request target is invalid.")
    if offers_websocket and body_headers(headers):
        return _problem(400, "A WebSocket handshake cannot have a body.")
    return _host_problem(version, hosts) or (_coding_problem(version, codings) if codings else None)


def head_too_large() -> ErrorResponse:
    """Return the error of a head over ``MAX_HEAD_BYTES``."""
    return _problem(431, "The headers of the request are too large.")


def body_headers(headers: RawHeaders) -> RawHeaders:
    """Return the headers that announce a body; none if the request has no body, or an empty one."""
    return [
        (name, value)
        for name, value in headers
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0"))
    ]


def _host_problem(version: str, hosts: Sequence[bytes]) -> ErrorResponse | None:
    """RFC 9112, 3.2: HTTP/1.1 requires one ``Host``; several, or an invalid value, are rejected with 400."""
    if not hosts and version == "1.1":
        return _problem(400, "The request has no Host header.")
    if len(hosts) > 1:
        return _problem(400, "The request has more than one Host header.")
    if hosts and _HOST.fullmatch(hosts[0].strip()) is None:
        return _problem(400, "The Host header is invalid.")
    return None


def _coding_problem(version: str, codings: Sequence[bytes]) -> ErrorResponse | None:
    if version == "1.0":
        # RFC 9112, 6.1: the end of such a message is not reliable.
        return _problem(400, "Transfer-Encoding is not allowed in HTTP/1.0.")
    if codings != [b"chunked"]:
        return _problem(501, "The only supported Transfer-Encoding is chunked.")
    return None


def _problem(status: int, message: str) -> ErrorResponse:
    return ErrorResponse(status, "invalid_request_error", message)
