"""``GET /health``: whether the server lives, and ``GET /health/ready``: whether it can take a turn."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from proxy.routes.dependencies import ServicesDep

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(services: ServicesDep) -> Response:
    """Return 200 as long as the process serves."""
    return JSONResponse({"status": "ok", "version": services.version})


@router.get("/health/ready")
async def ready(services: ServicesDep) -> Response:
    """Return 200 when turns are taken and the store answers, else 503."""
    is_ready = not services.exchange.is_closing and await services.history.is_ready()
    return JSONResponse(
        {"status": "ready" if is_ready else "unavailable"}, status_code=200 if is_ready else 503
    )
