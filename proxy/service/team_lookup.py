"""Find the team of a model id: a team of the team files, or one that the caller created."""

from __future__ import annotations

from typing import Protocol

from proxy.errors import ModelNotFound
from proxy.turns.contract import ServedTeam


class CustomTeams(Protocol):
    """Teams that callers created."""

    async def find_team(self, caller: str, model: str) -> tuple[ServedTeam, bool]:
        """Return the current version of the caller's team with this model id, and whether the id is for side requests.

        Raises:
            ModelNotFound: The caller has no such team.
        """
        ...

    async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
        """Return the version of the team with which the conversation began; ``team`` if it is that version."""
        ...


class Teams(Protocol):
    """Teams of the team files."""

    def find(self, model: str) -> tuple[ServedTeam, bool]:
        """Return the team with this model id, and whether the id is for side requests.

        Raises:
            ModelNotFound: No team has this id.
        """
        ...


class FileTeamVersions(Protocol):
    """Versions of the teams of the team files."""

    async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
        """Return the version of the team with which the conversation began."""
        ...


class TeamLookup:
    """Both kinds of teams; those of the team files take precedence."""

    def __init__(
        self,
        teams: Teams,
        custom_teams: CustomTeams | None = None,
        versions: FileTeamVersions | None = None,
    ) -> None:
        self._teams = teams
        self._custom_teams = custom_teams
        self._versions = versions

    def find_in_files(self, model: str) -> tuple[ServedTeam, bool] | None:
        """Return what ``find`` returns if the team is one of the team files, else None."""
        try:
            return self._teams.find(model)
        except ModelNotFound:
            return None

    async def find(self, caller: str, model: str) -> tuple[ServedTeam, bool]:
        """Return the team with this model id, and whether the id is for side requests.

        Raises:
            ModelNotFound: The caller has no team with this id.
        """
        found = self.find_in_files(model)
        if found is not None:
            return found
        if self._custom_teams is None:
            raise ModelNotFound(model)
        return await self._custom_teams.find_team(caller, model)

    async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
        """Return the version of the team with which the conversation began."""
        if team.snapshot is None:
            return team
        if self.find_in_files(team.name) is not None:
            return await self._versions.as_begun(caller, conversation_id, team) if self._versions else team
        if self._custom_teams is None:
            return team
        return await self._custom_teams.as_begun(caller, conversation_id, team)

    def steps_of(self, model: str) -> tuple[str, ...]:
        """Return the steps of a team of the team files; empty for any other model id."""
        found = self.find_in_files(model)
        return found[0].steps if found is not None else ()
