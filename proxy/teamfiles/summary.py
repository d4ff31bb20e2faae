"""Summaries of the content of team files, as text."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from proxy.teamfiles.definitions import (
    AgentDefinition,
    ComponentModel,
    DemoModel,
    McpServerDefinition,
    ModelDefinition,
    StdioServer,
    TeamsFile,
    ToolUse,
)
from proxy.teamfiles.mcp_servers import SECTION
from proxy.teamfiles.schema_checks import mapping
from proxy.teamfiles.source_map import Source
from proxy.tools.mcp.lock import Pins

DEMO_SUMMARY = "demo model (offline)"
"""Description of the scripted demonstration."""


def summarize_counts(source: Source) -> str:
    """Return ``1 team, 3 agents, 2 tools, 1 model``, including invalid definitions."""
    agents = [
        mapping(agent)
        for team in mapping(source.value(("teams",))).values()
        for agent in mapping(mapping(team).get("agents")).values()
    ]
    lists = [agent["tools"] for agent in agents if isinstance(agent.get("tools"), list)]
    names = [mapping(tool).get("name", tool) for tools in lists for tool in tools]
    tools = {name for name in names if isinstance(name, str)}
    counts = (
        ("team", len(mapping(source.value(("teams",))))),
        ("agent", len(agents)),
        ("tool", len(tools)),
        ("model", len({"default", *mapping(source.value(("models",)))})),
        ("MCP server", len(mapping(source.value((SECTION,))))),
    )
    # Most files have no MCP servers: omit "0 MCP servers".
    return ", ".join(_count(count, word) for word, count in counts if count or word != "MCP server")


def describe_definitions(definitions: TeamsFile, pins: Pins) -> Iterator[str]:
    """Yield a line for every model, MCP server, team and agent."""
    for name, model in definitions.models.items():
        yield f"model {name}: {_model(model)}"
    for name, server in definitions.mcp_servers.items():
        yield f"MCP server {name}: {server_place(server)}, {_count(len(pins.get(name, {})), 'pinned tool')}"
    for name, team in definitions.teams.items():
        yield f"team {name}"
        for agent_name, agent in team.agents.items():
            entry = " (entry)" if agent_name == team.entry else ""
            yield f"  {agent_name}{entry}: {_agent(agent)}"


def models_in_use(definitions: TeamsFile) -> dict[str, str]:
    """Return a description of every model that teams or callers can use, by name."""
    names = [
        name
        for team in definitions.teams.values()
        for agent in team.agents.values()
        for name in (agent.model, *agent.fallbacks)
    ]
    names += [team.side_model for team in definitions.teams.values() if team.side_model is not None]
    names += [name for team in definitions.teams.values() if (name := team.compaction.model) is not None]
    names += exposed_models(definitions)
    return {name: _model(definitions.models[name]) for name in dict.fromkeys(names)}


def exposed_models(definitions: TeamsFile) -> list[str]:
    """Return the names of the passthrough models: models that callers can request directly."""
    return [
        name
        for name, model in definitions.models.items()
        if not isinstance(model, DemoModel) and model.expose
    ]


def server_place(server: McpServerDefinition) -> str:
    """Return the program or host of a server, without anything that can contain a secret."""
    if isinstance(server, StdioServer):
        return f"runs {server.command}"
    return f"at {urlsplit(server.url.get_secret_value()).hostname}"


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _model(model: ModelDefinition) -> str:
    match model:
        case DemoModel():
            return DEMO_SUMMARY
        case ComponentModel():
            return f"AutoGen component {model.provider.rpartition('.')[2]}"
        case _:
            key = "with a key" if model.api_key else "without a key"
            # The host only: a URL can contain a password.
            return f"{model.model} at {urlsplit(model.base_url).hostname}, {key}"


def _tool(use: ToolUse) -> str:
    return f"{use.name} (approval required)" if use.approval == "required" else use.name


def _agent(agent: AgentDefinition) -> str:
    parts = [agent.member or f"model {agent.model}"]
    if agent.fallbacks:
        parts.append(f"fallbacks {', '.join(agent.fallbacks)}")
    if agent.tools:
        parts.append(f"tools {', '.join(map(_tool, agent.tools))}")
    if agent.delegates:
        parts.append(f"delegates to {', '.join(delegate.name for delegate in agent.delegates)}")
    if agent.handoffs:
        parts.append(f"handoffs to {', '.join(handoff.to for handoff in agent.handoffs)}")
    return "; ".join(parts)
