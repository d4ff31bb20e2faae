"""``GET /health`` (liveness) and ``GET /health/ready`` (readiness)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from proxy.errors import Unauthorized
from proxy.routes.dependencies import ServicesDep, access_of

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(request: Request, services: ServicesDep) -> Response:
    """Return 200 while the process serves requests; authenticated callers also get tools and agents."""
    body: dict[str, Any] = {"status": "ok", "version": services.version}
    try:
        access_of(request.scope, services)
    except Unauthorized:
        return JSONResponse(body)
    teams = [facts for facts in services.catalog.models() if "/" not in facts.id and facts.team is not None]
    body["available_tools"] = _distinct(tool for facts in teams if facts.team for tool in facts.team.tools)
    body["agents"] = _distinct(agent for facts in teams if facts.team for agent in facts.team.agents)
    return JSONResponse(body)


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


@router.get("/health/ready")
async def ready(services: ServicesDep) -> Response:
    """Return 200 if the server accepts turns, the store is available and all background tasks run, else 503.

    ``ended_tasks`` are the background tasks that ended: the process has to be restarted.
    """
    ended = list(services.background.ended)
    is_ready = not ended and not services.turns.is_closing and await services.history.is_ready()
    body: dict[str, Any] = {"status": "ready" if is_ready else "unavailable"}
    if ended:
        body["ended_tasks"] = ended
    return JSONResponse(body, status_code=200 if is_ready else 503)
