"""Versions of the teams of the team files: a conversation keeps the version of its team with which it began.

The definition of each team is stored under its digest when the team files are loaded, and each turn has the digest of
its team. Models, tools and secrets are not part of it: they are those of the present team files, found by name.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping

from pydantic import ValidationError

from proxy.agents.custom_agent_repository import CustomAgentRepository
from proxy.agents.registry import Registry, is_file_version
from proxy.agents.team import AgentTeam
from proxy.errors import ConfigurationError
from proxy.teamfiles.definitions import TeamDefinition
from proxy.turns.contract import ServedTeam
from proxy.turns.request import Clock

logger = logging.getLogger(__name__)

NO_CALLER = ""
"""The caller to whom the stored definitions belong: none."""
MAX_CACHED_VERSIONS = 64
COUNT_AGE = 5.0
"""Seconds for which the number of versions of a team is cached. Other workers can have stored a newer one."""


class TeamVersions:
    """The versions of the teams of one registry; one instance for each registry."""

    def __init__(self, registry: Registry, repository: CustomAgentRepository, clock: Clock) -> None:
        self._registry = registry
        self._repository = repository
        self._clock = clock
        self._changed: dict[str, tuple[float, bool]] = {}
        """Whether a team has other versions than the present one, and when that was read."""
        self._ready: OrderedDict[tuple[str, str], AgentTeam | None] = OrderedDict()

    async def store(self) -> None:
        """Store the present version of each team. Idempotent."""
        for name, version in self._registry.versions.items():
            await self._repository.store_snapshot(NO_CALLER, name, version.digest, version.body)

    async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
        """Return the version of the team with which the conversation began.

        It is the present version if the other one cannot be built any more, because a model or tool was removed.
        """
        name, _, member = team.name.partition("/")
        if not await self._has_changed(name):
            return team
        digest = await self._repository.pinned(caller, conversation_id, team.name)
        if digest is None or digest == team.snapshot or not is_file_version(digest):
            return team
        place = (digest, member)
        if place not in self._ready:
            body = await self._repository.snapshot(NO_CALLER, digest)
            self._ready[place] = None if body is None else self._built(name, member, body, digest)
            while len(self._ready) > MAX_CACHED_VERSIONS:
                self._ready.popitem(last=False)
        return self._ready[place] or team

    async def _has_changed(self, name: str) -> bool:
        now = self._clock()
        read_at, has_changed = self._changed.get(name, (0.0, False))
        # Versions are never removed, so a team that has changed once is not looked up again.
        if not has_changed and not 0 <= now - read_at < COUNT_AGE:
            has_changed = await self._repository.count_snapshots(NO_CALLER, name) > 1
            self._changed[name] = (now, has_changed)
        return has_changed

    def _built(self, name: str, member: str, body: bytes, digest: str) -> AgentTeam | None:
        try:
            definition = _with_secrets(
                TeamDefinition.model_validate_json(body), self._registry.definitions.teams.get(name)
            )
            if member and member not in definition.agents:
                raise KeyError(member)
            return self._registry.make(name, definition, digest, alone=member or None)
        except (KeyError, ConfigurationError, ValidationError) as error:
            # The name of what is missing; definitions have no secrets.
            logger.warning(
                "conversations of an earlier version of a team use the present one",
                extra={"team": name, "missing": str(error)[:200]},
            )
            return None


def _with_secrets(definition: TeamDefinition, present: TeamDefinition | None) -> TeamDefinition:
    """Return the definition with the present connections of remote agents, which the stored one does not have.

    Raises:
        KeyError: A remote agent is not in the present team.
    """
    agents = dict(definition.agents)
    known: Mapping[str, object] = present.agents if present is not None else {}
    for name, agent in definition.agents.items():
        for key in ("remote", "a2a"):
            if getattr(agent, key) is None:
                continue
            if name not in known or present is None or getattr(present.agents[name], key) is None:
                raise KeyError(name)
            agents[name] = agent.model_copy(update={key: getattr(present.agents[name], key)})
    return definition.model_copy(update={"agents": agents})
