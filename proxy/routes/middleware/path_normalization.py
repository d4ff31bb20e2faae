"""Normalise paths, answer ``HEAD``, list the methods of a path, and hide paths that are not served.

There are no redirects: clients repeat a redirected POST as a GET, or not at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.routes.error_response import answer_of
from proxy.wire.errors import invalid_url

ALSO_WITHOUT_VERSION = ("/chat/completions", "/models")
"""Paths that are served without ``/v1`` too, including the paths below them. A path that has a separate route without
``/v1`` must be excluded, see ``OWN_ROUTE``."""
OWN_ROUTE = ("POST", "/chat/completions")
"""The legacy endpoint, which accepts other bodies too."""

AGENTS = "/v1/agents"
AGENTS_BETA = "agents=v1"
"""With this value of ``OpenAI-Beta``, the path and those below it are OpenAI's Agents API. It is not served, although
the routes of the custom agents of this server match."""

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class PathNormalizationMiddleware:
    """Removes extra slashes of a path, adds a missing ``/v1``, answers HEAD like GET, and hides unserved paths."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        path = served_path(scope["path"], scope["method"])
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET", "path": path}, _without_body(send)
        elif path != scope["path"]:
            scope = {**scope, "path": path}
        if _is_unserved(scope):
            return answer_of(invalid_url(scope["method"], path))(scope, receive, send)
        return self._app(scope, receive, send)


def served_path(path: str, method: str = "") -> str:
    """Return the path of the route for a request with this path."""
    path = "/" + path.strip("/")
    if path.startswith("/v1//"):
        # Clients append "/chat/completions" to a base URL that ends with a slash.
        path = "/v1/" + path[4:].lstrip("/")
    if (method, path) == OWN_ROUTE:
        return path
    for served in ALSO_WITHOUT_VERSION:
        if path.startswith(served) and path[len(served) : len(served) + 1] in ("", "/"):
            return "/v1" + path
    return path


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """Return the value of ``Allow`` for the path of ``scope``; ``""`` if no route has the path."""
    routes = list(routes)
    allowed = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    if "GET" in allowed:
        allowed.insert(1, "HEAD")
    return ", ".join([*allowed, "OPTIONS"] if allowed else [])


def _is_unserved(scope: Scope) -> bool:
    path: str = scope["path"]
    return (path == AGENTS or path.startswith(f"{AGENTS}/")) and any(
        name == b"openai-beta" and AGENTS_BETA in value.decode("latin-1").lower().replace(" ", "").split(",")
        for name, value in scope["headers"]
    )


def _without_body(send: Send) -> Send:
    """Return a ``send`` that sends only the head of a response and discards its body, also the chunks of a stream."""
    is_over = False

    async def send_head(message: Message) -> None:
        nonlocal is_over
        if message["type"] == "http.response.start":
            await send(message)
        elif not is_over:
            is_over = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head
