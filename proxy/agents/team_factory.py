"""Teams of agents from their definitions, with the models, tools and members that the names in them mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec.structs import replace

from proxy.agents.agent import Agent, Delegation, HandoffTarget
from proxy.agents.compaction.compactor import CompactionPolicy, Compactor
from proxy.agents.compaction.cut_cache import CutCache
from proxy.agents.compaction.summary import SummaryWriter
from proxy.agents.delegation import delegate_tool_spec
from proxy.agents.dispatch import Dispatcher
from proxy.agents.remote_member import RemoteApprovals, RemoteMember
from proxy.agents.team import AgentTeam, TeamFacts
from proxy.members.port import Member
from proxy.messages import Parameters
from proxy.providers.context_windows import ContextWindow, known_window
from proxy.providers.model import Model
from proxy.teamfiles.definitions import (
    A2AAgentDefinition,
    AgentDefinition,
    DelegateDefinition,
    HandoffDefinition,
    RemoteAgentDefinition,
    TeamDefinition,
    TeamsFile,
)
from proxy.tools.handoff_tools import handoff_tool_spec
from proxy.tools.mcp.argument_schema import ArgumentSchema
from proxy.tools.port import Tool


class ModelSource(Protocol):
    """Provides models by name."""

    def model_for(self, name: str, fallbacks: Sequence[str] = ()) -> Model:
        """Return the model with this name, which falls back to the others if it fails."""
        ...

    def remote(self, definition: RemoteAgentDefinition) -> Model:
        """Return the model that is a remote agent."""
        ...

    def remote_approvals(self, definition: RemoteAgentDefinition) -> RemoteApprovals:
        """Return the approvals of a remote agent that is a team of another handoff-proxy."""
        ...

    def window_of(self, name: str) -> ContextWindow:
        """Return the context window of a model, which all its users share."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class TeamFactory:
    """Builds teams whose names of models, tools and members exist, which the checks of definitions ensure.

    Teams share models, context windows and connections. ``dispatcher`` runs their agents.
    """

    def __init__(
        self,
        definitions: TeamsFile,
        *,
        models: ModelSource,
        tools: Mapping[str, Tool],
        members: Mapping[str, Member] | None = None,
        dispatcher: Dispatcher,
        data_dir: Path,
        max_tool_result_bytes: int,
        max_client_tools: int,
        max_answer_bytes: int,
    ) -> None:
        self._definitions = definitions
        self._models = models
        self.tools = tools
        self._members = members or {}
        self._a2a_members: dict[object, Member] = {}
        self._windows: dict[object, ContextWindow] = {}
        """The context windows of members."""
        self._dispatcher = dispatcher
        self._data_dir = data_dir
        self._max_tool_result_bytes = max_tool_result_bytes
        self._max_client_tools = max_client_tools
        self._max_answer_bytes = max_answer_bytes
        self._cuts = CutCache()

    async def close(self) -> None:
        """Close the models and the connections of A2A agents, after the last turn of the teams."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._models.close)
            for member in self._a2a_members.values():
                stack.push_async_callback(member.close)

    def team(self, name: str, definition: TeamDefinition, find_team: Callable[[str], AgentTeam]) -> AgentTeam:
        """Return the team of a definition; ``find_team`` returns the teams to which it delegates."""
        facts = self._facts(name, definition.entry, definition)
        agents = [self._agent(agent, definition.agents[agent], definition) for agent in definition.agents]
        side_model = self._side_model(definition)
        compactor = self._compactor(name, definition)
        return AgentTeam(
            facts,
            agents,
            self._dispatcher,
            side_model=side_model,
            compactor=compactor,
            find_team=find_team,
        )

    def single_agent(self, team: str, name: str, definition: TeamDefinition) -> AgentTeam:
        """Return a team of one agent of a team, without handoffs and delegates."""
        facts = replace(
            self._facts(f"{team}/{name}", name, definition),
            part_of=team,
            steps=(),
            display_name="",
            description=definition.agents[name].description,
        )
        agent = self._agent(name, definition.agents[name], definition)
        alone = replace(agent, handoff_targets={}, delegations={})
        side_model = self._side_model(definition)
        compactor = self._compactor(team, definition)
        return AgentTeam(facts, [alone], self._dispatcher, side_model=side_model, compactor=compactor)

    def exposed_model(self, name: str) -> AgentTeam:
        """Return a team that passes requests to a model without instructions."""
        model = self._models.model_for(name)
        facts = TeamFacts(name=name, entry="model")
        agent = Agent(name="model", instructions="", model=model, client_tools="pass")
        return AgentTeam(facts, [agent], self._dispatcher, side_model=model)

    def _facts(self, name: str, entry: str, definition: TeamDefinition) -> TeamFacts:
        return TeamFacts(
            name=name,
            entry=entry,
            display_name=definition.display_name,
            description=definition.description,
            limits=definition.limits,
            on_disconnect=definition.on_disconnect,
            busy=definition.busy,
            steps=definition.steps,
            prompt_cache=definition.prompt_cache,
            data_dir=self._data_dir,
            max_tool_result_bytes=self._max_tool_result_bytes,
            max_client_tools=self._max_client_tools,
            max_answer_bytes=self._max_answer_bytes,
        )

    def _compactor(self, team: str, definition: TeamDefinition) -> Compactor:
        settings = definition.compaction
        name = settings.model or definition.side_model or definition.agents[definition.entry].model
        writer = SummaryWriter(self._models.model_for(name), self._models.window_of(name), team=team)
        return Compactor(CompactionPolicy(settings.enabled, settings.threshold), writer, self._cuts)

    def _side_model(self, definition: TeamDefinition) -> Model:
        return self._models.model_for(definition.side_model or definition.agents[definition.entry].model)

    def _agent(self, name: str, definition: AgentDefinition, team: TeamDefinition) -> Agent:
        client_tools = definition.client_tools if definition.client_tools is not None else team.client_tools
        tools = [(self.tools[use.name], use) for use in definition.tools]
        return Agent(
            name=name,
            instructions=definition.instructions,
            model=self._models.model_for(definition.model, definition.fallbacks),
            tools={tool.spec.name: tool for tool, _ in tools},
            approvals=frozenset(tool.spec.name for tool, use in tools if use.approval == "required"),
            handoff_targets={
                handoff.tool_name: _handoff_target(handoff, team) for handoff in definition.handoffs
            },
            delegations={one.tool_name: self._delegation(one, team) for one in definition.delegates},
            client_tools=client_tools,
            parameters=msgspec.convert(definition.parameters, Parameters, strict=False),
            max_parallel_tools=definition.max_parallel_tools,
            tool_call_timeout=definition.tool_call_timeout,
            member=self._member(definition),
            window=self._window(definition),
        )

    def _window(self, definition: AgentDefinition) -> ContextWindow:
        """Return the window of what the agent is; all agents that are the same share it."""
        remote = definition.remote
        if remote is not None:
            known = remote.context_window or known_window(remote.model)
            return self._windows.setdefault((remote.base_url, remote.model, known), ContextWindow(known))
        if definition.member is not None:
            return self._windows.setdefault(
                (definition.member, definition.context_window), ContextWindow(definition.context_window)
            )
        return self._models.window_of(definition.model)

    def _delegation(self, definition: DelegateDefinition, team: TeamDefinition) -> Delegation:
        if definition.to is not None:
            description = team.agents[definition.to].description
        else:
            description = self._definitions.teams[definition.team or ""].description
        spec = delegate_tool_spec(definition.tool_name, definition.name, definition.when, description)
        return Delegation(
            spec,
            agent=definition.to or "",
            team=definition.team or "",
            has_conversation=definition.context == "conversation",
            seconds=definition.seconds,
            limits=definition.limits,
        )

    def _a2a(self, definition: A2AAgentDefinition) -> Member:
        # A team and its agents alone share the connections.
        headers = {name: value.get_secret_value() for name, value in definition.headers.items()}
        place = definition.url, tuple(headers.items())
        if place not in self._a2a_members:
            # Imported here: the SDK is an extra.
            from proxy.members.adapters.a2a import A2AMember

            self._a2a_members[place] = A2AMember(definition.url, headers)
        return self._a2a_members[place]

    def _member(self, definition: AgentDefinition) -> Member | None:
        if definition.code is not None:
            return self._members[definition.code]
        if definition.remote is not None:
            remote = definition.remote
            return RemoteMember(remote, self._models.remote(remote), self._models.remote_approvals(remote))
        if definition.a2a is not None:
            return self._a2a(definition.a2a)
        return None


def _handoff_target(handoff: HandoffDefinition, team: TeamDefinition) -> HandoffTarget:
    spec = handoff_tool_spec(handoff.tool_name, handoff.to, handoff.when, handoff.input)
    schema = ArgumentSchema(handoff.input) if handoff.input is not None else None
    return HandoffTarget(spec, handoff.to, handoff.when, handoff.history, handoff.returns, schema)
