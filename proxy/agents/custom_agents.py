"""Agents and teams that callers make over HTTP: checked, kept, found by their names, and made ready to answer.

What a conversation began with is a *snapshot*: the agent, or the team, with everyone it hands over to, as they were
then. It is kept under its digest, and a team that is made of it serves every turn of that conversation.
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
    Creation,
    Creations,
    Kind,
    NameTaken,
    Revision,
    TooManyCreations,
)
from proxy.agents.registry import SIDE, Registry
from proxy.agents.team import AgentTeam
from proxy.errors import ModelNotFound
from proxy.request_errors import (
    AgentInUse,
    AgentNameTaken,
    AgentOutdated,
    HandoffToolNameTaken,
    TooManyAgents,
    UnknownName,
)
from proxy.teamfiles.definitions import AgentDefinition, HandoffDefinition, Limits, TeamDefinition, ToolUse
from proxy.turns.contract import ServedTeam
from proxy.turns.request import Clock
from proxy.wire.agents import (
    NewAgent,
    NewTeam,
    TeamMember,
    decode_stored_agent,
    decode_stored_team,
    encode_custom,
)

KEPT_READY = 256
"""Teams that stay ready to answer, in this process."""


class MadeTeams:
    """Those of all callers.

    ``models`` and ``tools`` (with descriptions) are what an agent may be made of; tools are looked at when they are
    needed, since that makes them. ``is_taken`` tells names that are
    served already, and ``most`` is how many things a caller may have.
    """

    def __init__(
        self,
        registry: Registry,
        creations: Creations,
        *,
        models: Sequence[str],
        tools: Callable[[], Mapping[str, str]],
        is_taken: Callable[[str], bool],
        most: int,
        clock: Clock,
    ) -> None:
        self.models = models
        self._find_tools = tools
        self._registry = registry
        self._creations = creations
        self._is_taken = is_taken
        self._most = most
        self._clock = clock
        self._ready: OrderedDict[tuple[str, str], AgentTeam] = OrderedDict()
        self._newest: OrderedDict[tuple[str, str], tuple[Revision, bytes, str]] = OrderedDict()
        self._kept: OrderedDict[str, None] = OrderedDict()

    @cached_property
    def tools(self) -> Mapping[str, str]:
        """The tools that an agent may have, and what they are for."""
        return self._find_tools()

    # --- making ---

    async def put_agent(self, caller: str, name: str, agent: NewAgent) -> Creation:
        """Keep a new version of an agent.

        Raises:
            InvalidRequest: The name is taken, or something that it names does not exist.
        """
        others = [one.name for one in await self._creations.newest(caller) if one.kind == "agent"]
        self._check(agent, "", [one for one in others if one != name])
        return await self._put(
            caller, "agent", name, encode_custom(msgspec.structs.replace(agent, name=name))
        )

    async def put_team(self, caller: str, name: str, team: NewTeam) -> Creation:
        """Keep a new version of a team.

        Raises:
            InvalidRequest: The name is taken, or something that it names does not exist.
        """
        if team.entry not in team.agents:
            raise _unknown("entry", "agent", team.entry, team.agents)
        for member, agent in team.agents.items():
            self._check(agent, f"agents.{member}.", [one for one in team.agents if one != member])
        return await self._put(caller, "team", name, encode_custom(msgspec.structs.replace(team, name=name)))

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        """Delete it; False when there is none.

        Raises:
            InvalidRequest: Another agent hands over to it.
        """
        if kind == "agent":
            for one in await self._creations.newest(caller):
                if (
                    one.kind == "agent"
                    and one.name != name
                    and name in _targets(decode_stored_agent(one.body))
                ):
                    raise AgentInUse(name, one.name)
        return await self._creations.delete(caller, kind, name)

    async def newest(self, caller: str) -> Sequence[Creation]:
        """Return everything of the caller's as it is now."""
        return await self._creations.newest(caller)

    async def find(self, caller: str, kind: Kind, name: str, version: int | None = None) -> Creation | None:
        """Return one of them, as it is now or in a version."""
        return await self._creations.find(caller, kind, name, version)

    async def _put(self, caller: str, kind: Kind, name: str, body: bytes) -> Creation:
        if self._is_taken(name):
            raise AgentNameTaken(name)
        try:
            return await self._creations.put(
                caller, kind, name, body, now=round(self._clock(), 3), most=self._most
            )
        except NameTaken:
            raise AgentNameTaken(name) from None
        except TooManyCreations:
            raise TooManyAgents(self._most) from None

    def _check(self, agent: NewAgent | TeamMember, at: str, others: Collection[str]) -> None:
        """Refuse names of what is not there; ``at`` is where the agent stands in the body."""
        if agent.model not in self.models:
            raise _unknown(f"{at}model", "model", agent.model, self.models)
        for index, tool in enumerate(agent.tools):
            if tool not in self.tools:
                raise _unknown(f"{at}tools[{index}]", "tool", tool, self.tools)
        taken = set(agent.tools)
        for index, handoff in enumerate(agent.handoffs):
            place = f"{at}handoffs[{index}].to"
            if handoff.to not in others:
                raise _unknown(place, "agent", handoff.to, others)
            delegate = HandoffDefinition(to=handoff.to).tool_name
            if delegate in taken:
                raise HandoffToolNameTaken(place, delegate)
            taken.add(delegate)

    # --- answering ---

    async def find_team(self, caller: str, model: str) -> tuple[AgentTeam, bool]:
        """See ``exchange.service.MadeTeams``."""
        plain = model.removesuffix(SIDE)
        name, _, member = plain.partition("/")
        snapshot, digest = await self._snapshot_of(caller, name, model)
        await self._keep(caller, name, digest, snapshot)
        return await self._team(snapshot, digest, member, model), plain != model

    async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
        """See ``exchange.service.MadeTeams``."""
        digest = await self._creations.pinned(caller, conversation_id, team.name)
        if digest is None or digest == team.snapshot:
            return team
        body = await self._creations.snapshot(caller, digest)
        if body is None:
            return team
        _, _, member = team.name.partition("/")
        return await self._team(body, digest, member, team.name)

    async def _snapshot_of(self, caller: str, name: str, model: str) -> tuple[bytes, str]:
        """Return what the caller's thing is made of now, and its digest."""
        place = (caller, name)
        revision = await self._creations.revision(caller)
        if revision == (0, 0):
            raise ModelNotFound(model)
        known = self._newest.get(place)
        if known is None or known[0] != revision:
            team = _whole(name, await self._creations.newest(caller))
            if team is None:
                self._newest.pop(place, None)
                raise ModelNotFound(model)
            body = encode_custom(team)
            digest = blake2b(caller.encode() + b"\0" + body, digest_size=20).hexdigest()
            known = self._newest[place] = (revision, body, digest)
            _bound(self._newest)
        return known[1], known[2]

    async def _keep(self, caller: str, name: str, digest: str, body: bytes) -> None:
        if digest not in self._kept:
            await self._creations.keep_snapshot(caller, name, digest, body)
            self._kept[digest] = None
            _bound(self._kept)

    async def _team(self, body: bytes, digest: str, member: str, model: str) -> AgentTeam:
        place = (digest, member)
        team = self._ready.get(place)
        if team is None:
            made = decode_stored_team(body)
            if member and member not in made.agents:
                raise ModelNotFound(model)
            self._refuse_gone(made)
            definition = team_definition(made, self._registry.approved_tools)
            team = self._registry.make(made.name or "", definition, digest, alone=member or None)
            self._ready[place] = team
            _bound(self._ready)
        self._ready.move_to_end(place)
        return team

    def _refuse_gone(self, team: NewTeam) -> None:
        """The operator may have taken away what an agent was made of."""
        for name, agent in team.agents.items():
            gone = next((tool for tool in agent.tools if tool not in self.tools), None)
            if gone is None and agent.model not in self.models:
                gone = agent.model
            if gone is not None:
                raise AgentOutdated(name, gone)


