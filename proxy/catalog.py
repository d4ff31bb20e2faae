"""The served model ids: teams, their agents, exposed and passthrough models, and custom agents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec.structs import replace

from proxy.agents.custom_agent_repository import CustomAgentVersion
from proxy.agents.custom_agents import CustomAgents
from proxy.agents.registry import SIDE, Registry
from proxy.agents.team import AgentTeam
from proxy.errors import ModelNotFound
from proxy.messages import EventsMode
from proxy.providers.context_windows import configured_window
from proxy.providers.passthrough_models import ListedModel
from proxy.routes.dependencies import FileAgent, FileTeam, ListedTeam, ModelFacts
from proxy.teamfiles.definitions import (
    AgentDefinition,
    ComponentModel,
    DemoModel,
    ModelDefinition,
    OpenAIModel,
    TeamDefinition,
    TeamsFile,
)
from proxy.teamfiles.summary import exposed_models

OWNER = "handoff-proxy"


class TeamCatalog:
    """The model ids of ``/v1/models``; ids for side requests are found but not listed."""

    def __init__(
        self,
        definitions: TeamsFile,
        registry: Registry,
        *,
        created: int,
        listed: Callable[[], Sequence[ListedModel]] = tuple,
        custom_agents: CustomAgents | None = None,
    ) -> None:
        """``listed`` returns the passthrough models, ``custom_agents`` are the custom agents and teams of callers."""
        self._custom = custom_agents
        self._created = created
        self._passthrough = listed
        self._models = definitions.models
        self._teams = definitions.teams
        teams = definitions.teams.items()
        found = [self._team(name, team, registry) for name, team in teams]
        for name, team in teams:
            found += [self._agent(name, agent, team, registry) for agent in team.agents if agent != SIDE[1:]]
        found += [self._exposed(name) for name in exposed_models(definitions)]
        self._listed = found
        self._found = {facts.id: facts for facts in found}
        self._found.update((facts.id + SIDE, self._side(facts)) for facts in found if facts.team is not None)

    def models(self) -> Sequence[ModelFacts]:
        """Return the teams in the order of the team files, then their agents, then exposed and passthrough models."""
        return [*self._listed, *map(self._passed, self._passthrough())]

    def find(self, model: str) -> ModelFacts | None:
        """Return the model with this id, listed or not."""
        if model in self._found:
            return self._found[model]
        return next((self._passed(one) for one in self._passthrough() if one.id == model), None)

    def file_team(self, team: str) -> FileTeam | None:
        """Return a team of the team files."""
        found = self._teams.get(team)
        if found is None:
            return None
        agents = {name: _file_agent(agent) for name, agent in found.agents.items() if name != SIDE[1:]}
        return FileTeam(found.display_name, found.description, found.entry, found.examples, agents)

    async def custom(self, caller: str) -> Sequence[ModelFacts]:
        """Return the custom agents and teams of a caller, in the order of their creation."""
        if self._custom is None:
            return []
        return [await self._custom_facts(caller, one) for one in await self._custom.newest(caller)]

    async def find_custom(self, caller: str, model: str) -> ModelFacts | None:
        """Return a custom agent or team; agents of custom teams and side requests are found but not listed."""
        if self._custom is None:
            return None
        try:
            team, is_side = await self._custom.find_team(caller, model)
        except ModelNotFound:
            return None
        listed = None if is_side else _listed_team(team, None)
        return ModelFacts(
            id=model,
            created=self._created,
            owned_by=OWNER,
            name=team.facts.display_name or model,
            description=team.facts.description,
            team=listed,
            fingerprint=f"fp_{(team.snapshot or '')[:10]}",
        )

    async def _custom_facts(self, caller: str, one: CustomAgentVersion) -> ModelFacts:
        found = await self.find_custom(caller, one.name) or ModelFacts(one.name, 0, OWNER)
        return replace(found, created=int(one.created_at))

    def _team(self, name: str, team: TeamDefinition, registry: Registry) -> ModelFacts:
        return ModelFacts(
            id=name,
            created=self._created,
            owned_by=OWNER,
            name=team.display_name or name,
            description=team.description,
            context_length=_shortest(team.agents.values(), self._models),
            team=self._listed_team(name, team, team.entry, registry),
            fingerprint=_fingerprint(name, team, self._models),
        )

    def _agent(self, team_name: str, name: str, team: TeamDefinition, registry: Registry) -> ModelFacts:
        agent = team.agents[name]
        model = f"{team_name}/{name}"
        return ModelFacts(
            id=model,
            created=self._created,
            owned_by=OWNER,
            name=f"{name} ({team_name})",
            description=agent.description,
            context_length=_shortest([agent], self._models),
            team=self._listed_team(model, team, name, registry),
            fingerprint=_fingerprint(model, team, self._models),
        )

    def _listed_team(self, model: str, team: TeamDefinition, entry: str, registry: Registry) -> ListedTeam:
        """Return the listing of a team or of one of its agents, whose examples are the team's."""
        return replace(
            _listed(model, team.events, registry),
            examples=team.examples if entry == team.entry else (),
            is_demo=team.agents[entry].member is None
            and isinstance(self._models[team.agents[entry].model], DemoModel),
        )

    def _exposed(self, name: str) -> ModelFacts:
        model = self._models[name]
        length = configured_window(model).tokens
        return ModelFacts(id=name, created=self._created, owned_by=OWNER, name=name, context_length=length)

    def _passed(self, model: ListedModel) -> ModelFacts:
        return ModelFacts(
            id=model.id,
            created=model.created or self._created,
            owned_by=model.owned_by or OWNER,
            name=model.id,
        )

    def _side(self, facts: ModelFacts) -> ModelFacts:
        return ModelFacts(id=facts.id + SIDE, created=self._created, owned_by=OWNER, name=facts.id + SIDE)


