"""``GET /metrics`` in the Prometheus text format, if it is enabled; requires an API key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from proxy.routes.dependencies import CallerDep, ServicesDep

FORMAT = "text/plain; version=1.0.0; charset=utf-8"

router = APIRouter(tags=["metrics"])


@router.get("/metrics")
async def metrics(services: ServicesDep, caller: CallerDep) -> Response:
    """Return the metrics."""
    assert services.metrics is not None, "the route exists only if metrics are enabled"
    return Response(services.metrics.exposition(), media_type=FORMAT)