def team_definition(team: NewTeam, approved: Collection[str]) -> TeamDefinition:
    """Return a made team in the words of team files; calls of the tools ``approved`` want a person's approval."""
    given = {name: getattr(team.limits, name) for name in team.limits.__struct_fields__}
    return TeamDefinition(
        description=team.description,
        entry=team.entry,
        agents={name: _agent_definition(agent, approved) for name, agent in team.agents.items()},
        limits=Limits(**{name: value for name, value in given.items() if value is not None}),
    )


def _agent_definition(agent: TeamMember, approved: Collection[str]) -> AgentDefinition:
    return AgentDefinition(
        instructions=agent.instructions,
        description=agent.description,
        model=agent.model,
        tools=tuple(
            ToolUse(name=name, approval="required" if name in approved else None) for name in agent.tools
        ),
        handoffs=tuple(HandoffDefinition(to=one.to, when=one.when) for one in agent.handoffs),
        max_parallel_tools=agent.max_parallel_tools,
        tool_call_timeout=agent.tool_call_timeout,
    )


def _whole(name: str, made: Sequence[Creation]) -> NewTeam | None:
    """Return the team with this name, or that of the agent and everyone who can get the floor from it."""
    by_name = {one.name: one for one in made}
    found = by_name.get(name)
    if found is None:
        return None
    if found.kind == "team":
        return decode_stored_team(found.body)
    agents = {one.name: decode_stored_agent(one.body) for one in made if one.kind == "agent"}
    reached: dict[str, TeamMember] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in reached and one in agents:
            reached[one] = _member(agents[one])
            waiting += _targets(agents[one])
    entry = agents[name]
    return NewTeam(name=name, description=entry.description, entry=name, agents=reached, limits=entry.limits)


def _member(agent: NewAgent) -> TeamMember:
    return TeamMember(**{name: getattr(agent, name) for name in TeamMember.__struct_fields__})


def _targets(agent: NewAgent) -> list[str]:
    return [handoff.to for handoff in agent.handoffs]


def _bound(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > KEPT_READY:
        kept.popitem(last=False)


def _unknown(path: str, kind: str, name: str, known: Iterable[str]) -> UnknownName:
    similar = get_close_matches(name, list(known), n=1)
    return UnknownName(path, kind, name, similar[0] if similar else None)
