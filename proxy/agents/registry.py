"""The teams of the team files: definitions with all names resolved, and the dispatcher that runs their agents."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import msgspec

from proxy.agents.agent import Agent, Delegation, HandoffTarget
from proxy.agents.compaction.compactor import CompactionPolicy, Compactor
from proxy.agents.compaction.summary import CutCache, SummaryWriter
from proxy.agents.delegation import delegate_tool_spec
from proxy.agents.dispatch import Dispatcher
from proxy.agents.remote_member import RemoteApprovals, RemoteMember
from proxy.agents.team import AgentTeam, TeamFacts
from proxy.errors import ModelNotFound
from proxy.members.port import Member
from proxy.messages import Parameters
from proxy.providers.context_windows import ContextWindow, known_window
from proxy.providers.model import Model
from proxy.teamfiles.definitions import (
    A2AAgentDefinition,
    AgentDefinition,
    ComponentModel,
    DelegateDefinition,
    HandoffDefinition,
    RemoteAgentDefinition,
    TeamDefinition,
    TeamsFile,
)
from proxy.tools.handoff_tools import handoff_tool_spec
from proxy.tools.mcp.argument_schema import ArgumentSchema
from proxy.tools.port import Tool

logger = logging.getLogger(__name__)

SIDE = "/side"
"""Suffix of a model id for side requests (titles, tags)."""
_FILE_VERSION = "file:"


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


@dataclasses.dataclass(frozen=True, slots=True)
class TeamVersion:
    """The definition of a team as JSON, without secrets, and its digest."""

    digest: str
    body: bytes


def version_of(definition: TeamDefinition) -> TeamVersion:
    """Return the version that a definition is."""
    body = definition.model_dump_json().encode()
    return TeamVersion(f"{_FILE_VERSION}{blake2b(body, digest_size=20).hexdigest()}", body)


def is_file_version(snapshot: str) -> bool:
    """Whether a snapshot is a version of a team of the team files, and not of a custom team."""
    return snapshot.startswith(_FILE_VERSION)


class Registry:
    """All teams of one configuration. ``start`` comes before the first turn, ``close`` after the last."""

    def __init__(
        self,
        definitions: TeamsFile,
        *,
        models: ModelSource,
        model_names: Sequence[str] = (),
        tools: Mapping[str, Tool],
        members: Mapping[str, Member] | None = None,
        dispatcher: Dispatcher,
        data_dir: Path,
        max_tool_result_bytes: int,
        max_client_tools: int,
        max_answer_bytes: int,
    ) -> None:
        self.definitions = definitions
        self.versions = {name: version_of(team) for name, team in definitions.teams.items()}
        """The present version of each team."""
        self._models = models
        self.models = model_names
        """The names of the models that custom agents can use."""
        self._tools = tools
        self._members = members or {}
        self._a2a_members: dict[object, Member] = {}
        self._windows: dict[object, ContextWindow] = {}
        """The context windows of members."""
        self.approved_tools = frozenset(
            use.name
            for team in definitions.teams.values()
            for agent in team.agents.values()
            for use in agent.tools
            if use.approval is not None
        )
        """Names of tools whose calls need approval for at least one agent of the team files."""
        self._dispatcher = dispatcher
        self._data_dir = data_dir
        self._max_tool_result_bytes = max_tool_result_bytes
        self._max_client_tools = max_client_tools
        self._max_answer_bytes = max_answer_bytes
        self._cuts = CutCache()
        self._teams = {
            name: _pinned(self._team(name, team), self.versions[name].digest)
            for name, team in definitions.teams.items()
        }
        self._exposed = {
            name: self._plain(name)
            for name, model in definitions.models.items()
            if isinstance(model, ComponentModel) and model.expose
        }
        self._alone = {
            f"{name}/{agent}": _pinned(self._one_agent(name, agent, team), self.versions[name].digest)
            for name, team in definitions.teams.items()
            for agent in team.agents
        }

    async def start(self) -> None:
        """Start the dispatcher."""
        await self._dispatcher.start()

    async def close(self) -> None:
        """Stop the dispatcher, and close the members and the models."""
        await self._dispatcher.close()
        await self.close_members()
        await self.close_models()

    async def close_members(self) -> None:
        """Close the agents that are Python objects."""
        for name, member in self._members.items():
            try:
                await member.close()
            except Exception:
                logger.exception("closing of a member failed", extra={"member": name})

    async def close_models(self) -> None:
        """Close the models and the connections of A2A agents, after the last turn of the teams."""
        for member in self._a2a_members.values():
            await member.close()
        await self._models.close()

    @property
    def names(self) -> Collection[str]:
        """The teams' names, in the order of the team files."""
        return list(self._teams)

    def find(self, model: str) -> tuple[AgentTeam, bool]:
        """Return the team with this model id, and whether the id is for side requests.

        ``team/agent`` is a team of that agent alone, without handoffs. Requests to an exposed component are side
        requests: nothing is stored.

        Raises:
            ModelNotFound: No team has this id.
        """
        if model in self._teams:
            return self._teams[model], False
        # Checked before single agents: 'team/side' is for side requests even if an agent is named 'side'.
        name = model.removesuffix(SIDE)
        if name != model and (team := self._teams.get(name) or self._alone.get(name)):
            return team, True
        if model in self._alone:
            return self._alone[model], False
        if model in self._exposed:
            return self._exposed[model], True
        raise ModelNotFound(model)

    def _find_team(self, name: str) -> AgentTeam:
        """Return a team of the team files, for a delegation to it."""
        if name not in self._teams:
            raise ModelNotFound(name)
        return self._teams[name]

    def knows(self, model: str) -> bool:
        """Whether a team has this model id."""
        try:
            self.find(model)
        except ModelNotFound:
            return False
        return True

    def tools_named(self, names: Sequence[str] | None) -> Mapping[str, str]:
        """Return the descriptions of the tools with these names; for None, of all tools without effects."""
        if names is None:
            names = [name for name, tool in self._tools.items() if not tool.has_effects]
        return {name: self._tools[name].spec.description or "" for name in names}

    def make(
        self, name: str, definition: TeamDefinition, snapshot: str, *, alone: str | None = None
    ) -> AgentTeam:
        """Return a custom team or an earlier version of a team, or one agent of it (``alone``).

        It is not registered: ``find`` does not return it.

        Its models and tools have to exist.
        """
        team = self._team(name, definition) if alone is None else self._one_agent(name, alone, definition)
        return _pinned(team, snapshot)

    def _team(self, name: str, definition: TeamDefinition) -> AgentTeam:
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
            find_team=self._find_team,
        )

    def _one_agent(self, team: str, name: str, definition: TeamDefinition) -> AgentTeam:
        facts = dataclasses.replace(
            self._facts(f"{team}/{name}", name, definition),
            part_of=team,
            steps=(),
            display_name="",
            description=definition.agents[name].description,
        )
        agent = self._agent(name, definition.agents[name], definition)
        alone = dataclasses.replace(agent, handoff_targets={}, delegations={})
        side_model = self._side_model(definition)
        compactor = self._compactor(team, definition)
        return AgentTeam(facts, [alone], self._dispatcher, side_model=side_model, compactor=compactor)

    def _plain(self, name: str) -> AgentTeam:
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
        tools = [(self._tools[use.name], use) for use in definition.tools]
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
            description = self.definitions.teams[definition.team or ""].description
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


def _pinned(team: AgentTeam, snapshot: str) -> AgentTeam:
    team.snapshot = snapshot
    return team


def _handoff_target(handoff: HandoffDefinition, team: TeamDefinition) -> HandoffTarget:
    spec = handoff_tool_spec(handoff.tool_name, handoff.to, handoff.when, handoff.input)
    schema = ArgumentSchema(handoff.input) if handoff.input is not None else None
    return HandoffTarget(spec, handoff.to, handoff.when, handoff.history, handoff.returns, schema)
