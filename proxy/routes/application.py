"""The FastAPI application, with direct dispatch to performance-critical endpoints.

The layers of the framework cost a few hundred microseconds per request and twenty per chunk, for features that a plain
ASGI endpoint does not use: routing, exception handlers, exit stacks, body limits, telemetry.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.errors import Unauthorized
from proxy.routes.dependencies import ApplicationState, access_of, services_of
from proxy.routes.error_handlers import PlainEndpoint, method_of
from proxy.routes.error_response import answer_of
from proxy.routes.openapi import complete
from proxy.wire.errors import invalid_url


class Application(FastAPI):
    """FastAPI, with endpoints that are called without its layers.

    ``around`` are the middleware for all requests and WebSockets, outermost first; ``around_direct`` those for requests
    whose path is that of a direct endpoint as it is. ``add_middleware`` applies to routes of the framework only.
    """

    def __init__(
        self,
        state: ApplicationState | None = None,
        *,
        around: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
        around_direct: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.state = ApplicationState() if state is None else state
        self._direct_endpoints: dict[tuple[str, str], ASGIApp] = {}
        self._served_directly: dict[tuple[str, str], ASGIApp] = {}
        """The direct endpoints with their middleware."""
        self._around_direct = around_direct
        self._outermost = _within(around, self._find)

    def add_direct_endpoint(self, method: str, path: str, endpoint: PlainEndpoint) -> None:
        """Dispatch requests for a path directly to an endpoint that also has a route.

        The route serves requests that do not match exactly: below a ``root_path``, or with another method.
        The middleware around direct endpoints counts each request as the start of a turn.
        """
        self._direct_endpoints[method, path] = endpoint
        self._served_directly[method, path] = _within(self._around_direct, endpoint)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is generated once."""
        if self.openapi_schema is None:
            self.openapi_schema = complete(super().openapi(), self.routes)
        return self.openapi_schema

    # Plain functions: a coroutine would add a frame to every wake-up of a request.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Serve one connection, or the lifespan, which no middleware gets."""
        if scope["type"] == "http":
            served = self._served_directly.get((scope["method"], scope["path"]))
            if served is not None:
                scope["app"] = self
                return served(scope, receive, send)
        elif scope["type"] == "lifespan":
            return super().__call__(scope, receive, send)
        return self._outermost(scope, receive, send)

    def _find(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            endpoint = self._direct_endpoints.get((scope["method"], scope["path"]))
            if endpoint is not None:
                scope["app"] = self
                return endpoint(scope, receive, send)
        elif scope["type"] == "websocket" and not self._has_websocket(scope):
            scope["app"] = self
            return _refuse_websocket(scope, receive, send)
        return super().__call__(scope, receive, send)

    def _has_websocket(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self.routes)


def _within(around: Sequence[Callable[[ASGIApp], ASGIApp]], app: ASGIApp) -> ASGIApp:
    """Return the application with the middleware around it, outermost first."""
    app = method_of(app)
    for layer in reversed(around):
        app = method_of(layer(app))
    return app


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a handshake for a path that does not exist; the framework would answer 403 without a body."""
    try:
        access_of(scope, services_of(scope))
    except Unauthorized as error:
        await answer_of(error)(scope, receive, send)
    else:
        await answer_of(invalid_url("GET", scope["path"]))(scope, receive, send)
