"""Reading what a client sends: the body under a limit, and the headers that say who and where."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.types import Receive, Scope

from proxy.errors import BodyTooLarge, BodyTooSlow
from proxy.settings import Settings

KEY_PREFIX = "handoff-key."


class ClientLeft(Exception):
    """The client went away before its request was whole."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers by lower-case name, decoded once per connection; the first of a repeated name counts."""
    state = scope.setdefault("state", {})
    headers: dict[str, str] | None = state.get("headers")
    if headers is None:
        headers = state["headers"] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return headers


def authorization_of(scope: Scope) -> str | None:
    """Return the ``Authorization`` of a connection.

    A page cannot set headers of a WebSocket: it offers the two protocols ``handoff.v1`` and ``handoff-key.KEY``, with
    what no protocol may hold percent-encoded.
    """
    header = headers_of(scope).get("authorization")
    if header or scope["type"] != "websocket":
        return header
    offered = scope.get("subprotocols", ())
    key = next((one.removeprefix(KEY_PREFIX) for one in offered if one.startswith(KEY_PREFIX)), None)
    return None if key is None else f"Bearer {unquote(key)}"


def first_of(headers: dict[str, str], names: Iterable[str]) -> str:
    """Return the first of these headers that is not empty, or ``""``."""
    for name in names:
        value = headers.get(name.lower(), "").strip()
        if value:
            return value
    return ""


async def read_body(receive: Receive, headers: dict[str, str], settings: Settings) -> bytes:
    """Return the whole body.

    Raises:
        BodyTooLarge: ``Content-Length`` or the bytes received so far exceed ``max_body_bytes``.
        BodyTooSlow: The body took longer than ``body_timeout`` seconds.
        ClientLeft: The client disconnected.
    """
    limit_bytes, time_limit = settings.max_body_bytes, settings.body_timeout
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    try:
        async with asyncio.timeout(time_limit):
            return await _read(receive, limit_bytes)
    except TimeoutError:
        raise BodyTooSlow(time_limit) from None


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
    raise ClientLeft
