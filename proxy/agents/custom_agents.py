"""Custom agents and teams, which callers create over HTTP: checks, storage, lookup, and the teams built from them.

When a conversation begins, the definition is stored as a *snapshot* under its digest: the team, or the agent with all
agents that it can reach. All turns of the conversation use the team built from the snapshot.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from hashlib import blake2b
from typing import Any

import msgspec

from proxy.agents.custom_agent_repository import (
    CustomAgentRepository,
    CustomAgentVersion,
    Kind,
    Revision,
)
from proxy.agents.custom_definitions import references, targets_of, team_definition, with_reachable_agents
from proxy.agents.registry import SIDE, Registry
from proxy.agents.team import AgentTeam
from proxy.errors import ModelNotFound
from proxy.request_errors import (
    AgentInUse,
    AgentNameTaken,
    AgentOutdated,
    HandoffToolNameTaken,
    ToolNameTooLong,
    UnknownName,
)
from proxy.turns.contract import ServedTeam
from proxy.turns.request import Clock
from proxy.wire.agents import (
    NewAgent,
    NewTeam,
    TeamMember,
    decode_stored_agent,
    decode_stored_team,
    encode_custom,
    validate_input_schema,
)

MAX_TOOL_NAME = 64
"""Maximum length of a function name in the OpenAI API."""
MAX_CACHED_TEAMS = 256
"""Number of teams, snapshots and definitions that each process caches."""


class CustomAgents:
    """The custom agents and teams of all callers.

    An agent can use ``models`` and ``tools`` (with descriptions); tools are listed on first use, because that imports
    them. ``is_taken`` returns whether a name is already a model id. A caller can have ``max_count`` agents and teams.
    """

    def __init__(
        self,
        registry: Registry,
        repository: CustomAgentRepository,
        *,
        models: Sequence[str],
        tools: Callable[[], Mapping[str, str]],
        is_taken: Callable[[str], bool],
        max_count: int,
        clock: Clock,
    ) -> None:
        self.models = models
        self._find_tools = tools
        self._registry = registry
        self._repository = repository
        self._is_taken = is_taken
        self._max_count = max_count
        self._clock = clock
        self._ready: OrderedDict[tuple[str, str], AgentTeam] = OrderedDict()
        self._newest: OrderedDict[tuple[str, str], tuple[Revision, bytes, str]] = OrderedDict()
        self._stored: OrderedDict[str, None] = OrderedDict()

    @cached_property
    def tools(self) -> Mapping[str, str]:
        """The tools that an agent can use, with their descriptions."""
        return self._find_tools()

    # --- definitions ---

    async def put_agent(self, caller: str, name: str, agent: NewAgent) -> CustomAgentVersion:
        """Store a new version of an agent.

        Raises:
            RejectedRequest: The name is taken, a name in the definition is unknown, or the caller has too many agents.
        """
        others = [one.name for one in await self._repository.newest(caller) if one.kind == "agent"]
        self._check(agent, "", [one for one in others if one != name])
        return await self._put(
            caller, "agent", name, encode_custom(msgspec.structs.replace(agent, name=name))
        )

    async def put_team(self, caller: str, name: str, team: NewTeam) -> CustomAgentVersion:
        """Store a new version of a team.

        Raises:
            RejectedRequest: The name is taken, a name in the definition is unknown, or the caller has too many agents.
        """
        if team.entry not in team.agents:
            raise _unknown("entry", "agent", team.entry, team.agents)
        for member, agent in team.agents.items():
            self._check(agent, f"agents.{member}.", [one for one in team.agents if one != member])
        return await self._put(caller, "team", name, encode_custom(msgspec.structs.replace(team, name=name)))

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        """Delete an agent or team; False if there is none.

        Raises:
            AgentInUse: Another agent hands off or delegates to it.
        """
        if kind == "agent":
            for one in await self._repository.newest(caller):
                if (
                    one.kind == "agent"
                    and one.name != name
                    and name in targets_of(decode_stored_agent(one.body))
                ):
                    raise AgentInUse(name, one.name)
        return await self._repository.delete(caller, kind, name)

    async def newest(self, caller: str) -> Sequence[CustomAgentVersion]:
        """Return the newest version of each of the caller's agents and teams."""
        return await self._repository.newest(caller)

    async def find(
        self, caller: str, kind: Kind, name: str, version: int | None = None
    ) -> CustomAgentVersion | None:
        """Return a version of an agent or team, by default the newest."""
        return await self._repository.find(caller, kind, name, version)

    async def _put(self, caller: str, kind: Kind, name: str, body: bytes) -> CustomAgentVersion:
        if self._is_taken(name):
            raise AgentNameTaken(name)
        return await self._repository.put(
            caller, kind, name, body, now=round(self._clock(), 3), max_count=self._max_count
        )

    def _check(self, agent: NewAgent | TeamMember, at: str, others: Collection[str]) -> None:
        """Check the names in a definition; ``at`` is the path of the agent in the body."""
        if agent.model not in self.models:
            raise _unknown(f"{at}model", "model", agent.model, self.models)
        for index, tool in enumerate(agent.tools):
            if tool not in self.tools:
                raise _unknown(f"{at}tools[{index}]", "tool", tool, self.tools)
        taken = set(agent.tools)
        for index, handoff in enumerate(agent.handoffs):
            if handoff.input is not None:
                validate_input_schema(handoff.input, f"{at}handoffs[{index}].input")
        for place, other, tool in references(agent, at):
            if other not in others:
                raise _unknown(place, "agent", other, others)
            if len(tool) > MAX_TOOL_NAME:
                raise ToolNameTooLong(place, tool)
            if tool in taken:
                raise HandoffToolNameTaken(place, tool)
            taken.add(tool)

    # --- teams ---

    async def find_team(self, caller: str, model: str) -> tuple[AgentTeam, bool]:
        """Return the current version of the caller's team with this model id, and whether the id is for side requests.

        Raises:
            ModelNotFound: The caller has no such team or agent.
            AgentOutdated: An agent uses a tool or model that the operator has removed.
        """
        plain = model.removesuffix(SIDE)
        name, _, member = plain.partition("/")
        snapshot, digest = await self._snapshot_of(caller, name, model)
        await self._store_snapshot(caller, name, digest, snapshot)
        return self._team(snapshot, digest, member, model), plain != model

    async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
        """Return the version of the team with which the conversation began; ``team`` if it is that version.

        Raises:
            AgentOutdated: An agent of that version uses a tool or model that the operator has removed.
        """
        digest = await self._repository.pinned(caller, conversation_id, team.name)
        if digest is None or digest == team.snapshot:
            return team
        body = await self._repository.snapshot(caller, digest)
        if body is None:
            return team
        _, _, member = team.name.partition("/")
        return self._team(body, digest, member, team.name)

    async def _snapshot_of(self, caller: str, name: str, model: str) -> tuple[bytes, str]:
        """Return the current definition of a team or agent with all agents that it can reach, and its digest."""
        place = (caller, name)
        revision = await self._repository.revision(caller)
        if revision == (0, 0):
            raise ModelNotFound(model)
        known = self._newest.get(place)
        if known is None or known[0] != revision:
            team = with_reachable_agents(name, await self._repository.newest(caller))
            if team is None:
                self._newest.pop(place, None)
                raise ModelNotFound(model)
            body = encode_custom(team)
            digest = blake2b(caller.encode() + b"\0" + body, digest_size=20).hexdigest()
            known = self._newest[place] = (revision, body, digest)
            _limit(self._newest)
        return known[1], known[2]

    async def _store_snapshot(self, caller: str, name: str, digest: str, body: bytes) -> None:
        if digest not in self._stored:
            await self._repository.store_snapshot(caller, name, digest, body)
            self._stored[digest] = None
            _limit(self._stored)

    def _team(self, body: bytes, digest: str, member: str, model: str) -> AgentTeam:
        place = (digest, member)
        team = self._ready.get(place)
        if team is None:
            stored = decode_stored_team(body)
            if member and member not in stored.agents:
                raise ModelNotFound(model)
            self._check_outdated(stored)
            definition = team_definition(stored, self._registry.approved_tools)
            team = self._registry.make(stored.name or "", definition, digest, alone=member or None)
            self._ready[place] = team
            _limit(self._ready)
        self._ready.move_to_end(place)
        return team

    def _check_outdated(self, team: NewTeam) -> None:
        """Check that the tools and models of a stored definition still exist: the operator can remove them."""
        for name, agent in team.agents.items():
            removed = next((tool for tool in agent.tools if tool not in self.tools), None)
            if removed is None and agent.model not in self.models:
                removed = agent.model
            if removed is not None:
                raise AgentOutdated(name, removed)


def _limit(cache: OrderedDict[Any, Any]) -> None:
    while len(cache) > MAX_CACHED_TEAMS:
        cache.popitem(last=False)


def _unknown(path: str, kind: str, name: str, known: Iterable[str]) -> UnknownName:
    similar = get_close_matches(name, list(known), n=1)
    return UnknownName(path, kind, name, similar[0] if similar else None)
