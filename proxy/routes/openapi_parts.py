"""``GET /openapi.json``: the description of the API, for those who may call it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from proxy.routes.conversation_access import json_answer
from proxy.routes.dependencies import CallerDep

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def description(request: Request, caller: CallerDep) -> Response:
    """Return the description."""
    return json_answer(request.app.openapi())
