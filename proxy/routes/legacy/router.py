"""The paths of older clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.routes.legacy.agents import agents, make_agent
from proxy.routes.legacy.ask import ask_stream, scripted_stream
from proxy.routes.legacy.chat import chat as chat_endpoint
from proxy.routes.legacy.chat import chat_stream
from proxy.routes.legacy.completions import EitherCompletions
from proxy.routes.legacy.requests import guarded
from proxy.routes.legacy.websocket import chat_socket


def older_routes(chat: ASGIApp) -> Sequence[BaseRoute]:
    """Return the routes; ``chat`` answers OpenAI's requests."""
    return [
        Route("/chat/completions", EitherCompletions(chat), methods=["POST"]),
        Route("/chat", Plain(chat_endpoint), methods=["POST"]),
        Route("/chat/stream", Plain(chat_stream), methods=["POST"]),
        Route("/ask-stream", Plain(ask_stream), methods=["POST"]),
        Route("/test-stream", Plain(scripted_stream), methods=["GET"]),
        WebSocketRoute("/ws", chat_socket),
        Route("/agents", Plain(agents), methods=["GET"]),
        Route("/agents/{agent_name}", Plain(make_agent), methods=["POST"]),
    ]


class Plain:
    """An endpoint of plain ASGI; of a function, the framework would expect that it takes a request."""

    def __init__(self, endpoint: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._endpoint = guarded(endpoint)
        # The summary of the operation in /openapi.json.
        self.__doc__ = endpoint.__doc__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._endpoint(scope, receive, send)
