"""The input of a request: its body, with limits of size, time and expansion, and its headers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import unquote

from starlette.types import Receive, Scope

from proxy.errors import BodyTooLarge, InvalidRequest, RequestBodyTimeout, UnsupportedContentEncoding
from proxy.routes.server_extensions import REQUEST_BODY, RequestBody
from proxy.settings import Settings

T = TypeVar("T")

KEY_PREFIX = "handoff-key."
KEY_HEADERS = ("x-api-key", "api-key")
GZIP = ("gzip", "x-gzip")
"""RFC 9110, 8.4.1.3: both names have the same meaning."""
SHORT_BODY = 16_384
"""Bytes up to which ``decode_body`` decodes a body in the event loop, whatever it has."""
_MAX_TEXT_IN_LOOP = 131_072
"""The same for a body without schemas: its decoding takes 1 to 3 µs per kilobyte of usual text, at most 45 of anything
else within ``_MAX_OBJECTS_IN_LOOP``, and a thread costs 100 µs."""
_MAX_OBJECTS_IN_LOOP = 4_096
"""Opening braces; a list of the Responses API can have an item in eleven bytes."""
_GZIP_FORMAT = 16 + zlib.MAX_WBITS


class ClientDisconnected(Exception):
    """The client disconnected before the request was complete, or while it was answered."""


class RequestHeaders(dict[str, str]):
    """Decoded headers by lower-case name. They do not change, and requests with the same head can share them."""

    derived: tuple[object, Any] | None = None
    """What ``request_headers.header_options`` derives from them, with the settings that it depends on."""
    are_shared = False
    """Whether further requests may have them, with the same path."""
    accepted_by: object = None
    """The ``middleware.cors.OriginPolicy`` that accepts all requests that share them."""


def headers_of(scope: Scope) -> RequestHeaders:
    """Return the headers by lower-case name, decoded once per request; the first of a repeated name counts.

    Those that this server has decoded once for several requests are without ``Content-Length``.
    """
    headers: RequestHeaders
    try:
        # Called several times per request.
        headers = scope["state"]["headers"]
    except KeyError:
        headers = decoded_headers(scope["headers"])
        scope.setdefault("state", {})["headers"] = headers
    return headers


def forget_headers(scope: Scope) -> None:
    """Free the headers of a request once its endpoint has read them: writing the response may take minutes.

    Not those of other servers: middleware around this application may read them after the response (ASGI specification,
    "Middleware").
    """
    scope["state"].pop("headers", None)
    if REQUEST_BODY in scope.get("extensions", ()):
        scope["headers"] = ()


def decoded_headers(raw: Sequence[tuple[bytes, bytes]]) -> RequestHeaders:
    """Return the headers by name; the first of a repeated name counts."""
    # Decoded at once, because requests of the official SDKs have some twenty. No header contains NUL (RFC 9110, 5.5).
    # Reversed: of equal keys, the last one stays.
    texts = b"\0".join(chain.from_iterable(reversed(raw))).decode("latin-1").split("\0")
    if len(texts) != 2 * len(raw):
        return RequestHeaders(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in reversed(raw)
        )
    return RequestHeaders(zip(texts[::2], texts[1::2], strict=True))


def authorization_of(scope: Scope) -> str | None:
    """Return the ``Authorization`` of a connection, in which an ``api-key`` or ``x-api-key`` counts as a bearer token.

    Clients of Azure OpenAI send the former, those of Anthropic and many gateways the latter. A page cannot set headers
    of a WebSocket. It offers the subprotocols ``handoff.v1`` and ``handoff-key.KEY``, the key percent-encoded where it
    has characters that a subprotocol may not have.
    """
    headers = headers_of(scope)
    header = headers.get("authorization")
    if header is not None and header[:7] == "Bearer ":
        return header
    if header is None or header[:7].lower() != "bearer ":
        # ``Authorization`` with another scheme is for a reverse proxy.
        api_key = first_of(headers, KEY_HEADERS)
        if api_key:
            return f"Bearer {api_key}"
    if header or scope["type"] != "websocket":
        return header
    offered = scope.get("subprotocols", ())
    key = next((one.removeprefix(KEY_PREFIX) for one in offered if one.startswith(KEY_PREFIX)), None)
    return None if key is None else f"Bearer {unquote(key)}"


_EMPTY = ("", "none", "null", "undefined")
"""Values of a frontend's header that mean that it has none."""


