"""The teams that are served: definitions with every name resolved, and the dispatcher that reaches their agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from proxy.agents.dispatch import Dispatcher
from proxy.agents.team import AgentTeam, TeamFacts
from proxy.agents.turn_state import Agent, Delegate
from proxy.errors import ConfigurationError, ModelNotFound
from proxy.messages import Parameters
from proxy.providers.model import Model
from proxy.teamfiles.definitions import (
    AgentDefinition,
    ComponentModel,
    HandoffDefinition,
    TeamDefinition,
    TeamsFile,
)
from proxy.tools.handoff_tools import handoff_tool_spec
from proxy.tools.port import Tool

SIDE = "/side"
"""Behind a model id, that for titles, tags and other side requests."""


class ModelSource(Protocol):
    """Models ready to be asked."""

    def model_for(self, name: str, fallbacks: Sequence[str] = ()) -> Model:
        """Return the model with this name, and behind it those that are asked when it fails."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class Registry:
    """Every team of one configuration. ``start`` before the first turn, ``close`` after the last."""

    def __init__(
        self,
        definitions: TeamsFile,
        *,
        models: ModelSource,
        model_names: Sequence[str] = (),
        tools: Mapping[str, Tool],
        dispatcher: Dispatcher,
        data_dir: Path,
        max_tool_result_bytes: int,
        max_client_tools: int,
    ) -> None:
        self._models = models
        self.models = model_names
        """The names of the models that are there, for teams that are made later."""
        self._tools = tools
        self.approved_tools = frozenset(
            use.name
            for team in definitions.teams.values()
            for agent in team.agents.values()
            for use in agent.tools
            if use.approval is not None
        )
        """What some agent of the files may only call when a person approves."""
        self._dispatcher = dispatcher
        self._data_dir = data_dir
        self._max_tool_result_bytes = max_tool_result_bytes
        self._max_client_tools = max_client_tools
        self._teams = {name: self._team(name, team) for name, team in definitions.teams.items()}
        self._exposed = {
            name: self._plain(name)
            for name, model in definitions.models.items()
            if isinstance(model, ComponentModel) and model.expose
        }
        self._alone = {
            f"{name}/{agent}": self._one_agent(name, agent, team)
            for name, team in definitions.teams.items()
            for agent in team.agents
        }

    async def start(self) -> None:
        """Start the dispatcher."""
        await self._dispatcher.start()

    async def close(self) -> None:
        """Stop the dispatcher and close the models."""
        await self._dispatcher.close()
        await self._models.close()

    @property
    def names(self) -> Collection[str]:
        """The teams' names, in the order of the team files."""
        return list(self._teams)

    def find(self, model: str) -> tuple[AgentTeam, bool]:
        """Return the team with this model id, and whether the id is that of its side requests.

        ``team/agent`` is a team of that agent alone: it has the floor, and nobody to hand it to. A component that is
        served under its own name answers as for side requests: it is asked, and nothing is kept.

        Raises:
            ModelNotFound: There is none.
        """
        if model in self._teams:
            return self._teams[model], False
        # First, so that an agent with the name 'side' does not take its team's place for side requests.
        name = model.removesuffix(SIDE)
        if name != model and (team := self._teams.get(name) or self._alone.get(name)):
            return team, True
        if model in self._alone:
            return self._alone[model], False
        if model in self._exposed:
            return self._exposed[model], True
        raise ModelNotFound(model)

    def knows(self, model: str) -> bool:
        """Whether there is such a team."""
        try:
            self.find(model)
        except ModelNotFound:
            return False
        return True

    def check_tools(self, names: Sequence[str]) -> None:
        """Refuse names of tools that are not there.

        Raises:
            ConfigurationError: Naming the first.
        """
        unknown = next((name for name in names if name not in self._tools), None)
        if unknown is not None:
            raise ConfigurationError(f"PROXY_AGENT_TOOLS: there is no tool '{unknown}'")

    def tools_named(self, names: Sequence[str] | None) -> Mapping[str, str]:
        """Return the tools with these names and what they are for; for None, those that change nothing."""
        if names is None:
            names = [name for name, tool in self._tools.items() if not tool.has_effects]
        return {name: self._tools[name].spec.description or "" for name in names}

    def make(
        self, name: str, definition: TeamDefinition, snapshot: str, *, alone: str | None = None
    ) -> AgentTeam:
        """Return a team that a caller made, or one agent of it ``alone``; it is not found by its name here.

        Models and tools have to be there.
        """
        team = self._team(name, definition) if alone is None else self._one_agent(name, alone, definition)
        team.facts = dataclasses.replace(team.facts, snapshot=snapshot)
        return team

    def _team(self, name: str, definition: TeamDefinition) -> AgentTeam:
        facts = self._facts(name, definition.entry, definition)
        agents = [self._agent(agent, definition.agents[agent], definition) for agent in definition.agents]
        side_model = self._side_model(definition)
        return AgentTeam(facts, agents, self._dispatcher, side_model=side_model)

    def _one_agent(self, team: str, name: str, definition: TeamDefinition) -> AgentTeam:
        facts = dataclasses.replace(
            self._facts(f"{team}/{name}", name, definition),
            part_of=team,
            steps=(),
            description=definition.agents[name].description,
        )
        agent = self._agent(name, definition.agents[name], definition)
        alone = dataclasses.replace(agent, delegates={})
        side_model = self._side_model(definition)
        return AgentTeam(facts, [alone], self._dispatcher, side_model=side_model)

    def _plain(self, name: str) -> AgentTeam:
        model = self._models.model_for(name)
        facts = TeamFacts(name=name, entry="model")
        agent = Agent(name="model", instructions="", model=model, client_tools="pass")
        return AgentTeam(facts, [agent], self._dispatcher, side_model=model)

    def _facts(self, name: str, entry: str, definition: TeamDefinition) -> TeamFacts:
        return TeamFacts(
            name=name,
            entry=entry,
            description=definition.description,
            limits=definition.limits,
            on_disconnect=definition.on_disconnect,
            steps=definition.steps,
            prompt_cache=definition.prompt_cache,
            data_dir=self._data_dir,
            max_tool_result_bytes=self._max_tool_result_bytes,
            max_client_tools=self._max_client_tools,
        )

    def _side_model(self, definition: TeamDefinition) -> Model:
        return self._models.model_for(definition.side_model or definition.agents[definition.entry].model)

    def _agent(self, name: str, definition: AgentDefinition, team: TeamDefinition) -> Agent:
        client_tools = definition.client_tools if definition.client_tools is not None else team.client_tools
        tools = [(self._tools[use.name], use) for use in definition.tools]
        return Agent(
            name=name,
            instructions=definition.instructions,
            model=self._models.model_for(definition.model, definition.fallbacks),
            tools={tool.spec.name: tool for tool, _ in tools},
            approvals=frozenset(tool.spec.name for tool, use in tools if use.approval == "required"),
            delegates={handoff.tool_name: _delegate(handoff, team) for handoff in definition.handoffs},
            client_tools=client_tools,
            parameters=msgspec.convert(definition.parameters, Parameters, strict=False),
            max_parallel_tools=definition.max_parallel_tools,
            tool_call_timeout=definition.tool_call_timeout,
        )


def _delegate(handoff: HandoffDefinition, team: TeamDefinition) -> Delegate:
    return Delegate(handoff_tool_spec(handoff.tool_name, handoff.to, handoff.when), handoff.to)
