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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        services = self._services()
        try:
            await _load_key(services, scope)
            if scope["type"] == "websocket" or not _is_counted(scope):
                await self._app(scope, receive, send)
                return
            caller = _caller(services, scope)
            if caller is None:
                await self._app(scope, receive, send)
                return
            _log_caller(services, scope, caller)
            statuses = await admit(services, caller)
        except ProxyError as error:
            if "status" in scope.get("state", {}).get("facts", {}):
                # The response has started.
                raise
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
    max_turns = services.settings.max_running_turns
    if max_turns is not None and services.turns.running >= max_turns:
        raise Overloaded
    limits = limits_of(services.keys, services.settings, caller)
    return await services.limiter.admit(caller, limits) if limits.are_set else []


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


def _caller(services: Services, scope: Scope) -> str | None:
    try:
        return authenticate(scope, services)
    except Unauthorized:
        # The endpoint reports it, in the format of its API.
        return None


def _log_caller(services: Services, scope: Scope, caller: str) -> None:
    facts = scope["state"]["facts"]
    facts["caller"] = caller
    if (name := services.keys.name_of(caller)) is not None:
        facts["key_name"] = name


def _with_headers(send: Send, statuses: list[RateLimitStatus]) -> Send:
    headers: Headers = rate_limit_headers(statuses)

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def send_with_headers(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return send_with_headers
