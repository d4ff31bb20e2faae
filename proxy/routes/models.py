"""``GET /v1/models`` and ``GET /v1/models/{id}``: what can be asked for by name."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from proxy.errors import ModelNotFound
from proxy.routes.dependencies import CallerDep, ModelFacts, ServicesDep
from proxy.wire.openai import ModelBody, ModelList, encode

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(services: ServicesDep, caller: CallerDep) -> Response:
    """List the teams, in the order of the team files."""
    return _json(ModelList(data=[_body(facts) for facts in services.catalog.models()]))


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Return one team; ids may hold slashes."""
    for facts in services.catalog.models():
        if facts.id == model:
            return _json(_body(facts))
    raise ModelNotFound(model)


def _body(facts: ModelFacts) -> ModelBody:
    return ModelBody(id=facts.id, created=facts.created, owned_by=facts.owned_by)


def _json(body: ModelBody | ModelList) -> Response:
    return Response(encode(body), media_type="application/json")
