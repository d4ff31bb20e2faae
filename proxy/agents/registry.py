"""The teams of the team files: lookup by model id, and their versions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

from msgspec import Struct

from proxy.agents.team import AgentTeam
from proxy.agents.team_factory import TeamFactory
from proxy.errors import ModelNotFound
from proxy.teamfiles.definitions import ComponentModel, TeamDefinition, TeamsFile

SIDE = "/side"
"""Suffix of a model id for side requests (titles, tags)."""
_FILE_VERSION = "file:"


class TeamVersion(Struct, frozen=True):
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
    """All teams of one configuration, found by model id."""

    def __init__(self, definitions: TeamsFile, factory: TeamFactory, *, models: Sequence[str] = ()) -> None:
        self.definitions = definitions
        self.versions = {name: version_of(team) for name, team in definitions.teams.items()}
        """The present version of each team."""
        self.models = models
        """The names of the models that custom agents can use."""
        self.approved_tools = frozenset(
            use.name
            for team in definitions.teams.values()
            for agent in team.agents.values()
            for use in agent.tools
            if use.approval is not None
        )
        """Names of tools whose calls need approval for at least one agent of the team files."""
        self._factory = factory
        self._teams = {
            name: _pinned(factory.team(name, team, self._find_team), self.versions[name].digest)
            for name, team in definitions.teams.items()
        }
        self._exposed = {
            name: factory.exposed_model(name)
            for name, model in definitions.models.items()
            if isinstance(model, ComponentModel) and model.expose
        }
        self._alone = {
            f"{name}/{agent}": _pinned(factory.single_agent(name, agent, team), self.versions[name].digest)
            for name, team in definitions.teams.items()
            for agent in team.agents
        }

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
        tools = self._factory.tools
        if names is None:
            names = [name for name, tool in tools.items() if not tool.has_effects]
        return {name: tools[name].spec.description or "" for name in names}

    def make(
        self, name: str, definition: TeamDefinition, snapshot: str, *, alone: str | None = None
    ) -> AgentTeam:
        """Return a custom team or an earlier version of a team, or one agent of it (``alone``).

        It is not registered: ``find`` does not return it.

        Its models and tools have to exist.
        """
        if alone is None:
            return _pinned(self._factory.team(name, definition, self._find_team), snapshot)
        return _pinned(self._factory.single_agent(name, alone, definition), snapshot)


def _pinned(team: AgentTeam, snapshot: str) -> AgentTeam:
    team.snapshot = snapshot
    return team
