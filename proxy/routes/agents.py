"""Agents and teams over HTTP: made, changed version by version, listed and deleted.

A made agent is a model id at once, on every worker, for the key that made it and for nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from proxy.agents.custom_agent_repository import CustomAgentVersion, Kind
from proxy.errors import AgentNotFound, CustomAgentsDisabled, InvalidRequest
from proxy.routes.dependencies import (
    BodyDep,
    CallerDep,
    FileTeam,
    MadeAgents,
    ModelFacts,
    Services,
    ServicesDep,
    json_answer,
)
from proxy.wire.agents import (
    NEW_AGENT,
    NEW_TEAM,
    agent_body,
    decode_stored_agent,
    decode_stored_team,
    deleted_body,
    team_body,
    validate_name,
)
from proxy.wire.conversations.objects import list_body
from proxy.wire.validation.body_decoder import read_object
from proxy.wire.validation.errors import missing
from proxy.wire.validation.query_params import list_query, page_by_id, version_param

router = APIRouter(tags=["agents"])


@router.get("/v1/agents")
async def list_agents(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """List agents: the caller's own, and those of the server's files; ``options`` is what one may be made of."""
    made = _made(services)
    own = [_body(one) for one in await made.newest(caller) if one.kind == "agent"]
    found = [*own, *(_of_file(facts) for facts in services.catalog.models() if "/" in facts.id)]
    tools = [{"name": name, "description": words} for name, words in made.tools.items()]
    options = {"models": list(made.models), "tools": tools}
    return _listed(request, found, options=options)


@router.post("/v1/agents")
async def make_agent(services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Make an agent, or a new version of it."""
    return await _make_agent(services, caller, None, body)


@router.post("/v1/agents/{name}")
async def make_named_agent(name: str, services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Make the agent with this name, or a new version of it."""
    return await _make_agent(services, caller, name, body)


@router.get("/v1/agents/{name:path}")
async def retrieve_agent(name: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Return an agent as it is now, or as it was in ``version``."""
    facts = services.catalog.find(name) if "/" in name else None
    if facts is not None:
        return json_answer(_of_file(facts))
    return await _retrieve(services, caller, "agent", name, request)


@router.delete("/v1/agents/{name}")
async def delete_agent(name: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Delete an agent with all its versions."""
    return await _delete(services, caller, "agent", name)


@router.get("/v1/teams")
async def list_teams(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """List the caller's teams."""
    made = await _made(services).newest(caller)
    return _listed(request, [_body(one) for one in made if one.kind == "team"])


@router.post("/v1/teams")
async def make_team(services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Make a team, or a new version of it."""
    return await _make_team(services, caller, None, body)


@router.post("/v1/teams/{name}")
async def make_named_team(name: str, services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Make the team with this name, or a new version of it."""
    return await _make_team(services, caller, name, body)


@router.get("/v1/teams/{name}")
async def retrieve_team(name: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Return a team as it is now, or as it was in ``version``; or a team of the server's files."""
    if (team := services.catalog.file_team(name)) is not None:
        services.check_model(caller, name)
        return json_answer(_team_of_file(name, team, hides_details=not services.settings.handoff_details))
    return await _retrieve(services, caller, "team", name, request)


@router.delete("/v1/teams/{name}")
async def delete_team(name: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Delete a team with all its versions."""
    return await _delete(services, caller, "team", name)


def _made(services: Services) -> MadeAgents:
    if services.agents is None:
        raise CustomAgentsDisabled
    return services.agents


async def _make_agent(services: Services, caller: str, name: str | None, body: bytes) -> Response:
    made = _made(services)
    agent = read_object(NEW_AGENT, body, strict=True)
    return json_answer(_body(await made.put_agent(caller, _name(name, agent.name), agent)))


async def _make_team(services: Services, caller: str, name: str | None, body: bytes) -> Response:
    made = _made(services)
    team = read_object(NEW_TEAM, body, strict=True)
    return json_answer(_body(await made.put_team(caller, _name(name, team.name), team)))


async def _retrieve(services: Services, caller: str, kind: Kind, name: str, request: Request) -> Response:
    found = await _made(services).find(caller, kind, name, version_param(request.query_params))
    if found is None:
        raise AgentNotFound(kind, name)
    return json_answer(_body(found))


async def _delete(services: Services, caller: str, kind: Kind, name: str) -> Response:
    if not await _made(services).delete(caller, kind, name):
        raise AgentNotFound(kind, name)
    return json_answer(deleted_body(name, kind))


def _name(in_path: str | None, in_body: str | None) -> str:
    """Return the name, which stands in the path, in the body, or in both."""
    if in_path is None and in_body is None:
        raise missing("name")
    if in_path is not None and in_body not in (None, in_path):
        raise InvalidRequest(
            "Invalid 'name': it is another than the one in the path.", param="name", code="invalid_value"
        )
    return validate_name(in_path if in_path is not None else in_body or "")


def _listed(request: Request, found: Sequence[dict[str, Any]], **more: Any) -> Response:
    query = list_query(request.query_params.multi_items(), order="asc")
    part, has_more = page_by_id(found, query)
    return json_answer({**list_body(part, has_more=has_more), **more})


def _body(one: CustomAgentVersion) -> dict[str, Any]:
    if one.kind == "agent":
        told = agent_body(one.name, decode_stored_agent(one.body), version=one.version)
    else:
        told = team_body(one.name, decode_stored_team(one.body), version=one.version)
    return {**told, "created_at": int(one.created_at), "updated_at": int(one.updated_at), "is_editable": True}


def _team_of_file(name: str, team: FileTeam, *, hides_details: bool) -> dict[str, Any]:
    """Return a team of the server's files. With ``hides_details`` instructions and models are left out."""
    agents: dict[str, dict[str, Any]] = {}
    for member, agent in team.agents.items():
        agents[member] = {
            "description": agent.description,
            "tools": agent.tools,
            "handoffs": [{"to": to, "when": when} for to, when in agent.handoffs],
        }
        if not hides_details:
            agents[member] |= {"instructions": agent.instructions, "model": agent.model}
    return {
        "id": name,
        "object": "team",
        "name": name,
        "version": 1,
        "description": team.description,
        "entry": team.entry,
        "examples": team.examples,
        "agents": agents,
        "is_editable": False,
    }


def _of_file(facts: ModelFacts) -> dict[str, Any]:
    """Return an agent of the server's files, as far as it concerns callers."""
    return {
        "id": facts.id,
        "object": "agent",
        "name": facts.id,
        "version": 1,
        "description": facts.description,
        "tools": list(facts.team.tools) if facts.team is not None else [],
        "created_at": facts.created,
        "updated_at": facts.created,
        "is_editable": False,
    }
