"""``GET /metrics``, where it is switched on: counts in the text format of Prometheus, for those who may call."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from proxy.routes.dependencies import CallerDep, ServicesDep

FORMAT = "text/plain; version=1.0.0; charset=utf-8"

router = APIRouter(tags=["metrics"])


@router.get("/metrics")
async def metrics(services: ServicesDep, caller: CallerDep) -> Response:
    """Return the counts of this process."""
    assert services.metrics is not None, "the route is there only where they are"
    return Response(services.metrics.exposition(), media_type=FORMAT)
