"""ASGI middleware that loads the API key record and enforces rate limits before the body is read.

Endpoints authenticate, because some need no key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.auth import Keys
from proxy.errors import Overloaded, ProxyError, RateLimitExceeded, StoreUnavailable, Unauthorized
from proxy.limits import RateLimits, RateLimitStatus, rate_limit_headers
from proxy.routes.dependencies import Services, authenticate
from proxy.routes.error_response import answer_of
from proxy.routes.request_body import authorization_of
from proxy.routes.streaming import Headers
from proxy.settings import Settings
from proxy.wire.errors import ErrorResponse, error_response, error_response_with_detail

COUNTED_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/responses/compact",
        "/v1/connection_checks",
        "/chat/completions",
        "/chat",
        "/chat/stream",
        "/ask-stream",
    )
)
"""A POST to one of these paths starts a turn or a model call."""
APPROVALS = "/v1/approvals"
"""A POST to this path, or to one approval, decides on approvals, which resumes the turn."""
PATHS_WITHOUT_KEYS = ("/health", "/page/")
"""Paths that are served even if the store cannot check a key."""


class RateLimitMiddleware:
    """Counts each request that starts a turn. Turns over WebSockets are counted by their endpoints."""

    def __init__(self, app: ASGIApp, services: Callable[[], Services]) -> None:
        """``services`` returns the services, which exist only after the start."""
        self._app = app
        self._services = services

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            return self._app(scope, receive, send)
        services = self._services()
        if services.keys.is_prepared(authorization_of(scope)):
            caller = _counted_caller(services, scope)
            # Most requests have no limits, and nothing is awaited for them.
            if caller is None or not _is_limited(services, caller):
                return self._app(scope, receive, send)
        return self._serve_checked(services, scope, receive, send)

    async def _serve_checked(self, services: Services, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _load_key(services, scope)
            caller = _counted_caller(services, scope)
            statuses = await admit(services, caller) if caller is not None else []
        except ProxyError as error:
            headers = rate_limit_headers(list(error.stands)) if isinstance(error, RateLimitExceeded) else []
            await answer_of(_problem_of(error, scope), headers)(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send, statuses) if statuses else send)


async def admit(services: Services, caller: str) -> list[RateLimitStatus]:
    """Count one more turn of a caller; return the status of each limit.

    Raises:
        Overloaded: The maximum number of turns runs in this process.
        RateLimitExceeded: The caller exceeds a limit.
        StoreUnavailable: The counts cannot be read.
    """
    if _is_overloaded(services):
        raise Overloaded
    limits = limits_of(services.keys, services.settings, caller)
    return await services.limiter.admit(caller, limits) if limits.are_set else []


def _is_overloaded(services: Services) -> bool:
    max_turns = services.settings.max_running_turns
    return max_turns is not None and services.turns.running >= max_turns


def _is_limited(services: Services, caller: str) -> bool:
    return _is_overloaded(services) or limits_of(services.keys, services.settings, caller).are_set


def limits_of(keys: Keys, settings: Settings, caller: str) -> RateLimits:
    """Return the limits of a caller: those of its key, otherwise those of the settings."""
    terms = keys.terms_of(caller)
    return RateLimits(
        terms.requests_per_minute or settings.requests_per_minute,
        terms.tokens_per_minute or settings.tokens_per_minute,
    )


async def _load_key(services: Services, scope: Scope) -> None:
    try:
        await services.keys.prepare(authorization_of(scope))
    except StoreUnavailable:
        if not scope["path"].startswith(PATHS_WITHOUT_KEYS):
            raise


def _is_counted(scope: Scope) -> bool:
    path: str = scope["path"]
    starts_turn = path in COUNTED_PATHS or path == APPROVALS or path.startswith(f"{APPROVALS}/")
    return scope["method"] == "POST" and starts_turn


def _problem_of(error: ProxyError, scope: Scope) -> ErrorResponse:
    # Clients of the legacy endpoints, which are not under /v1, read the message from ``detail``.
    return error_response(error) if scope["path"].startswith("/v1/") else error_response_with_detail(error)


def _counted_caller(services: Services, scope: Scope) -> str | None:
    """Return the caller of a request that is counted; None for others and without a valid key.

    The endpoint reports an invalid key, in the format of its API.
    """
    if scope["type"] == "websocket" or not _is_counted(scope):
        return None
    try:
        caller = authenticate(scope, services)
    except Unauthorized:
        return None
    facts = scope["state"]["facts"]
    facts["caller"] = caller
    if (name := services.keys.name_of(caller)) is not None:
        facts["key_name"] = name
    return caller


def _with_headers(send: Send, statuses: list[RateLimitStatus]) -> Send:
    headers: Headers = rate_limit_headers(statuses)

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def send_with_headers(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return send_with_headers
