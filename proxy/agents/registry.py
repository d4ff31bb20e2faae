"""The teams that are served: definitions with every name resolved, and the dispatcher that reaches their agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from proxy.agents.clients.port import Model
from proxy.agents.definition import (
    AgentDefinition,
    ComponentModel,
    HandoffDefinition,
    TeamDefinition,
    TeamsFile,
)
from proxy.agents.dispatching import Dispatcher, Handler
from proxy.agents.floor import Agent, Delegate
from proxy.agents.team import AgentTeam, TeamFacts
from proxy.errors import ModelNotFound
from proxy.messages import Parameters
from proxy.tools.delegates import delegate_spec
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
        tools: Mapping[str, Tool],
        dispatcher: Dispatcher,
        data_dir: Path,
        max_tool_result_bytes: int,
        max_client_tools: int,
    ) -> None:
        self._models = models
        self._tools = tools
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
        """Make every agent reachable."""
        handlers: dict[str, Handler] = {}
        for team in (*self._teams.values(), *self._alone.values(), *self._exposed.values()):
            handlers.update(team.handlers())
        await self._dispatcher.start(handlers)

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

    def _team(self, name: str, definition: TeamDefinition) -> AgentTeam:
        facts = self._facts(name, definition.entry, definition)
        agents = [self._agent(agent, definition.agents[agent], definition) for agent in definition.agents]
        return AgentTeam(facts, agents, self._dispatcher, side_model=self._side_model(definition))

    def _one_agent(self, team: str, name: str, definition: TeamDefinition) -> AgentTeam:
        facts = dataclasses.replace(
            self._facts(f"{team}/{name}", name, definition),
            part_of=team,
            steps=(),
            description=definition.agents[name].description,
        )
        agent = self._agent(name, definition.agents[name], definition)
        alone = dataclasses.replace(agent, delegates={})
        return AgentTeam(facts, [alone], self._dispatcher, side_model=self._side_model(definition))

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
    return Delegate(delegate_spec(handoff.tool_name, handoff.to, handoff.when), handoff.to)
