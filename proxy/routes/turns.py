"""What can be done with a turn from outside: stop it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from proxy.routes.dependencies import CallerDep, ServicesDep
from proxy.wire.openai import encode

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions/{completion_id}/cancel")
async def cancel(completion_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Stop a turn wherever it runs; its stream ends properly, and what was said stays as history.

    A turn that has ended stays as it is. ``status`` is ``running`` while another worker is still being told.
    """
    record = await services.exchange.cancel(caller, completion_id)
    body = {
        "id": record.id,
        "object": "chat.completion.cancelled",
        "status": record.status,
        "cancelled": record.status == "cancelled",
    }
    return Response(encode(body), media_type="application/json")