def _file_agent(agent: AgentDefinition) -> FileAgent:
    return FileAgent(
        description=agent.description,
        instructions=agent.instructions,
        model=agent.model if agent.member is None else "",
        tools=[tool.name for tool in agent.tools],
        handoffs=[(one.to, one.when) for one in agent.handoffs],
    )


def _listed(model: str, events: EventsMode | None, registry: Registry) -> ListedTeam:
    """Return the listing of the team of a model id; tools have their function names."""
    return _listed_team(registry.find(model)[0], events)


def _listed_team(team: AgentTeam, events: EventsMode | None) -> ListedTeam:
    agents = team.agents.values()
    return ListedTeam(
        agents=list(team.agents),
        entry=team.entry,
        tools=list(dict.fromkeys(tool for agent in agents for tool in agent.tools)),
        accepts_images="image_url" in team.content_parts,
        takes_client_tools=any(agent.client_tools not in ("ignore", ()) for agent in agents),
        events=events,
    )


def _fingerprint(model: str, team: TeamDefinition, models: Mapping[str, ModelDefinition]) -> str:
    """Return a hash of the configuration of a team and its models, without API keys and headers."""
    names = sorted({name for agent in team.agents.values() for name in (agent.model, *agent.fallbacks)})
    hashed = [model, team.model_dump(mode="json"), [(name, _configuration(models[name])) for name in names]]
    return f"fp_{blake2b(msgspec.json.encode(hashed, order='sorted'), digest_size=5).hexdigest()}"


def _configuration(model: ModelDefinition) -> Any:
    match model:
        case OpenAIModel():
            return model.model_dump(mode="json", exclude={"api_key", "headers"})
        case ComponentModel():
            return [model.provider, model.config.get("model")]
        case DemoModel():
            return "demo"


def _shortest(agents: Iterable[AgentDefinition], models: Mapping[str, ModelDefinition]) -> int | None:
    """Return the smallest context window of the models of the agents; None if one is unknown."""
    used = [
        models[name] for agent in agents if agent.member is None for name in (agent.model, *agent.fallbacks)
    ]
    lengths = [configured_window(model).tokens for model in used]
    known = [length for length in lengths if length is not None]
    return min(known) if known and len(known) == len(lengths) else None
