"""Which path a request means, however it is written, and the methods that every path knows.

Nothing is ever redirected: clients repeat a redirected POST as a GET, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALSO_WITHOUT_VERSION = ("/chat/completions", "/models")
"""Paths that are served without ``/v1`` too, with all that is below them. One that gets a route of its own there, to
take other bodies for example, has to be left out here."""
WITH_OTHER_BODIES = ("POST", "/chat/completions")
"""What is not the same without ``/v1``: clients of older systems send it other bodies, too."""

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Paths:
    """Takes slashes at both ends of a path as one or none, adds the ``/v1`` that was left out, and answers HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = served_path(scope["path"], scope["method"])
        if scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET", "path": path}, receive, _without_body(send))
        elif path != scope["path"]:
            await self._app({**scope, "path": path}, receive, send)
        else:
            await self._app(scope, receive, send)


def served_path(path: str, method: str = "") -> str:
    """Return the path under which it is served what a client means by ``path``."""
    path = "/" + path.strip("/")
    if (method, path) == WITH_OTHER_BODIES:
        return path
    for served in ALSO_WITHOUT_VERSION:
        if path.startswith(served) and path[len(served) : len(served) + 1] in ("", "/"):
            return "/v1" + path
    return path


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """Return the methods that the path of ``scope`` knows, as they stand in ``Allow``; ``""`` when it is no path."""
    routes = list(routes)
    known = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    if "GET" in known:
        known.insert(1, "HEAD")
    return ", ".join([*known, "OPTIONS"] if known else [])


def _without_body(send: Send) -> Send:
    """Send the head of an answer and no more; what comes after it, of a stream for example, goes nowhere."""
    is_over = False

    async def send_head(message: Message) -> None:
        nonlocal is_over
        if message["type"] == "http.response.start":
            await send(message)
        elif not is_over:
            is_over = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head
