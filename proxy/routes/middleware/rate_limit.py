"""ASGI middleware that loads the API key record and enforces rate limits before the body is read.

Endpoints authenticate, because some need no key.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.auth import NO_TERMS, Access, Keys
from proxy.errors import Overloaded, ProxyError, RateLimitExceeded, StoreUnavailable, Unauthorized
from proxy.limits import RateLimits, RateLimitStatus, rate_limit_headers
from proxy.routes.dependencies import ApplicationState, Services
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

    def __init__(self, app: ASGIApp, state: ApplicationState, *, counts_all: bool = False) -> None:
        """The ``services`` of ``state`` exist only after the start. With ``counts_all``, each request counts."""
        self._app = app
        self._state = state
        self._counts_all = counts_all

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection."""
        services = self._state.services
        authorization = authorization_of(scope)
        if services.keys.is_prepared(authorization):
            access = self._counted_access(services, scope, authorization)
            # Most requests have no limits, and nothing is awaited for them.
            if access is None or not (
                services.limits_turns or (access.terms is not NO_TERMS and access.terms.have_limits)
            ):
                return self._app(scope, receive, send)
        return self._serve_checked(services, authorization, scope, receive, send)

    async def _serve_checked(
        self, services: Services, authorization: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            await _load_key(services, scope, authorization)
            access = self._counted_access(services, scope, authorization)
            statuses = await admit(services, access.caller) if access is not None else []
        except ProxyError as error:
            headers = rate_limit_headers(list(error.stands)) if isinstance(error, RateLimitExceeded) else []
            await answer_of(_problem_of(error, scope), headers)(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send, statuses) if statuses else send)

    def _counted_access(self, services: Services, scope: Scope, authorization: str | None) -> Access | None:
        """Authenticate a request that is counted; None for others and without a valid key.

        The endpoint reports an invalid key, in the format of its API.
        """
        if not (self._counts_all or _is_counted(scope)):
            return None
        try:
            access = services.keys.access(authorization)
        except Unauthorized:
            return None
        state = scope["state"]
        state["access"] = access
        state["facts"]["caller"] = access.caller
        if access.key_name is not None:
            state["facts"]["key_name"] = access.key_name
        return access


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


async def _load_key(services: Services, scope: Scope, authorization: str | None) -> None:
    try:
        await services.keys.prepare(authorization)
    except StoreUnavailable:
        if not scope["path"].startswith(PATHS_WITHOUT_KEYS):
            raise


def _problem_of(error: ProxyError, scope: Scope) -> ErrorResponse:
    # Clients of the legacy endpoints, which are not under /v1, read the message from ``detail``.
    return error_response(error) if scope["path"].startswith("/v1/") else error_response_with_detail(error)


def _is_counted(scope: Scope) -> bool:
    path: str = scope["path"]
    # The scope of a WebSocket has no method.
    return scope.get("method") == "POST" and (
        path in COUNTED_PATHS or path == APPROVALS or path.startswith(f"{APPROVALS}/")
    )


def _with_headers(send: Send, statuses: list[RateLimitStatus]) -> Send:
    headers: Headers = rate_limit_headers(statuses)

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def send_with_headers(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return send_with_headers
