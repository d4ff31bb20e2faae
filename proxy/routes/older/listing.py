"""``GET /agents``: who could be talked to, in the form of older clients."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.routes.bodies import headers_of
from proxy.routes.dependencies import services_of
from proxy.wire.openai import encode


async def agents(scope: Scope, receive: Receive, send: Send) -> None:
    """List the agents of every team; ``model`` is the id under which OpenAI clients ask for one alone."""
    services = services_of(scope)
    services.keys.caller(headers_of(scope).get("authorization"))
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
    await Response(encode({"agents": found}), media_type="application/json")(scope, receive, send)
