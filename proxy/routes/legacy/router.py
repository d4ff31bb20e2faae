"""Routes of the legacy endpoints."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from proxy.routes.legacy.agents import agents, put_agent_version
from proxy.routes.legacy.ask import ask_stream, resumed_stream, scripted_stream
from proxy.routes.legacy.chat import chat as chat_endpoint
from proxy.routes.legacy.chat import chat_stream
from proxy.routes.legacy.completions import LegacyCompletions
from proxy.routes.legacy.requests import legacy_endpoint
from proxy.routes.legacy.websocket import chat_socket


def legacy_routes(chat: ASGIApp) -> Sequence[BaseRoute]:
    """Return the routes; ``chat`` serves requests in OpenAI's format."""
    return [
        Route("/chat/completions", legacy_endpoint(LegacyCompletions(chat)), methods=["POST"]),
        Route("/chat", legacy_endpoint(chat_endpoint), methods=["POST"]),
        Route("/chat/stream", legacy_endpoint(chat_stream), methods=["POST"]),
        Route("/ask-stream", legacy_endpoint(ask_stream), methods=["POST"]),
        Route("/ask-stream/{turn_id}", legacy_endpoint(resumed_stream), methods=["GET"]),
        Route("/test-stream", legacy_endpoint(scripted_stream), methods=["GET"]),
        WebSocketRoute("/ws", chat_socket),
        Route("/agents", legacy_endpoint(agents), methods=["GET"]),
        Route("/agents/{agent_name}", legacy_endpoint(put_agent_version), methods=["POST"]),
    ]
