"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from proxy.errors import ModelNotFound
from proxy.messages import EventsMode
from proxy.routes.dependencies import CallerDep, ListedTeam, ModelFacts, Services, ServicesDep
from proxy.routes.request_body import headers_of
from proxy.routes.request_headers import events_mode
from proxy.wire.chat.extension_objects import Capabilities, TeamBody
from proxy.wire.chat.response_models import ModelBody, ModelList, encode

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """List the models: teams in the order of the team files, then agents and other models."""
    requested, terms = events_mode(headers_of(request.scope)), services.keys.terms_of(caller)
    found = [*services.catalog.models(), *await services.catalog.custom(caller)]
    allowed = [facts for facts in found if terms.allow(facts.id)]
    return _json(ModelList(data=[_body(facts, requested, services, caller) for facts in allowed]))


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Return one model; ids can contain slashes."""
    services.check_model(caller, model)
    facts = services.catalog.find(model) or await services.catalog.find_custom(caller, model)
    if facts is None:
        raise ModelNotFound(model)
    return _json(_body(facts, events_mode(headers_of(request.scope)), services, caller))


def _body(facts: ModelFacts, requested: EventsMode | None, services: Services, caller: str) -> ModelBody:
    """Return the model object, with the parts of the extension that its responses have."""
    mode = requested or services.events_of(facts, services.keys.terms_of(caller))
    body = ModelBody(id=facts.id, created=facts.created, owned_by=facts.owned_by)
    if mode == "none":
        return body
    length = UNSET if facts.context_length is None else facts.context_length
    has_objects = facts.team is not None and mode in ("extension", "all")
    return ModelBody(
        id=facts.id,
        created=facts.created,
        owned_by=facts.owned_by,
        name=facts.name or UNSET,
        context_length=length,
        max_model_len=length,
        handoff=_team(facts.team, facts.description) if facts.team is not None and has_objects else UNSET,
    )


def _team(team: ListedTeam, description: str) -> TeamBody:
    return TeamBody(
        agents=team.agents,
        entry=team.entry,
        tools=team.tools,
        capabilities=Capabilities(
            streaming=True,
            handoffs=len(team.agents) > 1,
            server_tools=bool(team.tools),
            client_tools=team.takes_client_tools,
            images=team.accepts_images,
        ),
        description=description or UNSET,
        examples=team.examples,
        demo=team.is_demo,
    )


def _json(body: ModelBody | ModelList) -> Response:
    return Response(encode(body), media_type="application/json")
