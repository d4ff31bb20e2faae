"""Web pages as callers: which may read answers (CORS), and which may not even ask.

Nothing here is about credentials that a browser sends by itself, for there are none: a key is in a header. Where no
key is needed, though, every page that somebody opens could spend tokens, without ever seeing the answers: a POST of
plain text needs no preflight. So a server without keys turns away pages of foreign origins, and one that listens on
loopback only also names under which it does not know itself, which is how DNS rebinding makes a page look as if it
were the server's own.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable
from ipaddress import ip_address

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.auth import is_this_machine
from proxy.routes.error_handlers import answer_of
from proxy.routes.request_body import headers_of
from proxy.routes.streaming import Headers
from proxy.settings import Settings
from proxy.wire.errors import forbidden_host, forbidden_origin

ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    "accept",
    "idempotency-key",
    "last-event-id",
    "openai-organization",
    "openai-project",
    "openai-beta",
    "x-client-request-id",
    "x-conversation-id",
    "x-handoff-events",
    "x-on-disconnect",
    "x-parent-id",
    "x-stainless-arch",
    "x-stainless-async",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
    "x-task",
)
EXPOSED_HEADERS = (
    "idempotency-replayed",
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "retry-after-ms",
    "x-conversation-id",
    "x-conversation-match",
    "x-ignored-parameters",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-request-id",
    "x-should-retry",
)
STATIC_FILES = "/page/"
"""Public files of the web page. Its sandboxed diagram frame has an opaque origin, so it requests them as ``null``."""
_PREFLIGHT_SECONDS = "600"
_MAX_ASKED = 64
_ASKED = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[^\[\]:/@]+)(?::\d{1,5})?", re.ASCII)
# Names that public DNS never gives away: RFC 6761, and ICANN's reservation for private use. Containers reach the
# machine that they run on as host.docker.internal or host.containers.internal.
_PRIVATE = (".localhost", ".internal")


class Visitors:
    """Tells welcome pages and hosts from others."""

    def __init__(
        self,
        *,
        origins: Iterable[str] = (),
        hosts: Iterable[str] = (),
        needs_keys: bool = False,
        is_local: bool = True,
    ) -> None:
        """``is_local``: the server listens on loopback only."""
        self._origins = frozenset(map(str.lower, origins))
        self._hosts = frozenset(map(str.lower, hosts))
        self._needs_keys = needs_keys
        self._checks_hosts = is_local and not needs_keys and "*" not in self._hosts

    @classmethod
    def of(cls, settings: Settings) -> Visitors:
        """Return those of the settings."""
        return cls(
            origins=settings.cors_origins,
            hosts=(*settings.allowed_hosts, settings.host),
            needs_keys=bool(settings.api_keys),
            is_local=is_this_machine(settings.host),
        )

    def learn(self, *, needs_keys: bool) -> None:
        """Take in what is known only when the store was asked: whether there are keys."""
        self._needs_keys = needs_keys
        self._checks_hosts = self._checks_hosts and not needs_keys

    def is_welcome(self, origin: str, host: str) -> bool:
        """Whether pages of this origin may read answers: the server's own, this machine's, and those configured."""
        origin = origin.lower()
        if "*" in self._origins or origin in self._origins:
            return True
        found = _ORIGIN.fullmatch(origin)
        if found is None:
            return False
        return _is_loopback(found[1]) or origin.partition("://")[2] == host.lower()

    def may_ask(self, origin: str, host: str) -> bool:
        """Whether a request that a page of this origin makes is answered at all."""
        return self._needs_keys or self.is_welcome(origin, host)

    def knows(self, host: str) -> bool:
        """Whether the server may be called by what stands in ``Host``."""
        if not self._checks_hosts:
            return True
        name = _name_of(host)
        return name in ("", "localhost", *self._hosts) or name.endswith(_PRIVATE) or _is_address(name)


class Browsers:
    """Answers preflights, turns away whom ``Visitors`` does not want, and lets welcome pages read every answer."""

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        self._app = app
        self._visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        origin, host = _origin_and_host(scope)
        if not self._visitors.knows(host):
            await answer_of(forbidden_host(_name_of(host)))(scope, receive, send)
        elif not origin or scope["path"].startswith(STATIC_FILES):
            await self._app(scope, receive, send)
        elif self._visitors.is_welcome(origin, host):
            await self._welcome(origin, scope, receive, send)
        elif scope["type"] == "websocket" or _is_preflight(scope) or not self._visitors.may_ask(origin, host):
            # There is no CORS for WebSockets: a page that may open one may read it.
            await answer_of(forbidden_origin(origin))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _welcome(self, origin: str, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_preflight(scope):
            await _preflight(origin, headers_of(scope))(scope, receive, send)
            return
        more: Headers = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode()),
        ]

        # Not a coroutine of its own: it is in the way of every chunk.
        def send_readable(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *more]
            return send(message)

        await self._app(scope, receive, send_readable)


def _preflight(origin: str, headers: dict[str, str]) -> Response:
    """Return the answer to a page that asks whether it may ask; no key is needed for that."""
    asked = headers.get("access-control-request-headers", "").lower().split(",")[:_MAX_ASKED]
    # Libraries grow headers of their own, and without credentials none of them does harm.
    further = [name for name in map(str.strip, asked) if _ASKED.fullmatch(name)]
    told = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": ALLOWED_METHODS,
        "access-control-allow-headers": ", ".join(dict.fromkeys((*ALLOWED_HEADERS, *further))),
        "access-control-max-age": _PREFLIGHT_SECONDS,
    }
    if headers.get("access-control-request-private-network") == "true":
        told["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=told)


def _is_preflight(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] == "OPTIONS"
        and any(name == b"access-control-request-method" for name, _ in scope["headers"])
    )


def _origin_and_host(scope: Scope) -> tuple[str, str]:
    origin = host = ""
    for name, value in scope["headers"]:
        if name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"host":
            host = value.decode("latin-1")
    return origin, host


def _name_of(host: str) -> str:
    """Return a ``Host`` header's name or address, in small letters and without port."""
    host = host.strip().lower()
    return host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    host = host.strip("[]")
    return host == "localhost" or host.endswith(".localhost") or is_this_machine(host)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
