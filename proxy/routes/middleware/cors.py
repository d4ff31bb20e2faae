"""Requests of web pages: which origins may read responses (CORS), and which requests are rejected.

There are no credentials that a browser sends by itself: a key is in a header, and the cookie of the legacy endpoints
only names a chat. Without keys, though, every page that a user opens could spend tokens, even without reading the
responses, because a POST of plain text needs no preflight. A server without keys therefore rejects requests from pages
of other origins. If it listens on loopback only, it also rejects unknown host names: with DNS rebinding, a page of
another host has the origin of the server.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable
from ipaddress import ip_address

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.auth import is_this_machine
from proxy.routes.error_response import answer_of
from proxy.routes.request_body import headers_of
from proxy.routes.streaming import Headers
from proxy.settings import Settings
from proxy.wire.errors import forbidden_host, forbidden_origin

ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    "accept",
    "api-key",
    "idempotency-key",
    "last-event-id",
    "openai-organization",
    "openai-project",
    "openai-beta",
    "x-api-key",
    "x-client-request-id",
    "x-busy",
    "x-conversation-id",
    "x-event-ids",
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
"""Public files of the web page. Its sandboxed diagram frame has an opaque origin, so its requests have ``null``."""
_PREFLIGHT_SECONDS = "600"
_MAX_HEADERS = 64
_HEADER = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[^\[\]:/@]+)(?::\d{1,5})?", re.ASCII)
# Public DNS never has these names (RFC 6761, and ICANN's reservation of .internal for private use). Containers reach
# their host machine as host.docker.internal or host.containers.internal.
_PRIVATE = (".localhost", ".internal")


class OriginPolicy:
    """Decides which origins and host names are allowed."""

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
        self._accepted_host: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> OriginPolicy:
        """Return the policy of the settings."""
        return cls(
            origins=settings.cors_origins,
            hosts=(*settings.allowed_hosts, settings.host),
            needs_keys=bool(settings.api_keys),
            is_local=is_this_machine(settings.host),
        )

    def set_needs_keys(self, *, needs_keys: bool) -> None:
        """Set whether there are keys, which is known after the store was read."""
        self._needs_keys = needs_keys
        self._checks_hosts = self._checks_hosts and not needs_keys

    def is_allowed_origin(self, origin: str, host: str) -> bool:
        """Whether pages of this origin may read responses: the server's own, loopback, and configured ones."""
        origin = origin.lower()
        if "*" in self._origins or origin in self._origins:
            return True
        found = _ORIGIN.fullmatch(origin)
        if found is None:
            return False
        return _is_loopback(found[1]) or origin.partition("://")[2] == host.lower()

    def may_call(self, origin: str, host: str) -> bool:
        """Whether requests from pages of this origin are served, readable or not."""
        return self._needs_keys or self.is_allowed_origin(origin, host)

    def is_allowed_host(self, host: str) -> bool:
        """Whether the server accepts this ``Host``."""
        # Nearly all requests have the same one.
        if not self._checks_hosts or host == self._accepted_host:
            return True
        name = _name_of(host)
        if name in ("", "localhost", *self._hosts) or name.endswith(_PRIVATE) or _is_address(name):
            self._accepted_host = host
            return True
        return False


class CorsMiddleware:
    """Answers preflights, rejects what the policy does not allow, and lets allowed origins read every response."""

    def __init__(self, app: ASGIApp, policy: OriginPolicy) -> None:
        self._app = app
        self._policy = policy

    # Plain functions: a coroutine would add a frame to every streamed chunk.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection."""
        headers = headers_of(scope)
        policy = self._policy
        if headers.accepted_by is policy:
            return self._app(scope, receive, send)
        origin, host = headers.get("origin"), headers.get("host", "")
        if not policy.is_allowed_host(host):
            return answer_of(forbidden_host(_name_of(host)))(scope, receive, send)
        if not origin and headers.are_shared:
            # Its check of hosts can only become more permissive, see ``set_needs_keys``.
            headers.accepted_by = policy
        if not origin or scope["path"].startswith(STATIC_FILES):
            return self._app(scope, receive, send)
        if policy.is_allowed_origin(origin, host):
            return self._serve_allowed(origin, scope, receive, send)
        if scope["type"] == "websocket" or _is_preflight(scope) or not policy.may_call(origin, host):
            # CORS does not apply to WebSockets: a page that can open one can read it.
            return answer_of(forbidden_origin(origin))(scope, receive, send)
        return self._app(scope, receive, send)

    def _serve_allowed(self, origin: str, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if _is_preflight(scope):
            return _preflight(origin, headers_of(scope))(scope, receive, send)
        cors: Headers = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode()),
        ]

        def send_readable(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *cors]
            return send(message)

        return self._app(scope, receive, send_readable)


def _preflight(origin: str, headers: dict[str, str]) -> Response:
    """Return the response to a preflight request, which needs no key."""
    requested = headers.get("access-control-request-headers", "").lower().split(",")[:_MAX_HEADERS]
    # Client libraries add other headers. Without credentials, all of them can be allowed.
    others = [name for name in map(str.strip, requested) if _HEADER.fullmatch(name)]
    allowed = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": ALLOWED_METHODS,
        "access-control-allow-headers": ", ".join(dict.fromkeys((*ALLOWED_HEADERS, *others))),
        "access-control-max-age": _PREFLIGHT_SECONDS,
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=allowed)


def _is_preflight(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] == "OPTIONS"
        and any(name == b"access-control-request-method" for name, _ in scope["headers"])
    )


def _name_of(host: str) -> str:
    """Return the name or address of a ``Host`` header, in lower case and without port."""
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