def first_of(headers: dict[str, str], names: Iterable[str]) -> str:
    """Return the first of these headers of frontends that has a value, or ``""``.

    Open WebUI sends ``None`` for some missing values, and placeholders that its version does not know as they are.
    """
    for name in names:
        value = headers.get(name.lower())
        if not value:
            continue
        value = value.strip()
        if value.casefold() not in _EMPTY and not is_placeholder(value):
            return value
    return ""


def is_placeholder(value: str) -> bool:
    """Whether the value is a placeholder such as ``{{TASK}}`` that a frontend did not replace."""
    return value.startswith("{{") and value.endswith("}}")


def arrived_body(scope: Scope, settings: Settings, headers: Mapping[str, str]) -> bytes | None:
    """Return the body of a request that has arrived completely, without a coroutine, as nearly all have.

    None for any other body, which ``read_body`` has to read: it has not arrived, is compressed, or is too large.
    """
    available: RequestBody | None = scope.get("extensions", {}).get(REQUEST_BODY)
    if available is None or "content-encoding" in headers:
        return None
    announced = available.announced_bytes
    if announced is None or announced > settings.max_body_bytes:
        return None
    return available.take_complete()


async def read_body(scope: Scope, receive: Receive, settings: Settings, headers: Mapping[str, str]) -> bytes:
    """Return the whole body, decoded if it is compressed with gzip. ``headers`` are those of ``headers_of``.

    ``max_body_bytes`` limits the body both as it is sent and decoded.

    Raises:
        BodyTooLarge: As soon as the size is known, from ``Content-Length`` or by counting.
        RequestBodyTimeout: The body took longer than ``body_timeout`` seconds.
        UnsupportedContentEncoding: The body has another content coding.
        InvalidRequest: The body is not valid gzip.
        ClientDisconnected: The client disconnected.
    """
    limit_bytes = settings.max_body_bytes
    encoding = headers.get("content-encoding")
    if encoding is not None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", *GZIP):
            raise UnsupportedContentEncoding(encoding)
    available: RequestBody | None = scope.get("extensions", {}).get(REQUEST_BODY)
    announced = _content_length(headers) if available is None else available.announced_bytes
    if announced is not None and announced > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    body = available.take_complete() if available is not None else None
    if body is None:
        try:
            async with asyncio.timeout(settings.body_timeout):
                body = await _read(receive, limit_bytes)
        except TimeoutError:
            raise RequestBodyTimeout(settings.body_timeout) from None
    elif len(body) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if encoding not in GZIP or not body:
        return body
    # In a thread: a few kilobytes can expand to the limit, which takes milliseconds.
    return await asyncio.to_thread(decode_gzip, body, limit_bytes=limit_bytes)


def _content_length(headers: Mapping[str, str]) -> int | None:
    announced = headers.get("content-length", "")
    return int(announced) if announced.isdecimal() else None


async def decode_body(
    decode: Callable[[bytes], T], decode_quickly: Callable[[bytes], T | None], body: bytes
) -> T:
    """Return the decoded body; in a thread, if that may take long.

    Checking references of JSON schemas needs at most half a millisecond per kilobyte. ``decode_quickly`` returns None
    for a body that has such schemas, or may have something else that takes long.
    """
    if len(body) <= SHORT_BODY:
        return decode(body)
    if (
        len(body) <= _MAX_TEXT_IN_LOOP
        and body.count(b"{") <= _MAX_OBJECTS_IN_LOOP
        and (decoded := decode_quickly(body)) is not None
    ):
        return decoded
    return await asyncio.to_thread(decode, body)


def decode_gzip(data: bytes, *, limit_bytes: int) -> bytes:
    """Return decoded data; at most ``limit_bytes`` are decoded (decompression bombs).

    Raises:
        BodyTooLarge: There are more.
        InvalidRequest: The data are not one complete gzip member. Several members (RFC 1952, 2.2) are rejected,
            because clients send one, and many empty ones would take quadratic time.
    """
    decoder = zlib.decompressobj(_GZIP_FORMAT)
    try:
        decoded = decoder.decompress(data, limit_bytes + 1)
    except zlib.error:
        raise _invalid_gzip() from None
    if len(decoded) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if not decoder.eof or decoder.unused_data:
        raise _invalid_gzip()
    return decoded


def _invalid_gzip() -> InvalidRequest:
    return InvalidRequest("The body is not valid gzip, although Content-Encoding is gzip.")


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    message = await receive()
    pieces: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        if not message.get("more_body", False):
            return b"".join([*pieces, piece]) if pieces else piece
        pieces.append(piece)
        message = await receive()
    raise ClientDisconnected
