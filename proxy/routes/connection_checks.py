"""``POST /v1/connection_checks``: whether the models of a team answer. Calls the models, so it counts as a request."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from proxy.agents.connection_check import ModelCheck
from proxy.errors import ModelNotFound
from proxy.routes.dependencies import BodyDep, CallerDep, ServicesDep
from proxy.wire.chat.response_models import encode
from proxy.wire.connection_check import NEW_CONNECTION_CHECK, ConnectionCheckBody, ModelCheckBody
from proxy.wire.errors import error_body
from proxy.wire.validation.body_decoder import read_object

router = APIRouter(tags=["models"])


@router.post("/v1/connection_checks")
async def check_connection(services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Send one short message to each model of a team and report which of them answered."""
    model = read_object(NEW_CONNECTION_CHECK, body).model
    services.check_model(caller, model)
    facts = services.catalog.find(model) or await services.catalog.find_custom(caller, model)
    if facts is None or facts.team is None:
        raise ModelNotFound(model)
    checks = await services.connection_checks.check(caller, model)
    result = ConnectionCheckBody(
        object="connection_check",
        model=model,
        demo=facts.team.is_demo,
        status="failed" if any(check.error for check in checks) else "ok",
        data=[_body(check) for check in checks],
    )
    return Response(encode(result), media_type="application/json")


def _body(check: ModelCheck) -> ModelCheckBody:
    return ModelCheckBody(
        model=check.model,
        agents=[*check.agents],
        status="failed" if check.error else "ok",
        seconds=round(check.seconds, 3),
        answered_by=check.answered_by,
        error=None if check.error is None else error_body(check.error),
    )
