"""``GET /agents`` and ``POST /agents/{agent_name}`` in the form of older clients."""

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
from proxy.wire.legacy.requests import OLDER_AGENT
from proxy.wire.validation.body_decoder import read_object


async def agents(scope: Scope, receive: Receive, send: Send) -> None:
    """List the agents of every team; ``model`` is the id under which OpenAI clients ask for one alone."""
    services, _, caller = request_context(scope)
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
    made = await services.agents.newest(caller) if services.agents is not None else ()
    found += [_told(one) for one in made if one.kind == "agent"]
    await _answer({"agents": found}, scope, receive, send)


async def make_agent(scope: Scope, receive: Receive, send: Send) -> None:
    """Make an agent, or a new version of it, with every tool that agents may have.

    Older clients name models of their provider. One that is not known here stands for the default.
    """
    services, caller, body = await read_request(scope, receive)
    made = services.agents
    if made is None:
        raise CustomAgentsDisabled
    given = read_object(OLDER_AGENT, body, strict=True)
    name = validate_name(scope["path_params"]["agent_name"])
    agent = NewAgent(
        # The path has the id; a different name is a name for people.
        description=given.name if given.name not in (None, name) else "",
        instructions=given.instructions,
        model=given.model if given.model is not None and given.model in made.models else "default",
        tools=list(made.tools),
        max_parallel_tools=given.max_parallel_tools,
        tool_call_timeout=given.tool_call_timeout,
    )
    await _answer(_told(await made.put_agent(caller, name, agent)), scope, receive, send)


def _told(one: CustomAgentVersion) -> dict[str, Any]:
    agent = decode_stored_agent(one.body)
    return {
        "name": one.name,
        "team": one.name,
        "model": one.name,
        "description": agent.description,
        "tools": agent.tools,
        "instructions": agent.instructions,
        "max_parallel_tools": agent.max_parallel_tools,
        "tool_call_timeout": agent.tool_call_timeout,
        "version": one.version,
    }


async def _answer(body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
    await Response(encode(body), media_type="application/json")(scope, receive, send)
