"""Endpoints of custom agents and teams: create, list, retrieve and delete; an update creates a new version.

A custom agent is a model id on all workers immediately, for the API key that created it only.
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
    CustomAgentService,
    FileTeam,
    ModelFacts,
    Services,
    ServicesDep,
    json_response,
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
    """List agents: custom ones of the caller, then those of the team files; ``options`` are the available parts."""
    custom = _custom_agents(services)
    own = [_body(one) for one in await custom.newest(caller) if one.kind == "agent"]
    found = [*own, *(_file_agent_body(facts) for facts in services.catalog.models() if "/" in facts.id)]
    tools = [{"name": name, "description": words} for name, words in custom.tools.items()]
    options = {"models": list(custom.models), "tools": tools}
    return _list_response(request, found, options=options)


@router.post("/v1/agents")
async def create_agent(services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Create an agent, or a new version of it."""
    return await _create_agent(services, caller, None, body)


@router.post("/v1/agents/{name}")
async def create_named_agent(name: str, services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Create the agent with this name, or a new version of it."""
    return await _create_agent(services, caller, name, body)


@router.get("/v1/agents/{name:path}")
async def retrieve_agent(name: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Return the newest version of an agent, or ``version``."""
    facts = services.catalog.find(name) if "/" in name else None
    if facts is not None:
        return json_response(_file_agent_body(facts))
    return await _retrieve(services, caller, "agent", name, request)


@router.delete("/v1/agents/{name}")
async def delete_agent(name: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Delete an agent with all its versions."""
    return await _delete(services, caller, "agent", name)


@router.get("/v1/teams")
async def list_teams(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """List the custom teams of the caller."""
    custom = await _custom_agents(services).newest(caller)
    return _list_response(request, [_body(one) for one in custom if one.kind == "team"])


@router.post("/v1/teams")
async def create_team(services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Create a team, or a new version of it."""
    return await _create_team(services, caller, None, body)


@router.post("/v1/teams/{name}")
async def create_named_team(name: str, services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Create the team with this name, or a new version of it."""
    return await _create_team(services, caller, name, body)


@router.get("/v1/teams/{name}")
async def retrieve_team(name: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Return the newest version of a custom team, or ``version``; or a team of the team files."""
    if (team := services.catalog.file_team(name)) is not None:
        services.check_model(caller, name)
        return json_response(_file_team_body(name, team, hides_details=not services.settings.handoff_details))
    return await _retrieve(services, caller, "team", name, request)


@router.delete("/v1/teams/{name}")
async def delete_team(name: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Delete a team with all its versions."""
    return await _delete(services, caller, "team", name)


def _custom_agents(services: Services) -> CustomAgentService:
    if services.agents is None:
        raise CustomAgentsDisabled
    return services.agents


async def _create_agent(services: Services, caller: str, name: str | None, body: bytes) -> Response:
    custom = _custom_agents(services)
    agent = read_object(NEW_AGENT, body, strict=True)
    return json_response(_body(await custom.put_agent(caller, _name(name, agent.name), agent)))


async def _create_team(services: Services, caller: str, name: str | None, body: bytes) -> Response:
    custom = _custom_agents(services)
    team = read_object(NEW_TEAM, body, strict=True)
    return json_response(_body(await custom.put_team(caller, _name(name, team.name), team)))


async def _retrieve(services: Services, caller: str, kind: Kind, name: str, request: Request) -> Response:
    found = await _custom_agents(services).find(caller, kind, name, version_param(request.query_params))
    if found is None:
        raise AgentNotFound(kind, name)
    return json_response(_body(found))


async def _delete(services: Services, caller: str, kind: Kind, name: str) -> Response:
    if not await _custom_agents(services).delete(caller, kind, name):
        raise AgentNotFound(kind, name)
    return json_response(deleted_body(name, kind))


def _name(in_path: str | None, in_body: str | None) -> str:
    """Return the name in the path or the body; if it is in both, the names must be equal."""
    if in_path is None and in_body is None:
        raise missing("name")
    if in_path is not None and in_body not in (None, in_path):
        raise InvalidRequest(
            "Invalid 'name': it must be equal to the name in the path.", param="name", code="invalid_value"
        )
    return validate_name(in_path if in_path is not None else in_body or "")


def _list_response(request: Request, found: Sequence[dict[str, Any]], **more: Any) -> Response:
    query = list_query(request.query_params.multi_items(), order="asc")
    part, has_more = page_by_id(found, query)
    return json_response({**list_body(part, has_more=has_more), **more})


def _body(one: CustomAgentVersion) -> dict[str, Any]:
    if one.kind == "agent":
        body = agent_body(one.name, decode_stored_agent(one.body), version=one.version)
    else:
        body = team_body(one.name, decode_stored_team(one.body), version=one.version)
    return {**body, "created_at": int(one.created_at), "updated_at": int(one.updated_at), "is_editable": True}


def _file_team_body(name: str, team: FileTeam, *, hides_details: bool) -> dict[str, Any]:
    """Return a team of the team files; with ``hides_details`` without instructions and models."""
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
        "display_name": team.display_name,
        "description": team.description,
        "entry": team.entry,
        "examples": team.examples,
        "agents": agents,
        "is_editable": False,
    }


def _file_agent_body(facts: ModelFacts) -> dict[str, Any]:
    """Return an agent of the team files, without instructions."""
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
