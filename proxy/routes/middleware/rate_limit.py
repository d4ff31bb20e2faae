"""Before a request is served: what is to be known of its key, and whether its caller may have one more turn.

Nothing of the body is read before. Keys themselves are checked by the endpoints, for some need none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.auth import Keys
from proxy.errors import Overloaded, ProxyError, RateLimitExceeded, StoreUnavailable, Unauthorized
from proxy.limits import Bounds, Stand, told
from proxy.routes.dependencies import Services, authenticate
from proxy.routes.error_handlers import answer_of
from proxy.routes.request_body import authorization_of
from proxy.routes.streaming import Headers
from proxy.settings import Settings

BEGIN_TURNS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/connection_checks",
        "/chat/completions",
        "/chat",
        "/chat/stream",
        "/ask-stream",
    )
)
"""Paths to which a POST is a request for a turn, or is passed on to a model."""
APPROVALS = "/v1/approvals"
"""A POST here or to one approval decides it, and a decision resumes its turn."""


WITHOUT_KEYS = ("/health", "/page/")
"""Paths that are served also when nobody can tell who is calling."""


class Gate:
    """The layer; ``services`` gives what serves requests, once that is there."""

    def __init__(self, app: ASGIApp, services: Callable[[], Services]) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        services = self._services()
        authorization = authorization_of(scope)
        try:
            await _prepare(services, scope, authorization)
            if scope["type"] == "websocket" or not _begins_turn(scope):
                await self._app(scope, receive, send)
                return
            caller = _caller(services, scope)
            if caller is None:
                await self._app(scope, receive, send)
                return
            _name_key(services, scope, caller)
            stands = await admit(services, caller)
        except ProxyError as error:
            if "status" in scope.get("state", {}).get("facts", {}):
                raise
            limits = told(list(error.stands)) if isinstance(error, RateLimitExceeded) else []
            await answer_of(error, limits)(scope, receive, send)
            return
        await self._app(scope, receive, _telling(send, told(stands)) if stands else send)


async def admit(services: Services, caller: str) -> list[Stand]:
    """Count one more turn of the caller's; return how it stands to its bounds.

    Raises:
        Overloaded: As many turns run in this process as may.
        RateLimitExceeded: The caller asks for too much.
        StoreUnavailable: The counts are not to be had.
    """
    most = services.settings.max_running_turns
    if most is not None and services.turns.running >= most:
        raise Overloaded
    bounds = bounds_of(services.keys, services.settings, caller)
    return await services.limiter.admit(caller, bounds) if bounds.are_any else []


def bounds_of(keys: Keys, settings: Settings, caller: str) -> Bounds:
    """Return what a caller may have: by the terms of its key, else by the settings."""
    terms = keys.terms_of(caller)
    return Bounds(
        terms.requests_per_minute or settings.requests_per_minute,
        terms.tokens_per_minute or settings.tokens_per_minute,
    )


async def _prepare(services: Services, scope: Scope, authorization: str | None) -> None:
    try:
        await services.keys.prepare(authorization)
    except StoreUnavailable:
        if not scope["path"].startswith(WITHOUT_KEYS):
            raise


def _begins_turn(scope: Scope) -> bool:
    path: str = scope["path"]
    starts_turn = path in BEGIN_TURNS or path == APPROVALS or path.startswith(f"{APPROVALS}/")
    return scope["method"] == "POST" and starts_turn


def _caller(services: Services, scope: Scope) -> str | None:
    try:
        return authenticate(scope, services)
    except Unauthorized:
        # The endpoint says it in its own form.
        return None


def _name_key(services: Services, scope: Scope, caller: str) -> None:
    facts = scope["state"]["facts"]
    facts["caller"] = caller
    if (name := services.keys.name_of(caller)) is not None:
        facts["key_name"] = name


def _telling(send: Send, headers: Headers) -> Send:
    # Not a coroutine of its own: it is in the way of every chunk.
    def send_telling(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return send_telling
