"""Separate current chats for browsers that use ``/chat``, ``/chat/stream`` or ``/ws`` without an API key.

A page of this server gets a cookie with a random value, which names its chat. Other clients do not, because many of
them discard cookies and would begin a new chat with each message. Cookies never give access to anything else.
"""

from __future__ import annotations

import re
import secrets
from urllib.parse import urlsplit

from msgspec import Struct
from starlette.types import Message, Scope, Send

from proxy.auth import ANYONE
from proxy.routes.request_body import headers_of

COOKIE = "handoff_chat"
_COOKIE = re.compile(rf"(?:^|; ?){COOKIE}=([A-Za-z0-9_-]{{22}})(?:;|$)")
_MONTH = 30 * 24 * 3600


class BrowserChat(Struct, frozen=True):
    """The chat of a browser; ``id`` is empty for other clients, and ``is_new`` if the browser has no cookie yet."""

    id: str = ""
    is_new: bool = False
    is_secure: bool = False

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers that set the cookie (RFC 6265, 4.1)."""
        if not self.is_new:
            return []
        secure = "; Secure" if self.is_secure else ""
        value = f"{COOKIE}={self.id}; Path=/; Max-Age={_MONTH}; HttpOnly; SameSite=Lax{secure}"
        return [(b"set-cookie", value.encode())]

    def wrap(self, send: Send) -> Send:
        """Return a ``send`` that adds the headers to the response."""
        if not self.is_new:
            return send

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            await send(message)

        return send_with_cookie


def browser_chat_of(scope: Scope, caller: str) -> BrowserChat:
    """Return the chat of the browser that sent a request."""
    headers = headers_of(scope)
    if caller != ANYONE or not _is_from_own_page(headers):
        return BrowserChat()
    found = _COOKIE.search(headers.get("cookie", ""))
    known = found[1] if found is not None else ""
    is_secure = _is_encrypted(scope, headers)
    return BrowserChat(known or secrets.token_urlsafe(16), is_new=not known, is_secure=is_secure)


def _is_encrypted(scope: Scope, headers: dict[str, str]) -> bool:
    # Behind a reverse proxy that ends TLS, only its header names the scheme of the browser. From any other client,
    # a false one changes only the cookie of that client.
    forwarded = headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return (forwarded or scope.get("scheme")) in ("https", "wss")


def _is_from_own_page(headers: dict[str, str]) -> bool:
    # Fetch Metadata (W3C): browsers send it to https and loopback addresses, and not for WebSockets in all of them.
    site = headers.get("sec-fetch-site", "")
    return (
        site == "same-origin" if site else urlsplit(headers.get("origin", "")).netloc == headers.get("host")
    )
