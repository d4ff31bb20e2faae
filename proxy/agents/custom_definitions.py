"""Definitions of custom agents and teams: conversion to those of team files, and the agents to which they refer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec

from proxy.agents.custom_agent_repository import CustomAgentVersion
from proxy.teamfiles.definitions import (
    AgentDefinition,
    DelegateDefinition,
    HandoffDefinition,
    Limits,
    TeamDefinition,
    ToolUse,
)
from proxy.wire.agents import (
    NewAgent,
    NewDelegate,
    NewHandoff,
    NewLimits,
    NewTeam,
    TeamMember,
    decode_stored_agent,
    decode_stored_team,
)


def team_definition(team: NewTeam, approved: Collection[str]) -> TeamDefinition:
    """Return a custom team as a definition of team files. Calls of the tools ``approved`` need approval."""
    return TeamDefinition(
        display_name=team.display_name,
        description=team.description,
        entry=team.entry,
        agents={name: _agent_definition(agent, approved) for name, agent in team.agents.items()},
        limits=_limits(team.limits),
    )


def _agent_definition(agent: TeamMember, approved: Collection[str]) -> AgentDefinition:
    return AgentDefinition(
        instructions=agent.instructions,
        description=agent.description,
        model=agent.model,
        tools=tuple(
            ToolUse(name=name, approval="required" if name in approved else None) for name in agent.tools
        ),
        handoffs=tuple(map(_handoff, agent.handoffs)),
        delegates=tuple(map(_delegate, agent.delegates)),
        max_parallel_tools=agent.max_parallel_tools,
        tool_call_timeout=agent.tool_call_timeout,
    )


def _handoff(one: NewHandoff) -> HandoffDefinition:
    return HandoffDefinition.model_validate(msgspec.structs.asdict(one))


def _delegate(one: NewDelegate) -> DelegateDefinition:
    limits = _limits(one.limits) if one.limits is not None else None
    return DelegateDefinition.model_validate(msgspec.structs.asdict(one) | {"limits": limits})


def _limits(limits: NewLimits) -> Limits:
    given = {name: getattr(limits, name) for name in limits.__struct_fields__}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def references(agent: NewAgent | TeamMember, at: str) -> Iterator[tuple[str, str, str]]:
    """Yield the path, the agent and the name of the tool of each handoff and delegate."""
    for index, handoff in enumerate(agent.handoffs):
        yield f"{at}handoffs[{index}].to", handoff.to, _handoff(handoff).tool_name
    for index, delegate in enumerate(agent.delegates):
        yield f"{at}delegates[{index}].to", delegate.to, _delegate(delegate).tool_name


def with_reachable_agents(name: str, stored: Sequence[CustomAgentVersion]) -> NewTeam | None:
    """Return the team with this name, or a team of the agent and all agents that it can reach."""
    by_name = {one.name: one for one in stored}
    found = by_name.get(name)
    if found is None:
        return None
    if found.kind == "team":
        return decode_stored_team(found.body)
    agents = {one.name: decode_stored_agent(one.body) for one in stored if one.kind == "agent"}
    reached: dict[str, TeamMember] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in reached and one in agents:
            reached[one] = _member(agents[one])
            waiting += targets_of(agents[one])
    entry = agents[name]
    return NewTeam(
        name=name,
        display_name=entry.display_name,
        description=entry.description,
        entry=name,
        agents=reached,
        limits=entry.limits,
    )


def _member(agent: NewAgent) -> TeamMember:
    return TeamMember(**{name: getattr(agent, name) for name in TeamMember.__struct_fields__})


def targets_of(agent: NewAgent) -> list[str]:
    """Return the agents to which an agent hands off or delegates."""
    return [target for _, target, _ in references(agent, "")]
