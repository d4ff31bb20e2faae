"""``GET /agents`` and ``POST /agents/{agent_name}`` in the legacy format."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.agents.custom_agent_repository import CustomAgentVersion
from proxy.errors import CustomAgentsDisabled
from proxy.routes.dependencies import request_context
from proxy.routes.legacy.requests import read_request
from proxy.wire.agents import NewAgent, decode_stored_agent, validate_name
from proxy.wire.chat.response_models import encode
from proxy.wire.legacy.requests import LEGACY_AGENT
from proxy.wire.validation.body_decoder import read_object


async def agents(scope: Scope, receive: Receive, send: Send) -> None:
    """List the agents of all teams; ``model`` is the model id of the agent in the OpenAI APIs."""
    services, _, access = request_context(scope)
    found: list[dict[str, Any]] = []
    for facts in services.catalog.models():
        team, _, name = facts.id.partition("/")
        if name:
            tools = list(facts.team.tools) if facts.team is not None else []
            found.append(
                {
                    "name": name,
                    "team": team,
                    "model": facts.id,
                    "description": facts.description,
                    "tools": tools,
                }
            )
    custom = await services.agents.newest(access.caller) if services.agents is not None else ()
    found += [_agent_body(version) for version in custom if version.kind == "agent"]
    await _send_json({"agents": found}, scope, receive, send)


async def put_agent_version(scope: Scope, receive: Receive, send: Send) -> None:
    """Create an agent or a new version of it, with all tools that custom agents can use.

    Legacy clients send model names of their provider. An unknown name selects the default model.
    """
    services, caller, body = await read_request(scope, receive)
    custom_agents = services.agents
    if custom_agents is None:
        raise CustomAgentsDisabled
    given = read_object(LEGACY_AGENT, body, strict=True)
    name = validate_name(scope["path_params"]["agent_name"])
    agent = NewAgent(
        # The path has the id; a different name is a display name.
        display_name=given.name if given.name not in (None, name) else "",
        instructions=given.instructions,
        model=given.model if given.model is not None and given.model in custom_agents.models else "default",
        tools=list(custom_agents.tools),
        max_parallel_tools=given.max_parallel_tools,
        tool_call_timeout=given.tool_call_timeout,
    )
    version = await custom_agents.put_agent(caller, name, agent)
    await _send_json(_agent_body(version), scope, receive, send)


def _agent_body(version: CustomAgentVersion) -> dict[str, Any]:
    agent = decode_stored_agent(version.body)
    return {
        "name": version.name,
        "team": version.name,
        "model": version.name,
        "display_name": agent.display_name or version.name,
        "description": agent.description,
        "tools": agent.tools,
        "instructions": agent.instructions,
        "max_parallel_tools": agent.max_parallel_tools,
        "tool_call_timeout": agent.tool_call_timeout,
        "version": version.version,
    }


async def _send_json(body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
    await Response(encode(body), media_type="application/json")(scope, receive, send)
