"""The paths of older clients."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from proxy.routes.older.completions import EitherCompletions


def older_routes(chat: ASGIApp) -> Sequence[BaseRoute]:
    """Return the routes; ``chat`` answers OpenAI's requests."""
    return [Route("/chat/completions", EitherCompletions(chat), methods=["POST"])]
