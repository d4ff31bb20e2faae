"""Paths of the OpenAI API that are not served, although a route with a parameter would match them.

``/v1/agents`` with the header ``OpenAI-Beta: agents=v1`` is OpenAI's Agents API, not the custom agents of this server.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.routes.error_response import answer_of
from proxy.wire.errors import invalid_url

AGENTS = "/v1/agents"
AGENTS_BETA = "agents=v1"


class UnservedPaths:
    """Responds with 404 for every method, as for other paths that do not exist."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    # Plain function: a coroutine would add a frame to every streamed chunk.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection."""
        if scope["type"] == "http" and _is_unserved(scope):
            return answer_of(invalid_url(scope["method"], scope["path"]))(scope, receive, send)
        return self._app(scope, receive, send)


def _is_unserved(scope: Scope) -> bool:
    path: str = scope["path"]
    return (path == AGENTS or path.startswith(f"{AGENTS}/")) and _has_agents_beta(scope)


def _has_agents_beta(scope: Scope) -> bool:
    return any(
        name == b"openai-beta" and AGENTS_BETA in value.decode("latin-1").lower().replace(" ", "").split(",")
        for name, value in scope["headers"]
    )
